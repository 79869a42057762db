"""Do people agree, with each other and with what is known: figures for the leads' page."""

import threading
from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from sqlalchemy import func, select

from trueup.records import Label, ReviewTask
from trueup.stats import Interval, cohen_kappa, krippendorff_alpha, wilson
from trueup.store import Store
from trueup.store.tables import TABLES
from trueup.votes import SECOND_LOOK, Answer, answer_of, newest

__all__ = ["Disagreement", "Figures", "Votes", "figures"]

NUM_RESAMPLES = 300
MOST_PAIRS = 50
"""Of annotators, in the table of their agreement."""


class Disagreement(NamedTuple):
    """A task on which votes differ, by annotator; `settled_by` gave it a second look."""

    task_id: str
    votes: dict[str, Answer]
    settled_by: str


class Votes(NamedTuple):
    """People's votes that count: by task, then by annotator, in the order they were given."""

    by_task: dict[str, dict[str, Answer]]
    second_looks: dict[str, str]
    """By task, who gave it a second look."""

    def disagreements(self, gold: Collection[str] = ()) -> list[Disagreement]:
        """The tasks on which people differ, those without a second look first."""
        found = [
            Disagreement(task_id, votes, self.second_looks.get(task_id, ""))
            for task_id, votes in self.by_task.items()
            if task_id not in gold and len(set(votes.values())) > 1
        ]
        return sorted(found, key=lambda one: bool(one.settled_by))


class Figures(NamedTuple):
    """What is on the leads' page; what the votes do not give is None."""

    alpha: dict[str, Any] | None
    num_shared: int
    """Tasks that two or more people answered."""
    people: list[dict[str, Any]]
    pairs: list[dict[str, Any]]


class Reader:
    """Reads votes again only when there are other ones."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._key: Any = None
        self._votes = Votes({}, {})
        self._figures: Figures | None = None

    def votes(self) -> Votes:
        """The votes as they are now."""
        table = TABLES[Label]
        query = select(func.count(), func.max(table.c.seq)).select_from(table)
        with self._store.engine.execution_options(read_only=True).connect() as connection:
            key = tuple(connection.execute(query).one())
        with self._lock:
            if key != self._key:
                self._votes, self._key, self._figures = _read(self._store), key, None
            return self._votes

    def figures(self, gold: Collection[str]) -> Figures:
        """The figures as they are now."""
        votes = self.votes()
        with self._lock:
            if self._figures is None:
                self._figures = figures(self._store, votes, gold)
            return self._figures


def _read(store: Store) -> Votes:
    by_task: dict[str, dict[str, Answer]] = {}
    looks: dict[str, str] = {}
    for label in newest(store.each(Label, annotator_kind="human")):
        answer = answer_of(label)
        if label.source == SECOND_LOOK:
            looks[label.task_id] = label.annotator
        elif answer is not None:
            by_task.setdefault(label.task_id, {})[label.annotator] = answer
    return Votes(by_task, looks)


def figures(store: Store, votes: Votes, gold: Collection[str]) -> Figures:
    """Agreement over tasks that several people answered, gold questions apart, and each person on
    the gold questions."""
    names = sorted({name for one in votes.by_task.values() for name in one})
    asked = {task: one for task, one in votes.by_task.items() if task not in gold}
    shared = [one for one in asked.values() if len(one) > 1]
    alpha = krippendorff_alpha(
        [[one.get(name) for one in shared] for name in names], num_resamples=NUM_RESAMPLES
    )
    known = {
        one.id: one.gold
        for one in store.get_all(ReviewTask, gold)
        if one.gold and len(one.gold) > 1
    }
    people = [_person(name, asked, votes, known) for name in names]
    pairs = [_pair(a, b, shared) for a, b in combinations(names, 2)]
    met = sorted((one for one in pairs if one["num_tasks"]), key=lambda one: -one["num_tasks"])
    return Figures(_plain(alpha), len(shared), people, met[:MOST_PAIRS])


def _person(
    name: str, asked: dict[str, dict[str, Answer]], votes: Votes, known: dict[str, Any]
) -> dict[str, Any]:
    mine = [votes.by_task[one][name] for one in known if name in votes.by_task.get(one, {})]
    right = [
        _is_right(votes.by_task[one][name], scores)
        for one, scores in known.items()
        if name in votes.by_task.get(one, {})
    ]
    given = [one[name] for one in asked.values() if name in one]
    return {
        "name": name,
        "num_votes": len(given) + len(mine),
        "num_gold": len(right),
        "gold_right": _plain(wilson(sum(right), len(right))),
        "ties": given.count("tie") + given.count("both bad"),
    }


def _is_right(answer: Answer, scores: Sequence[float]) -> bool:
    if scores[0] == scores[1]:
        return answer in ("tie", "both bad")
    return answer == ("first" if scores[0] > scores[1] else "second")


def _pair(a: str, b: str, shared: list[dict[str, Answer]]) -> dict[str, Any]:
    both = [(one[a], one[b]) for one in shared if a in one and b in one]
    kappa = cohen_kappa([x for x, _ in both], [y for _, y in both])
    same = sum(x == y for x, y in both)
    return {"names": [a, b], "num_tasks": len(both), "num_same": same, "kappa": _plain(kappa)}


def _plain(interval: Interval | None) -> dict[str, float] | None:
    if interval is None:
        return None
    return dict(zip(("estimate", "low", "high"), map(float, interval), strict=True))
