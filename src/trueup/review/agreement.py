"""Do people agree, with each other and with what is known: figures for the leads' page."""

import threading
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from trueup.label.votes import SECOND_LOOK, Choice
from trueup.review.standing import Standing, Vote
from trueup.stats import Interval, cohen_kappa, krippendorff_alpha, wilson

__all__ = ["Disagreement", "Figures", "Reader", "Said", "copied", "disagreements", "figures"]

NUM_RESAMPLES = 300
MOST_PAIRS = 50
"""Of annotators, in the table of their agreement."""


class Disagreement(NamedTuple):
    """A task on which votes differ, by annotator; `settled_by` gave it a second look."""

    task_id: str
    votes: dict[str, Choice]
    settled_by: str


class Figures(NamedTuple):
    """What is on the leads' page; what the votes do not give is None."""

    alpha: dict[str, Any] | None
    num_shared: int
    """Tasks that two or more people answered."""
    people: list[dict[str, Any]]
    pairs: list[dict[str, Any]]


class Said(NamedTuple):
    """A copy of who said what, so that nobody waits while it is counted."""

    version: int
    votes: dict[str, dict[str, Choice]]
    """By task and person; second looks are left out."""
    gold: dict[str, Choice]


def copied(known: Standing) -> Said:
    """What the figures are made of."""
    votes = {task_id: _asked(votes) for task_id, votes in known.votes.items()}
    return Said(known.version, votes, dict(known.gold))


class Reader:
    """Counts again only when there are other votes, and once for all who ask."""

    def __init__(self) -> None:
        self._version, self._figures = -1, Figures(None, 0, [], [])
        self._lock = threading.Lock()

    def figures(self, said: Said) -> Figures:
        """The figures as they were then, or newer."""
        with self._lock:
            if said.version > self._version:
                self._figures, self._version = figures(said), said.version
            return self._figures


def disagreements(known: Standing) -> list[Disagreement]:
    """The tasks on which people differ, those without a second look first."""
    found = []
    for task_id, votes in known.votes.items():
        said = _asked(votes)
        looks = {name: one.at for name, one in votes.items() if one.source == SECOND_LOOK}
        if task_id not in known.gold and len(set(said.values())) > 1:
            found.append(Disagreement(task_id, said, max(looks, key=looks.__getitem__, default="")))
    return sorted(found, key=lambda one: bool(one.settled_by))


def _asked(votes: Mapping[str, Vote]) -> dict[str, Choice]:
    """What each person said who was asked like the others."""
    return {name: one.choice for name, one in votes.items() if one.source != SECOND_LOOK}


def figures(found: Said) -> Figures:
    """Agreement over tasks that several people answered, gold questions apart, and each person on
    the gold questions."""
    said = found.votes
    names = sorted({name for one in said.values() for name in one})
    asked = {task_id: one for task_id, one in said.items() if task_id not in found.gold}
    shared = [one for one in asked.values() if len(one) > 1]
    alpha = krippendorff_alpha(
        [[one.get(name) for one in shared] for name in names], num_resamples=NUM_RESAMPLES
    )
    gold = [(right, said[one]) for one, right in found.gold.items() if one in said]
    people = [_person(name, asked, gold) for name in names]
    pairs = [_pair(a, b, shared) for a, b in combinations(names, 2)]
    met = sorted((one for one in pairs if one["num_tasks"]), key=lambda one: -one["num_tasks"])
    return Figures(_plain(alpha), len(shared), people, met[:MOST_PAIRS])


def _person(
    name: str, asked: dict[str, dict[str, Choice]], gold: Sequence[tuple[str, dict[str, Choice]]]
) -> dict[str, Any]:
    right = [one[name] == right for right, one in gold if name in one]
    given = [one[name] for one in asked.values() if name in one]
    return {
        "name": name,
        "num_votes": len(given) + len(right),
        "num_gold": len(right),
        "gold_right": _plain(wilson(sum(right), len(right))),
        "ties": given.count("tie") + given.count("both bad"),
    }


def _pair(a: str, b: str, shared: list[dict[str, Choice]]) -> dict[str, Any]:
    both = [(one[a], one[b]) for one in shared if a in one and b in one]
    kappa = cohen_kappa([x for x, _ in both], [y for _, y in both])
    same = sum(x == y for x, y in both)
    return {"names": [a, b], "num_tasks": len(both), "num_same": same, "kappa": _plain(kappa)}


def _plain(interval: Interval | None) -> dict[str, float] | None:
    if interval is None:
        return None
    return dict(zip(("estimate", "low", "high"), map(float, interval), strict=True))
