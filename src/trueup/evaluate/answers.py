"""A model's answers to gold items, and what the checkers say of them."""

from collections.abc import Sequence
from typing import NamedTuple

from trueup.evaluate import checkers
from trueup.evaluate.checkers import Outcome
from trueup.evaluate.gold import GoldItem
from trueup.judges import Judge
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import Completion, Sampling
from trueup.store import Store

__all__ = ["Marked", "greedy", "marked"]

KEEP_EVERY = 16  # prompts between two commits: what a killed run has to answer again


class Marked(NamedTuple):
    """One item, one model."""

    item: GoldItem
    answer: Completion
    outcome: Outcome

    @property
    def passed(self) -> bool | None:
        """None where the answer could not be checked."""
        return self.outcome.passed


def greedy(max_tokens: int) -> Sampling:
    """How gold items are answered: the likeliest token, always."""
    return Sampling(temperature=0.0, max_tokens=max_tokens, seed=0)


def marked(
    store: Store,
    model: StoredModel,
    gold: Sequence[GoldItem],
    max_tokens: int,
    *,
    name: str,
    judge: Judge | None = None,
) -> list[Marked]:
    """Draw the answers that the store has not got yet, then check them all, in the items' order."""
    prompts = [item.messages for item in gold]
    drawn = model.samples(
        store, prompts, greedy(max_tokens), num_samples=1, name=name, keep_every=KEEP_EVERY
    )
    found = []
    with task("check", len(gold)) as advance:
        for item, (answer,) in zip(gold, drawn, strict=True):
            outcome = checkers.check(item.checker, answer.text, prompt=item.messages, judge=judge)
            found.append(Marked(item, answer, outcome))
            advance(1)
    return found
