"""Who gets which task next, what they answer, and how they take it back.

Labels are the truth of who answered what; the tables here only say who is looking at a task now
(leases), whom a lead gave it to (assignments), and what each person did last (history: skips, and
what undo takes back). A process that dies anywhere leaves nothing but a lease that runs out.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, delete, exists, func, insert, or_, select, text, update

from trueup.errors import DataError
from trueup.label.config import LabelConfig
from trueup.label.votes import EDIT, REVIEW, SECOND_LOOK, Choice, choice_of, vote
from trueup.label.weigh import fails_gold
from trueup.privacy import Scrub
from trueup.records import Completion, Label, ReviewTask
from trueup.review.config import ReviewConfig
from trueup.review.standing import Standing, Vote
from trueup.store import Store, storage_errors
from trueup.store.tables import REVIEW_ASSIGNMENTS, REVIEW_HISTORY, REVIEW_LEASES, REVIEW_USERS

__all__ = ["Deed", "Desk", "Progress", "Said"]

DONE = ("vote", "skip")
POSTGRES_LOCK = 8410
KEPT_S = 7 * 24 * 3600.0
"""How long somebody who opened a task may answer it, though it went to others meanwhile."""


class Said(NamedTuple):
    """What a person filled in for a task, in the order of its candidates."""

    choice: Choice | None = None
    reasons: tuple[tuple[str, ...], ...] = ((), ())
    comment: str = ""
    edits: tuple[str | None, ...] = (None, None)
    """The text each candidate was mended to; None where it was left alone."""


class Deed(NamedTuple):
    """Something a person did: a vote, or a skip (`choice` None)."""

    task_id: str
    choice: Choice | None
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

    def __init__(
        self,
        store: Store,
        config: ReviewConfig,
        label: LabelConfig | None = None,
        *,
        scrub: Scrub | None = None,
    ) -> None:
        """
        Args:
            label: `overlap` is how many people answer each task of the open pool; the votes of
                whoever fails gold questions by its measure are not among them.
            scrub: what takes out of comments and edits what must not be written.
        """
        self._store, self._config, self._label = store, config, label or LabelConfig()
        self._overlap = self._label.overlap
        self._scrub: Scrub = scrub or (lambda record: record)
        self._known, self._lock = Standing(self._overlap), threading.RLock()

    # --- what next ----------------------------------------------------------------------------

    def next_for(self, name: str, *, besides: Collection[str] = ()) -> ReviewTask | None:
        """A task for this person, kept from others for `lease_s`; the same one until they answer
        or skip it. First what they hold, then what a lead gave them, then the open pool with gold
        questions mixed in.

        Args:
            besides: ids of tasks that they have open elsewhere.
        """
        now = time.time()
        with self._writing() as (connection, known):
            done = self._done(connection, name) | set(besides)
            offers = self._offers(connection, name, now, known, done, len(besides))
            task_id = next((one for one in offers if one not in done and one in known.tasks), None)
            if task_id is None:
                return None
            self._lease(connection, task_id, name, now + self._config.lease_s, now)
        return next(iter(self._store.get_all(ReviewTask, [task_id])), None)

    def _offers(
        self,
        connection: Connection,
        name: str,
        now: float,
        known: Standing,
        done: set[str],
        num_ahead: int,
    ) -> Iterator[str]:
        """Tasks this person might get, the best first; some of them may be done."""
        live = self._live_leases(connection, now)
        yield from (one.task_id for one in live if one.name == name)
        given = self._open_assignments(connection, known)
        mine = {one.task_id for one in given if one.name == name}
        yield from (one for one in known.tasks if one in mine)
        pool = self._pool(known, {one.task_id for one in given}, live, name)
        first = next((one for one in pool if one not in done), None)
        # gold alone at the end would tell what it is
        if first is not None and self._is_golds_turn(connection, name, num_ahead):
            yield from self._gold_for(name, known)
        if first is not None:
            yield first
        if len(known.gold) == len(known.tasks):
            yield from self._gold_for(name, known)

    def _pool(
        self, known: Standing, given: set[str], live: Sequence[Any], name: str
    ) -> Iterator[str]:
        """Tasks that nobody has yet to do by assignment, and that too few people have answered or
        are looking at. Whose votes gold questions left out does not fill a place."""
        looking: dict[str, set[str]] = {}
        for one in live:
            if one.name != name:
                looking.setdefault(one.task_id, set()).add(one.name)
        out = self._left_out(known)
        # whose votes were left out makes tasks short that are not counted as such
        for task_id in known.tasks if out else known.short:
            if task_id not in known.gold and task_id not in given:
                people = known.votes.get(task_id, {}).keys() - out | looking.get(task_id, set())
                if len(people - {name}) < self._overlap:
                    yield task_id

    def _left_out(self, known: Standing) -> set[str]:
        """Whose votes do not count, as `trueup.label.weigh` has it."""
        marks = known.gold_marks.items()
        return {name for name, (right, asked) in marks if fails_gold(right, asked, self._label)}

    def _open_assignments(self, connection: Connection, known: Standing) -> list[Any]:
        """Those that are neither answered nor skipped, nor erased."""
        given, mine = REVIEW_ASSIGNMENTS.c, REVIEW_HISTORY.c
        skipped = and_(
            mine.name == given.name, mine.task_id == given.task_id, mine.action == "skip"
        )
        query = select(REVIEW_ASSIGNMENTS).where(~exists().where(skipped))
        nothing = set[str]()
        return [
            one
            for one in _rows(connection, query)
            if one.task_id in known.tasks
            and one.task_id not in known.by_person.get(one.name, nothing)
        ]

    def _gold_for(self, name: str, known: Standing) -> list[str]:
        """Gold questions in an order of this person's own."""
        return sorted(known.gold, key=lambda one: _draw(name, one))

    def _is_golds_turn(self, connection: Connection, name: str, num_ahead: int) -> bool:
        mine = select(func.count()).select_from(REVIEW_HISTORY).where(REVIEW_HISTORY.c.name == name)
        place = connection.execute(mine).scalar_one() + num_ahead
        return _draw(name, f"turn {place}") < self._config.gold_rate

    def _done(self, connection: Connection, name: str) -> set[str]:
        """Tasks this person answered or skipped."""
        mine = REVIEW_HISTORY.c
        skipped = select(mine.task_id).where(mine.name == name, mine.action == "skip")
        return self._known.by_person.get(name, set()) | {
            *connection.execute(skipped).scalars().all()
        }

    def _live_leases(self, connection: Connection, now: float) -> Sequence[Any]:
        """Who is looking at what, the first to run out first."""
        held = REVIEW_LEASES.c
        query = select(REVIEW_LEASES).where(held.until > now).order_by(held.until)
        return _rows(connection, query)

    def _lease(
        self, connection: Connection, task_id: str, name: str, until: float, now: float
    ) -> None:
        """Keep a task for somebody; what they hold is shown in the order in which it runs out."""
        held = REVIEW_LEASES.c
        theirs = and_(held.task_id == task_id, held.name == name)
        # one that ran out keeps the task from nobody, but who is slow may still answer it
        old = held.until < now - KEPT_S
        connection.execute(delete(REVIEW_LEASES).where(or_(theirs, old)))
        row = {"task_id": task_id, "name": name, "until": until}
        connection.execute(insert(REVIEW_LEASES), [row])

    # --- answers ------------------------------------------------------------------------------

    def answer(self, name: str, task: ReviewTask, said: Said, *, source: str = REVIEW) -> None:
        """Write what a person answered, in the place of what they answered to this task before."""
        if said.choice is None:
            raise DataError("An answer is missing", expected="one of the four, or a skip")
        with self._lock:  # of two deeds of one person the second must find the first whole
            edits = self._write(name, task, said, said.choice, source)
            self._note(name, task.id, "vote", edits)

    def skip(self, name: str, task: ReviewTask) -> None:
        """Leave a task to others; an answer given before is withdrawn."""
        with self._lock:
            edits = self._write(name, task, Said(), "withdrawn", REVIEW)
            self._note(name, task.id, "skip", edits)

    def undo(self, name: str) -> tuple[ReviewTask, Said] | None:
        """Take back the last vote or skip; its task, and what was said. None if there is none."""
        with self._lock:
            return self._undo(name)

    def _undo(self, name: str) -> tuple[ReviewTask, Said] | None:
        mine = REVIEW_HISTORY.c
        with self._reading() as (connection, known):
            last = next(self._deeds(connection, known, name), None)
        if last is None:
            return None
        task = self._store.get(ReviewTask, last.task_id)
        said = self.said(name, task)
        now = time.time()
        with self._writing() as (connection, _):
            held = REVIEW_LEASES.c
            # in front of whatever they hold, so that it is shown when they load the page again, and
            # theirs before the vote is gone, so that nobody else gets it in between
            first = select(func.min(held.until)).where(held.name == name, held.until > now)
            until = connection.execute(first).scalar() or now + self._config.lease_s
            self._lease(connection, task.id, name, until - 1e-3, now)
        edits = json.dumps(self._write(name, task, Said(), "withdrawn", REVIEW))
        with self._writing() as (connection, _):
            connection.execute(
                update(REVIEW_HISTORY)
                .where(mine.seq == last.seq)
                .values(action="undone", label_ids=edits)
            )
        return task, said

    def said(self, name: str, task: ReviewTask) -> Said:
        """What this person answered to a task, as far as they did."""
        newest = self._newest(name, task.id)
        said = Said()
        if newest and newest.choice != "withdrawn":
            label = self._store.get(Label, newest.label_id)
            said = Said(newest.choice, label.reasons or ((), ()), label.comment)
        edits = [None if _is_withdrawn(one) else one for one in self._edits(name, task)]
        return said._replace(edits=tuple(one.candidates[0].text if one else None for one in edits))

    def _write(
        self, name: str, task: ReviewTask, said: Said, choice: Choice, source: str
    ) -> list[str]:
        """The labels that make a person's last word on a task this one; those that change nothing
        are left out. A label that changes another names it, since going back to an earlier choice
        would otherwise be that earlier label.

        Returns:
            Ids of the newest edits, one a candidate; empty where there never was one.
        """
        before, labels = self._newest(name, task.id), []
        if before and before.source == SECOND_LOOK:
            source = SECOND_LOOK  # whoever has seen the others' votes does not vote like them again
        made = vote(
            task,
            choice,
            name,
            source=source,
            reasons=said.reasons,
            comment=said.comment,
            replaces=before.label_id if before else "",
        )
        made = self._scrub(made)
        if before is None:
            is_new = choice != "withdrawn"
        else:
            old = self._store.get(Label, before.label_id)
            is_new = _content(old) != _content(made)
        if is_new:
            labels.append(made)
        kept: list[str] = []
        for place, last in enumerate(self._edits(name, task)):
            edit = _edit(task, place, said.edits[place], name, last)
            edit = self._scrub(edit) if edit else None
            if edit and not (last and _content(last) == _content(edit)):
                labels.append(edit)
                last = edit
            kept.append(last.id if last else "")
        self._store.add_all(labels)
        return kept

    def _newest(self, name: str, task_id: str) -> Vote | None:
        with self._reading() as (_, known):
            return known.newest(task_id, name)

    def _edits(self, name: str, task: ReviewTask) -> list[Label | None]:
        """This person's newest edit of each candidate, withdrawn or not."""
        mine = REVIEW_HISTORY.c
        query = select(mine.label_ids).where(mine.name == name, mine.task_id == task.id)
        with self._reading() as (connection, _):
            row = connection.execute(query).scalar()
        ids = json.loads(row) if row else ["", ""]
        found = {one.id: one for one in self._store.get_all(Label, filter(None, ids))}
        return [found.get(one) for one in ids]

    def _note(self, name: str, task_id: str, action: str, edits: Sequence[str]) -> None:
        """The person's last deed is this one, and they hold the task no longer."""
        row = {
            "name": name,
            "task_id": task_id,
            "action": action,
            "label_ids": json.dumps(edits),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self._writing() as (connection, _):
            for table in (REVIEW_HISTORY, REVIEW_LEASES):
                mine = and_(table.c.name == name, table.c.task_id == task_id)
                connection.execute(delete(table).where(mine))
            connection.execute(insert(REVIEW_HISTORY), [row])

    # --- what was done ------------------------------------------------------------------------

    def is_theirs(self, name: str, task_id: str) -> bool:
        """True for a task this person has done, holds, or was given."""
        with self._reading() as (connection, known):
            if task_id in known.by_person.get(name, ()):
                return True
            for table in (REVIEW_HISTORY, REVIEW_LEASES, REVIEW_ASSIGNMENTS):
                found = select(table).where(table.c.task_id == task_id, table.c.name == name)
                if connection.execute(found).first():
                    return True
        return False

    def history(self, name: str, limit: int = 50) -> list[Deed]:
        """What this person did, the newest first."""
        with self._reading() as (connection, known):
            rows = list(islice(self._deeds(connection, known, name), limit))
            votes = {one.task_id: known.votes.get(one.task_id, {}).get(name) for one in rows}
        ids = [one.label_id for one in votes.values() if one]
        ids += [edit for row in rows for edit in json.loads(row.label_ids)]
        labels = {one.id: one for one in self._store.get_all(Label, filter(None, ids))}
        deeds = []
        for row in rows:
            given = votes[row.task_id]
            edits = [labels.get(one) for one in json.loads(row.label_ids)]
            label = labels.get(given.label_id) if given else None
            deeds.append(
                Deed(
                    row.task_id,
                    given.choice if given else None,
                    row.created_at,
                    label.comment if label else "",
                    sum(one is not None and not _is_withdrawn(one) for one in edits),
                )
            )
        return deeds

    def _deeds(self, connection: Connection, known: Standing, name: str) -> Iterator[Any]:
        """A person's votes and skips, the newest first, of tasks that were not erased since."""
        mine = REVIEW_HISTORY.c
        query = select(REVIEW_HISTORY).where(mine.name == name, mine.action.in_(DONE))
        rows = connection.execute(query.order_by(mine.seq.desc()))
        return (row for row in rows if row.task_id in known.tasks)

    def progress(self, name: str) -> Progress:
        """How far this person and everybody are."""
        today = datetime.now(UTC).date().isoformat()
        active = select(func.count()).select_from(REVIEW_USERS)
        with self._reading() as (connection, known):
            num_people = connection.execute(
                active.where(REVIEW_USERS.c.is_active.is_(True))
            ).scalar_one()
            mine = [known.votes[one][name] for one in known.by_person.get(name, ())]
            given = sum(map(len, known.by_person.values()))
            num_asked, num_gold = len(known.tasks) - len(known.gold), len(known.gold)
        wanted = num_asked * self._overlap + num_gold * num_people
        of_today = sum(one.at >= today for one in mine)
        return Progress(len(mine), of_today, given, max(wanted, given))

    # --- a lead's -----------------------------------------------------------------------------

    def assign(self, task_ids: Iterable[str], names: Sequence[str], by: str) -> int:
        """Give each of these people each of these tasks that they have not done; how many were
        news to somebody. An assigned task leaves the open pool until all of them have done it."""
        given = REVIEW_ASSIGNMENTS.c
        with self._writing() as (connection, _):
            query = select(given.task_id, given.name)
            known = {tuple(one) for one in connection.execute(query)}
            done = {name: self._done(connection, name) for name in names}
            rows = [
                {"task_id": task_id, "name": name, "assigned_by": by}
                for task_id in dict.fromkeys(task_ids)
                for name in dict.fromkeys(names)
                if (task_id, name) not in known and task_id not in done[name]
            ]
            if rows:
                connection.execute(insert(REVIEW_ASSIGNMENTS), rows)
        return len(rows)

    def release(self, name: str) -> int:
        """Put what was assigned to a person and not done back into the pool; how many tasks."""
        given = REVIEW_ASSIGNMENTS.c
        with self._writing() as (connection, known):
            left = [one for one in self._open_assignments(connection, known) if one.name == name]
            for one in left:
                theirs = and_(given.task_id == one.task_id, given.name == name)
                connection.execute(delete(REVIEW_ASSIGNMENTS).where(theirs))
        return len(left)

    def unassigned(self, limit: int, names: Sequence[str] = ()) -> list[str]:
        """The first tasks of the pool that nobody was given or holds, and that somebody of these
        people, if any are named, has not done; gold is not among them."""
        with self._reading() as (connection, known):
            live = self._live_leases(connection, time.time())
            held = {one.task_id for one in self._open_assignments(connection, known)}
            held |= {one.task_id for one in live}
            if names:
                held |= set[str].intersection(*(self._done(connection, one) for one in names))
            pool = self._pool(known, held, live, "")
            return [one for one, _ in zip(pool, range(limit), strict=False)]

    def open_assignments(self) -> dict[str, int]:
        """How many assigned tasks each person still has to do, of those who have any."""
        with self._reading() as (connection, known):
            return dict(Counter(one.name for one in self._open_assignments(connection, known)))

    def read(self, reader: Any) -> Any:
        """`reader` of the tasks and votes as they are now, while nothing changes them."""
        with self._reading() as (_, known):
            return reader(known)

    # --- inside -------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[tuple[Connection, Standing]]:
        """A connection that does not queue with writers, and what stands."""
        engine = self._store.engine.execution_options(read_only=True)
        with self._lock, storage_errors(self._store.folder, "read"), engine.connect() as connection:
            self._known.refresh(connection)
            yield connection, self._known

    @contextmanager
    def _writing(self) -> Iterator[tuple[Connection, Standing]]:
        """One after the other, in all processes: SQLite's writers queue anyway."""
        with (
            self._lock,
            storage_errors(self._store.folder),
            self._store.engine.begin() as connection,
        ):
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))
            self._known.refresh(connection)
            yield connection, self._known


