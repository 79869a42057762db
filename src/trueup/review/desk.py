"""Who gets which task next, what they answer, and how they take it back.

Labels are the truth of who answered what; the tables here only say who is looking at a task now
(leases), whom a lead gave it to (assignments), and what each person did last (history: skips, and
what undo takes back). A process that dies anywhere leaves nothing but a lease that runs out.
"""

import hashlib
import json
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, delete, exists, func, insert, or_, select, text

from trueup.errors import DataError
from trueup.records import Label, ReviewTask
from trueup.review.config import ReviewConfig
from trueup.store import Store, storage_errors
from trueup.store.tables import (
    REVIEW_ASSIGNMENTS,
    REVIEW_HISTORY,
    REVIEW_LEASES,
    REVIEW_USERS,
    TABLES,
)
from trueup.votes import REVIEW, Answer, answer_of, edit, vote

__all__ = ["AlreadyUsed", "Deed", "Desk", "Progress", "Said"]

TASK, LABEL = TABLES[ReviewTask], TABLES[Label]
SETTLED = "settled"
"""How the source of labels begins that votes were settled into."""
POSTGRES_LOCK = 8410


class AlreadyUsed(DataError):
    """A vote that something was made from cannot be taken back."""


class Said(NamedTuple):
    """What a person filled in for a task."""

    answer: Answer | None = None
    reasons: tuple[tuple[str, ...], ...] = ((), ())
    comment: str = ""
    edits: tuple[str | None, ...] = (None, None)
    """The text each candidate was mended to; None where it was left alone."""


class Deed(NamedTuple):
    """Something a person did: a vote, or a skip (`answer` None)."""

    task_id: str
    answer: Answer | None
    at: str
    comment: str
    num_edits: int


class Progress(NamedTuple):
    """Answers given and wanted. Gold questions count like others, so that nothing tells them."""

    mine: int
    mine_today: int
    all: int
    wanted: int


