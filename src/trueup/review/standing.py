"""Tasks and the votes that stand, in memory: read once, and then only what is new.

Labels are only ever added, so what was read stays read. After an erasure everything is read again.
So it is where the count differs: in Postgres two writers may commit out of the order of their rows.
"""

from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from trueup.label.votes import Choice, choice_of, gold_choice
from trueup.records import Label, ReviewTask
from trueup.store.tables import ERASURES, TABLES

__all__ = ["Standing", "Vote"]

TASK, LABEL = TABLES[ReviewTask], TABLES[Label]
PEOPLES = (LABEL.c.annotator_kind == "human", LABEL.c.task_id != "")


class Vote(NamedTuple):
    """What is kept of a vote."""

    label_id: str
    choice: Choice
    source: str
    at: str
    replaces: str


class Standing:
    """Not safe between threads: the desk asks one at a time."""

    def __init__(self, overlap: int = 1) -> None:
        self._overlap, self._erasures = overlap, 0
        self._reset()

    def _reset(self) -> None:
        self.tasks: dict[str, None] = {}
        """Ids of the tasks of two answers, oldest first."""
        self.gold: dict[str, Choice] = {}
        """Which of them are gold questions, and what is right."""
        self.short: dict[str, None] = {}
        """Tasks with fewer votes than the overlap, gold questions apart."""
        self.votes: dict[str, dict[str, Vote]] = {}
        """By task and person; withdrawn votes are not there."""
        self.by_person: dict[str, set[str]] = {}
        """Which tasks each person has answered."""
        self.version = getattr(self, "version", 0) + 1
        self._marks: dict[str, tuple[int, int]] = {}
        self._marks_at = -1
        self._chains: dict[tuple[str, str], list[Vote]] = {}
        self._last_task, self._num_tasks, self._last_label, self._num_labels = 0, 0, 0, 0

    def refresh(self, connection: Connection) -> None:
        """Read what is new."""
        erasures = connection.execute(select(func.count()).select_from(ERASURES)).scalar_one()
        if erasures != self._erasures:
            self._erasures = erasures
            self._reset()
        self._read(connection)
        if connection.dialect.name == "sqlite":
            return  # one writer at a time, and counting takes longer than all else
        if self._counts(connection) != (self._num_tasks, self._num_labels):
            self._reset()
            self._read(connection)

    @property
    def gold_marks(self) -> dict[str, tuple[int, int]]:
        """Of each person who answered gold questions: how many right, how many in all."""
        if self._marks_at != self.version:
            marks: dict[str, tuple[int, int]] = {}
            for task_id, right in self.gold.items():
                for name, one in self.votes.get(task_id, {}).items():
                    num_right, num_asked = marks.get(name, (0, 0))
                    marks[name] = num_right + (one.choice == right), num_asked + 1
            self._marks, self._marks_at = marks, self.version
        return self._marks

    def newest(self, task_id: str, name: str) -> Vote | None:
        """A person's vote that counts, withdrawn or not."""
        votes = self._chains.get((task_id, name), [])
        replaced = {one.replaces for one in votes}
        left = [one for one in votes if one.label_id not in replaced]
        return max(left, key=lambda one: one.at, default=None)

    def _counts(self, connection: Connection) -> tuple[int, int]:
        tasks = select(func.count()).select_from(TASK)
        labels = select(func.count()).select_from(LABEL).where(*PEOPLES)
        return connection.execute(tasks).scalar_one(), connection.execute(labels).scalar_one()

    def _read(self, connection: Connection) -> None:
        new: Any = select(TASK).where(TASK.c.seq > self._last_task).order_by(TASK.c.seq)
        for row in connection.execute(new):
            self._last_task, self._num_tasks = row.seq, self._num_tasks + 1
            self._add_task(ReviewTask.model_validate_json(row.body))
        new = select(LABEL).where(LABEL.c.seq > self._last_label, *PEOPLES).order_by(LABEL.c.seq)
        for row in connection.execute(new):
            self._last_label, self._num_labels = row.seq, self._num_labels + 1
            self._add_label(Label.model_validate_json(row.body))

    def _add_task(self, task: ReviewTask) -> None:
        if len(task.candidates) == 2:
            self.tasks[task.id] = None
            self.version += 1
            if right := gold_choice(task):
                self.gold[task.id] = right
            elif len(self.votes.get(task.id, ())) < self._overlap:
                self.short[task.id] = None

    def _add_label(self, label: Label) -> None:
        choice = choice_of(label)
        if not label.is_vote or choice is None:
            return
        task_id, name = label.task_id, label.annotator
        chain = self._chains.setdefault((task_id, name), [])
        chain.append(Vote(label.id, choice, label.source, label.created_at, label.replaces))
        self.version += 1
        newest = self.newest(task_id, name)
        if newest and newest.choice != "withdrawn":
            self.votes.setdefault(task_id, {})[name] = newest
            self.by_person.setdefault(name, set()).add(task_id)
        else:
            self.votes.get(task_id, {}).pop(name, None)
            self.by_person.get(name, set()).discard(task_id)
        if len(self.votes.get(task_id, ())) >= self._overlap:
            self.short.pop(task_id, None)
        elif task_id in self.tasks and task_id not in self.gold:
            self.short[task_id] = None
