"""What could training teach? Only what the model sometimes does already.

Preference training and RL move probability between answers that the model draws. An item that no
draw solves has nothing to be moved to: it takes demonstrations (SFT) first, or another model.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from trueup import stats
from trueup.evaluate import checkers
from trueup.evaluate.gold import GoldItem
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import Sampling
from trueup.store import Store

__all__ = ["Ceiling", "ItemCeiling", "ceiling", "pass_at_k"]


class ItemCeiling(NamedTuple):
    """One gold item under N draws."""

    id: str
    slice: str
    prompt: str
    right: int
    draws: int


class Ceiling(NamedTuple):
    """pass@k over the gold set, and the items nothing solves."""

    num_samples: int
    pass_at: dict[int, float]
    """By k = 1, 2, 4, … N: the share of items that at least one of k draws solves."""
    pass_at_n: stats.Interval | None
    """At k = N, with its 95 % interval."""
    items: list[ItemCeiling]
    unchecked: int
    """Items whose code may not run here."""

    @property
    def out_of_reach(self) -> list[ItemCeiling]:
        """Items that no draw solved."""
        return [one for one in self.items if one.right == 0]

    @property
    def already_known(self) -> list[ItemCeiling]:
        """Items that every draw solved: nothing to gain there either."""
        return [one for one in self.items if one.right == one.draws]

    def miss_rate(self) -> float:
        """Largest chance a draw that an item out of reach may still have, at 95 %: what N misses
        in a row cannot exclude."""
        return 1 - 0.05 ** (1 / self.num_samples)


def pass_at_k(draws: int, right: int, k: int) -> float:
    """Chance that at least one of k draws is right: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, arXiv:2107.03374, Eq. 1: unbiased, where 1 - (1 - c/n)^k is not.

    Worked example: 1 right of 4 gives 0.25 for k = 1 and 0.5 for k = 2.
    """
    if draws - right < k:
        return 1.0
    return 1 - math.comb(draws - right, k) / math.comb(draws, k)


def ceiling(
    store: Store,
    model: StoredModel,
    gold: Sequence[GoldItem],
    *,
    num_samples: int,
    max_tokens: int,
    seed: int = 0,
) -> Ceiling:
    """Draw N answers to every gold item and see which are ever right.

    Reads:   the gold items; answers already drawn.
    Writes:  the missing answers.
    Skips:   items whose code has no sandbox here, counted.
    Again:   draws nothing, and checks again.
    Cost:    N answers an item.
    """
    sampling = Sampling(temperature=1.0, max_tokens=max_tokens, seed=seed)
    drawn = model.samples(
        store, [i.messages for i in gold], sampling, num_samples=num_samples, name="gold answers"
    )
    items, unchecked = [], 0
    with task("check", len(gold)) as advance:
        for item, answers in zip(gold, drawn, strict=True):
            right = _right(item.checker, [one.text for one in answers])
            if right is None:
                unchecked += 1
            else:
                items.append(ItemCeiling(item.id, item.slice, item.prompt, right, num_samples))
            advance(1)
    ks = [k for k in (2**i for i in range(20)) if k < num_samples] + [num_samples]
    solved = sum(one.right > 0 for one in items)
    return Ceiling(
        num_samples=num_samples,
        pass_at={
            k: sum(pass_at_k(one.draws, one.right, k) for one in items) / len(items)
            for k in ks
            if items
        },
        pass_at_n=stats.wilson(solved, len(items)),
        items=items,
        unchecked=unchecked,
    )


def _right(checker: dict[str, Any], texts: Sequence[str]) -> int | None:
    """How many of the texts pass, equal ones checked once; None where code may not run."""
    known: dict[str, bool | None] = {}
    for text in texts:
        if text not in known:
            known[text] = checkers.check(checker, text).passed
    outcomes = [known[text] for text in texts]
    return None if None in outcomes else sum(bool(one) for one in outcomes)