def _rows(connection: Connection, query: Any) -> Sequence[Any]:
    return connection.execute(query).all()


def _edit(
    task: ReviewTask, place: int, written: str | None, name: str, last: Label | None
) -> Label | None:
    """The label that prefers a person's text to the candidate it mends. Without a text, one that
    takes the last edit back, if there is one. What somebody makes of a gold question is kept, since
    it looks like all others, and prefers nothing: gold teaches nothing."""
    if written is None and last is None:
        return None
    mended = Completion(text=written or "", finish_reason="stop")
    if written is None and last is not None:
        mended = last.candidates[0]
    why = "withdrawn" if written is None else "gold question" if task.gold is not None else ""
    return Label(
        prompt=task.prompt,
        candidates=(mended, task.candidates[place]),
        scores=(1.0, 0.0) if not why else (0.0, 0.0),
        reasons=((why,), (why,)) if why else (),
        annotator=name,
        annotator_kind="human",
        interaction_id=task.interaction_id,
        source=EDIT,
        replaces=last.id if last else "",
    )


def _is_withdrawn(label: Label | None) -> bool:
    return label is not None and choice_of(label) == "withdrawn"


def _content(label: Label) -> Any:
    """What a label says, without what it replaces."""
    return label.candidates[0].text, label.scores, label.reasons, label.comment, label.source


def _draw(*words: str) -> float:
    """A number in [0, 1) that is always the same for these words."""
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
