"""`trueup evaluate --gold`: how well a model does on a set of items, no gate involved.

The answers are kept in the store as they are made, so a killed run goes on and a second one is
free; the result is printed and shown on a page, and no record, for it follows from them. What gates
a candidate is `run.py` alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from trueup import stats
from trueup.evaluate.answers import Marked, marked
from trueup.evaluate.formats import GoldSet
from trueup.evaluate.paired import Paired, paired, slices_of
from trueup.judges import Judge
from trueup.models.stored import StoredModel
from trueup.stats import Interval
from trueup.store import Store

__all__ = ["Measured", "Standing", "measure"]


class Standing(NamedTuple):
    """One model on one set."""

    model: str
    weights: str
    accuracy: Interval | None
    """Of the items that could be checked, with Wilson's 95 % interval; None where there are none.
    For IFEval: all instructions of the prompt hold, strictly."""
    checked: int
    cut: int
    """Answers that ended at `max_tokens` and not by themselves."""
    slices: dict[str, tuple[int, Interval]]
    """Items and accuracy of each; empty where there is only one."""
    figures: dict[str, Interval]
    """IFEval's other three: by prompt and loosely, by instruction strictly and loosely."""
    instructions: dict[str, tuple[int, Interval]]
    """IFEval's groups of instructions, strictly: how many, and the share that holds."""


class Measured(NamedTuple):
    """A set, the model that was asked, and the champion beside it if that is another."""

    gold: GoldSet
    standings: list[Standing]
    paired: Paired | None
    lost: list[str]
    """Ids of items that the champion passes and the model does not."""
    rows: list[dict[str, Any]]
    """Item by item: answer, outcome, why not."""


def measure(
    store: Store,
    gold: GoldSet,
    model: StoredModel,
    champion: StoredModel,
    *,
    max_tokens: int,
    name: str = "champion",
    judge: Judge | None = None,
) -> Measured:
    """Put the items to a model and, if that is another one, to the champion.

    Reads:   answers already drawn.
    Writes:  the missing answers, some at a time.
    Skips:   items whose code has no sandbox here or whose verdict cannot be read: not counted as
             right or wrong.
    Again:   draws nothing, and checks again.
    Cost:    a greedy answer an item and model.
    """
    ours = marked(store, model, gold.items, max_tokens, name=f"{name} {gold.name}", judge=judge)
    standings = [_standing(name, model.weights, ours)]
    if model.weights == champion.weights:
        return Measured(gold, standings, None, [], [_row(one) for one in ours])
    theirs = marked(
        store, champion, gold.items, max_tokens, name=f"champion {gold.name}", judge=judge
    )
    standings.append(_standing("champion", champion.weights, theirs))
    both = [(o, t) for o, t in zip(ours, theirs, strict=True) if None not in (o.passed, t.passed)]
    return Measured(
        gold,
        standings,
        paired(
            [o.item.slice for o, _ in both],
            [bool(o.passed) for o, _ in both],
            [bool(t.passed) for _, t in both],
        ),
        [o.item.id for o, t in both if t.passed and not o.passed],
        [
            {
                **_row(o),
                "champion_passed": t.passed,
                "champion_reason": t.outcome.reason,
                "champion_answer": t.answer.text,
            }
            for o, t in zip(ours, theirs, strict=True)
        ],
    )


def _standing(name: str, weights: str, answers: Sequence[Marked]) -> Standing:
    known = [one for one in answers if one.passed is not None]
    slices = {
        name: (len(at), _share([bool(known[i].passed) for i in at]))
        for name, at in slices_of([one.item.slice for one in known]).items()
    }
    return Standing(
        model=name,
        weights=weights,
        accuracy=_share([bool(one.passed) for one in known]) if known else None,
        checked=len(known),
        cut=sum(one.answer.finish_reason == "length" for one in answers),
        slices=dict(sorted(slices.items())) if len(slices) > 1 else {},
        figures=_ifeval_figures(known),
        instructions=_instruction_groups(known),
    )


def _share(outcomes: Sequence[bool]) -> Interval:
    share = stats.wilson(sum(outcomes), len(outcomes))
    assert share is not None, "a share of something"
    return share


def _ifeval_figures(known: Sequence[Marked]) -> dict[str, Interval]:
    parts = [one.outcome.parts for one in known if one.outcome.parts]
    if not parts:
        return {}
    return {
        "prompts, loose": _share([all(part.loose for part in of_item) for of_item in parts]),
        "instructions, strict": clustered_share([[p.passed for p in item] for item in parts]),
        "instructions, loose": clustered_share([[p.loose for p in item] for item in parts]),
    }


def _instruction_groups(known: Sequence[Marked]) -> dict[str, tuple[int, Interval]]:
    groups: dict[str, list[list[bool]]] = {}
    for one in known:
        of_item: dict[str, list[bool]] = {}
        for part in one.outcome.parts:
            of_item.setdefault(part.name.partition(":")[0], []).append(part.passed)
        for name, outcomes in of_item.items():
            groups.setdefault(name, []).append(outcomes)
    return {
        name: (sum(map(len, outcomes)), clustered_share(outcomes))
        for name, outcomes in sorted(groups.items())
    }


def clustered_share(clusters: Sequence[Sequence[bool]]) -> Interval:
    """A share of outcomes that come in clusters, with Wilson's 95 % interval at the effective
    number of outcomes.

    Instructions of one prompt stand or fall together, so n of them are worth fewer: n divided by
    the design effect, the variance of the ratio estimator over that of n independent outcomes
    (Kish 1965, Section 8.2). It is not let below 1: few clusters cannot show that they know more
    than as many independent outcomes.
    """
    n, k = sum(map(len, clusters)), len(clusters)
    share = sum(sum(one) for one in clusters) / n
    effect = 1.0
    if 0 < share < 1 and k > 1:
        spread = sum((sum(one) - share * len(one)) ** 2 for one in clusters)
        effect = max(1.0, k / (k - 1) * spread / (n * share * (1 - share)))
    return stats.wilson_at(share, n / effect)


def _row(one: Marked) -> dict[str, Any]:
    return {
        "id": one.item.id,
        "slice": one.item.slice,
        "prompt": one.item.prompt,
        "passed": one.passed,
        "reason": one.outcome.reason,
        "answer": one.answer.text,
        "cut": one.answer.finish_reason == "length",
        **({"parts": [part._asdict() for part in one.outcome.parts]} if one.outcome.parts else {}),
    }