class Desk:
    """Hands out tasks and takes answers. Safe to use from several threads and processes."""

    def __init__(self, store: Store, config: ReviewConfig) -> None:
        self._store, self._config = store, config
        self._index = _Index(store)

    # --- what next ----------------------------------------------------------------------------

    def next_for(self, name: str, *, besides: Collection[str] = ()) -> ReviewTask | None:
        """A task for this person, kept from others for `lease_s`; the same one until they answer
        or skip it. First what they hold, then what a lead gave them, then the open pool with gold
        questions mixed in.

        Args:
            besides: ids of tasks that they have open elsewhere.
        """
        now = time.time()
        with storage_errors(self._store.folder), self._store.engine.begin() as connection:
            self._lock(connection)
            gold, unfit = self._index.refreshed(connection)
            done = self._done(connection, name)
            for task_id in self._offers(connection, name, now, gold, besides):
                if task_id in done or task_id in unfit or task_id in besides:
                    continue
                self._lease(connection, task_id, name, now)
                break
            else:
                return None
        return next(iter(self._store.get_all(ReviewTask, [task_id])), None)

    def _offers(
        self,
        connection: Connection,
        name: str,
        now: float,
        gold: Sequence[str],
        besides: Collection[str],
    ) -> Iterator[str]:
        """Tasks this person might get, the best first; what they have done is among them."""
        held = REVIEW_LEASES.c
        yield from connection.execute(
            select(held.task_id).where(held.name == name, held.until > now).order_by(held.until)
        ).scalars()
        given = REVIEW_ASSIGNMENTS.c
        yield from connection.execute(
            select(given.task_id)
            .join(TASK, TASK.c.id == given.task_id)
            .where(given.name == name)
            .order_by(TASK.c.seq)
        ).scalars()
        pool = self._pool(connection, name, now, set(gold))
        mixed = sorted(gold, key=lambda one: _draw(name, one))
        if self._is_golds_turn(connection, name, len(besides)):
            first = next((one for one in pool if one not in besides), None)
            if first is not None:  # gold alone at the end would tell
                yield from mixed
                yield first
        yield from pool
        if len(gold) == len(self._index):
            yield from mixed

    def _pool(self, connection: Connection, name: str, now: float, gold: set[str]) -> Iterator[str]:
        """Tasks without an assignment that too few people have answered or are looking at."""
        votes = (
            select(func.count(func.distinct(LABEL.c.annotator)))
            .where(LABEL.c.task_id == TASK.c.id, *_is_a_persons)
            .scalar_subquery()
        )
        lease = REVIEW_LEASES.c
        voted = exists().where(
            LABEL.c.task_id == TASK.c.id, LABEL.c.annotator == lease.name, *_is_a_persons
        )
        looking = (
            select(func.count())
            .select_from(REVIEW_LEASES)
            .where(lease.task_id == TASK.c.id, lease.name != name, lease.until > now, ~voted)
            .scalar_subquery()
        )
        answered = exists().where(
            LABEL.c.task_id == TASK.c.id, LABEL.c.annotator == name, *_is_a_persons
        )
        skipped = exists().where(
            REVIEW_HISTORY.c.task_id == TASK.c.id, REVIEW_HISTORY.c.name == name
        )
        given = exists().where(REVIEW_ASSIGNMENTS.c.task_id == TASK.c.id)
        query = (
            select(TASK.c.id)
            .where(~given, ~answered, ~skipped, votes + looking < self._config.overlap)
            .order_by(TASK.c.seq)
        )
        return (one for one in connection.execute(query).scalars() if one not in gold)

    def _is_golds_turn(self, connection: Connection, name: str, ahead: int) -> bool:
        done = func.count()
        mine = REVIEW_HISTORY.c.name == name
        num_done = connection.execute(
            select(done).select_from(REVIEW_HISTORY).where(mine)
        ).scalar_one()
        return _draw(name, f"turn {num_done + ahead}") < self._config.gold_rate

    def _done(self, connection: Connection, name: str) -> set[str]:
        """Tasks this person answered or skipped."""
        voted = select(LABEL.c.task_id).where(LABEL.c.annotator == name, *_is_a_persons)
        skipped = select(REVIEW_HISTORY.c.task_id).where(REVIEW_HISTORY.c.name == name)
        return {*connection.execute(voted).scalars(), *connection.execute(skipped).scalars()}

    def _lease(
        self,
        connection: Connection,
        task_id: str,
        name: str,
        now: float,
        before: float | None = None,
    ) -> None:
        """Keep a task for somebody; what they hold is shown in the order in which it runs out."""
        held = REVIEW_LEASES.c
        mine = and_(held.task_id == task_id, held.name == name)
        connection.execute(delete(REVIEW_LEASES).where(or_(mine, held.until < now)))
        until = now + self._config.lease_s if before is None else before - 1e-3
        row = {"task_id": task_id, "name": name, "until": until}
        connection.execute(insert(REVIEW_LEASES), [row])

    def _lock(self, connection: Connection) -> None:
        """One person after the other: SQLite's writers queue anyway."""
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))

    # --- answers ------------------------------------------------------------------------------

    def answer(self, name: str, task: ReviewTask, said: Said, *, source: str = REVIEW) -> Label:
        """Write what a person answered, in the place of what they answered to this task before.

        Raises:
            AlreadyUsed: something was made from the earlier answer.
        """
        if said.answer is None:
            raise DataError("An answer is missing", expected="one of the four, or a skip")
        label = vote(
            task, said.answer, name, reasons=said.reasons, comment=said.comment, source=source
        )
        mended = [
            edit(task, place, written, name, comment=said.comment)
            for place, written in enumerate(said.edits)
            if written is not None and written.strip() != task.candidates[place].text.strip()
        ]
        old = self._labels_of(name, task.id)
        if {one.id for one in old} != {label.id, *(one.id for one in mended)}:
            self._exchange(old, [label, *mended], name, task.id, "vote")
        else:
            self._exchange([], [], name, task.id, "vote", [label, *mended])
        return label

    def skip(self, name: str, task_id: str) -> None:
        """Leave a task to others; an answer given before is withdrawn."""
        self._exchange(self._labels_of(name, task_id), [], name, task_id, "skip")

    def undo(self, name: str) -> tuple[str, Said] | None:
        """Take back the last vote or skip; its task, and what was said. None if there is none.

        Raises:
            AlreadyUsed: something was made from that vote.
        """
        mine = select(REVIEW_HISTORY).where(REVIEW_HISTORY.c.name == name)
        with self._reading() as connection:
            last = connection.execute(mine.order_by(REVIEW_HISTORY.c.seq.desc()).limit(1)).first()
        if last is None:
            return None
        said = self.said(name, last.task_id)
        old = self._labels_of(name, last.task_id)

        def forget(connection: Connection) -> None:
            connection.execute(
                delete(REVIEW_HISTORY).where(
                    REVIEW_HISTORY.c.name == name, REVIEW_HISTORY.c.task_id == last.task_id
                )
            )
            held = REVIEW_LEASES.c
            first = connection.execute(
                select(func.min(held.until)).where(held.name == name, held.until > time.time())
            ).scalar()
            self._lease(connection, last.task_id, name, time.time(), before=first)

        if not self._store.exchange(old, (), also=forget):
            raise _already_used()
        return last.task_id, said

    def said(self, name: str, task_id: str) -> Said:
        """What this person answered to a task, as far as they did."""
        said = Said()
        for label in self._labels_of(name, task_id):
            if label.task_id:
                reasons = tuple(tuple(r) for r in label.reasons) or ((), ())
                said = said._replace(
                    answer=answer_of(label), reasons=reasons, comment=label.comment
                )
            else:
                task = self._store.get(ReviewTask, task_id)
                place = int(label.candidates[1] != task.candidates[0])
                edits = list(said.edits)
                edits[place] = label.candidates[0].text
                said = said._replace(edits=tuple(edits))
        return said

    def is_theirs(self, name: str, task_id: str) -> bool:
        """True for a task this person has done, holds, or was given."""
        with self._reading() as connection:
            if task_id in self._done(connection, name):
                return True
            for table in (REVIEW_LEASES, REVIEW_ASSIGNMENTS):
                found = select(table).where(table.c.task_id == task_id, table.c.name == name)
                if connection.execute(found).first():
                    return True
        return False

    def _exchange(
        self,
        old: Sequence[Label],
        new: Sequence[Label],
        name: str,
        task_id: str,
        action: str,
        kept: Sequence[Label] = (),
    ) -> None:
        row = {
            "name": name,
            "task_id": task_id,
            "action": action,
            "label_ids": json.dumps([one.id for one in (*new, *kept)]),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

        def note(connection: Connection) -> None:
            for table in (REVIEW_HISTORY, REVIEW_LEASES):
                mine = and_(table.c.name == name, table.c.task_id == task_id)
                connection.execute(delete(table).where(mine))
            connection.execute(insert(REVIEW_HISTORY), [row])

        if not self._store.exchange(old, new, also=note):
            raise _already_used()

    def _labels_of(self, name: str, task_id: str) -> list[Label]:
        """This person's vote on a task and the edits that came with it."""
        mine = REVIEW_HISTORY.c
        query = select(mine.label_ids).where(mine.name == name, mine.task_id == task_id)
        with self._reading() as connection:
            noted = [one for row in connection.execute(query).scalars() for one in json.loads(row)]
        votes = self._store.all(Label, task_id=task_id, annotator=name, annotator_kind="human")
        votes = [one for one in votes if one.is_vote]
        known = {one.id for one in votes}
        return [*votes, *self._store.get_all(Label, [one for one in noted if one not in known])]

    # --- what was done --------------------------------------------------------------------------

    def history(self, name: str, limit: int = 50) -> list[Deed]:
        """What this person did, the newest first."""
        mine = REVIEW_HISTORY.c
        query = select(REVIEW_HISTORY).where(mine.name == name).order_by(mine.seq.desc())
        with self._reading() as connection:
            rows = connection.execute(query.limit(limit)).all()
        deeds = []
        for row in rows:
            labels = self._store.get_all(Label, json.loads(row.label_ids))
            votes = [one for one in labels if one.task_id]
            deeds.append(
                Deed(
                    row.task_id,
                    answer_of(votes[0]) if votes else None,
                    row.created_at,
                    votes[0].comment if votes else "",
                    len(labels) - len(votes),
                )
            )
        return deeds

    def progress(self, name: str) -> Progress:
        """How far this person and everybody are."""
        today = datetime.now(UTC).date().isoformat()
        with self._reading() as connection:
            gold, unfit = self._index.refreshed(connection)

            def count(*conditions: Any) -> int:
                asked = LABEL.c.task_id != ""
                query = select(func.count()).select_from(LABEL).where(asked, *conditions)
                return connection.execute(query.where(*_is_a_persons)).scalar_one()

            num_people = connection.execute(
                select(func.count())
                .select_from(REVIEW_USERS)
                .where(REVIEW_USERS.c.is_active.is_(True))
            ).scalar_one()
            mine, everybody = count(LABEL.c.annotator == name), count()
            of_today = count(LABEL.c.annotator == name, LABEL.c.created_at >= today)
        num_asked = len(self._index) - len(unfit) - len(gold)
        wanted = num_asked * self._config.overlap + len(gold) * num_people
        return Progress(mine, of_today, everybody, max(wanted, everybody))

    # --- a lead's --------------------------------------------------------------------------------

    def assign(self, task_ids: Iterable[str], names: Sequence[str], by: str) -> int:
        """Give each of these people each of these tasks; how many were news to somebody. An
        assigned task leaves the open pool."""
        new = 0
        with storage_errors(self._store.folder), self._store.engine.begin() as connection:
            self._lock(connection)
            for task_id in task_ids:
                for name in names:
                    given = REVIEW_ASSIGNMENTS.c
                    theirs = and_(given.task_id == task_id, given.name == name)
                    if connection.execute(select(REVIEW_ASSIGNMENTS).where(theirs)).first():
                        continue
                    row = {"task_id": task_id, "name": name, "assigned_by": by}
                    connection.execute(insert(REVIEW_ASSIGNMENTS), [row])
                    new += 1
        return new

    def release(self, name: str) -> int:
        """Put what was assigned to a person and not done back into the pool; how many tasks."""
        given = REVIEW_ASSIGNMENTS.c
        with storage_errors(self._store.folder), self._store.engine.begin() as connection:
            done = self._done(connection, name)
            query = select(given.task_id).where(given.name == name)
            open_ = [one for one in connection.execute(query).scalars() if one not in done]
            for one in open_:
                theirs = and_(given.task_id == one, given.name == name)
                connection.execute(delete(REVIEW_ASSIGNMENTS).where(theirs))
        return len(open_)

    def unassigned(self, limit: int) -> list[str]:
        """The first open tasks that nobody was given, answered or holds; gold is not among them."""
        with self._reading() as connection:
            gold, unfit = self._index.refreshed(connection)
            pool = self._pool(connection, "", time.time(), {*gold, *unfit})
            return [one for one, _ in zip(pool, range(limit), strict=False)]

    def open_assignments(self) -> dict[str, int]:
        """How many assigned tasks each person still has to do."""
        given = REVIEW_ASSIGNMENTS.c
        left: dict[str, int] = {}
        with self._reading() as connection:
            for row in connection.execute(select(given.name, given.task_id)).all():
                left.setdefault(row.name, 0)
                left[row.name] += row.task_id not in self._done(connection, row.name)
        return left

    def gold(self) -> set[str]:
        """Ids of the gold questions."""
        with self._reading() as connection:
            return set(self._index.refreshed(connection)[0])

    def _reading(self) -> Connection:
        return self._store.engine.execution_options(read_only=True).connect()


_is_a_persons = (LABEL.c.annotator_kind == "human", ~LABEL.c.source.startswith(SETTLED))


class _Index:
    """Which tasks are gold questions and which cannot be compared. Tasks do not change, so only
    new ones are read; where some were erased, all are."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._reset()

    def __len__(self) -> int:
        return self._num

    def _reset(self) -> None:
        self._last, self._num = 0, 0
        self._gold: list[str] = []
        self._unfit: set[str] = set()

    def refreshed(self, connection: Connection) -> tuple[list[str], set[str]]:
        """Ids of the gold questions, and of tasks that have not two candidates."""
        with self._lock:
            there = connection.execute(select(func.count()).select_from(TASK)).scalar_one()
            self._read(connection)
            if there != self._num:
                self._reset()
                self._read(connection)
            return list(self._gold), set(self._unfit)

    def _read(self, connection: Connection) -> None:
        query = select(TASK).where(TASK.c.seq > self._last).order_by(TASK.c.seq)
        for row in connection.execute(query):
            task = ReviewTask.model_validate_json(row.body)
            self._last, self._num = row.seq, self._num + 1
            if len(task.candidates) != 2:
                self._unfit.add(task.id)
            elif task.gold is not None:
                self._gold.append(task.id)


def _draw(*words: str) -> float:
    """A number in [0, 1) that is always the same for these words."""
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _already_used() -> AlreadyUsed:
    return AlreadyUsed(
        "This answer cannot be taken back any more",
        got="an answer that was settled or paired",
        expected="one that nothing was made from",
        next="ask a lead for a second look",
    )
