"""What every judge offers: scores for several answers to one prompt, and a name for itself.

`rank` is the one method. A comparison asks it in both orders and calls disagreement a tie, so a
judge that likes whatever stands first wins nothing by it. The `id` says who judged: the scorer
behind the labels and the scorer that promotes must not share one.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from trueup.records import AnnotatorKind, Completion, Messages

__all__ = ["Judge", "Outcome", "Ranking", "Side", "compare"]

Outcome = Literal["win", "tie", "loss"]
Side = int
"""A verdict on two answers: 0 a tie, 1 the first, 2 the second."""


class Ranking(NamedTuple):
    """Scores of the candidates, higher is better, comparable within this ranking; and why."""

    scores: tuple[float, ...]
    reasons: tuple[tuple[str, ...], ...]


class Judge(Protocol):
    """Anything that ranks answers."""

    @property
    def id(self) -> str:
        """Name and version: `code:house-style/1`."""
        ...

    @property
    def kind(self) -> AnnotatorKind: ...

    @property
    def is_symmetric(self) -> bool:
        """True where `rank` gives the same scores in any order, by asking in every order itself or
        by looking at each answer alone; such a judge need not be asked twice."""
        ...

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """Score every candidate answer to the prompt."""
        ...


def version_of(judge: Judge) -> str:
    """What distinguishes two states of one judge, such as a function that was mended; empty for one
    whose id says it all."""
    return str(getattr(judge, "version", None) or "")


def signature(judge: Judge) -> str:
    """Id and version in one: what a report must have been made with to be this judge's word."""
    return "@".join(part for part in (judge.id, version_of(judge)) if part)


def compare(judge: Judge, prompt: Messages, ours: Completion, theirs: Completion) -> Outcome:
    """Whether `ours` beats `theirs`, asked in both orders; a verdict that depends on the order
    is a tie."""
    ours_first = judge.rank(prompt, [ours, theirs]).scores
    if getattr(judge, "is_symmetric", False):  # a judge of the user's own may not say
        return _outcome(_sign(ours_first[0] - ours_first[1]))
    theirs_first = judge.rank(prompt, [theirs, ours]).scores
    leads = {_sign(ours_first[0] - ours_first[1]), _sign(theirs_first[1] - theirs_first[0])}
    if len(leads) > 1:
        return "tie"
    return _outcome(leads.pop())


def _outcome(lead: int) -> Outcome:
    return "win" if lead > 0 else "loss" if lead < 0 else "tie"


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
