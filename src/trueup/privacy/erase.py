"""Taking traffic out for good: the records, what was made of them, files, vectors, and the bytes.

    interactions ─ feedback, flags, tasks, labels, pairs     the rows go
                 └ data sets ─ runs ─ checkpoints, releases  stay, and are listed
    sample sets of the same prompts, verdicts, reports, half-finished runs, kept log-probs: go

What goes leaves its id: lineage still names it, and nothing brings it back, neither a second import
of the file it came from nor feedback that arrives late. A data set that somebody trained on keeps
its id and its list, which are hashes and no text; one that nobody trained on goes too, and its
other pairs are free for the next.

Everything in the database happens in one transaction, with the list of ids as a journal and a line
in the audit trail. Files, vectors and free space come after it; killed there, the next call, or
`resume`, goes on from the journal. Where several machines share a Postgres store, each finishes
its own folder so: at its next turn, or by `resume`.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, delete, insert, select, text, update

from trueup.errors import StorageError
from trueup.privacy.config import PrivacyConfig
from trueup.privacy.needles import START, Needles, Talks, texts_of
from trueup.privacy.pseudonyms import Pseudonyms
from trueup.privacy.trail import add_entry
from trueup.records import (
    Checkpoint,
    Dataset,
    Feedback,
    Flag,
    Interaction,
    Label,
    PreferencePair,
    Record,
    Release,
    ReviewTask,
    SampleSet,
    TrainingRun,
)
from trueup.store import Store
from trueup.store.tables import EDGES, ERASED, ERASURES, KINDS, TABLES, VERDICTS, kind_of

__all__ = ["Erasure", "Forget", "erase_older", "erase_user", "resume", "retain"]

Forget = Callable[[Sequence[str]], object]
"""Takes the vectors of records out of an index, bytes and all. Called again, it does no harm."""

TRAFFIC = (Interaction, Feedback, Flag, ReviewTask, Label, PreferencePair)
"""What goes with an interaction, whole."""
AT_ONCE = 500
READERS_WAIT_S = 10.0
MARKS = "erasures.txt"
"""In a machine's folder beside a Postgres store: the erasures that the folder is done with."""


class Erasure(NamedTuple):
    """What one call took, or would take."""

    id: str
    """Its name in the journal; empty where nothing was there, or nothing was to be done yet."""
    removed: dict[str, int]
    """Records that are gone, by kind."""
    redacted: dict[str, int]
    """Records that stay, with `[erased]` where they quoted what is gone, by kind."""
    datasets: tuple[str, ...]
    """Data sets that stay and have lost pairs."""
    checkpoints: tuple[str, ...]
    """Models that were trained on what is gone: they may still know it."""
    releases: tuple[str, ...]
    """Releases that served one of them."""


class _Plan(NamedTuple):
    ids: dict[type[Record], list[str]]
    """To be removed."""
    datasets: list[str]
    runs: list[str]
    """Of the data sets that stay."""
    checkpoints: list[str]
    releases: list[str]

    @property
    def all_ids(self) -> list[str]:
        return [one for ids in self.ids.values() for one in ids]


def erase_user(
    store: Store,
    user: str,
    *,
    tenant: str | None = None,
    dry_run: bool = False,
    forget: Forget | None = None,
    who: str = "",
) -> Erasure:
    """Erase what a user asked and was answered, and all that was made of it.

    Args:
        user: the id as requests carry it; its pseudonyms are found from it.
        tenant: only this tenant's traffic; by default every tenant's.
        dry_run: only say what would go.
        who: for the audit trail; by default the user of this machine.

    Raises:
        StorageError: something could not be written. What was not finished is at the next call.
    """
    names = [user, *Pseudonyms(store).all_of(user)]
    table = TABLES[Interaction]
    query = select(table.c.id).where(table.c.user.in_([store.column(one) for one in names]))
    if tenant is not None:
        query = query.where(table.c.tenant == store.column(tenant))
    subject = names[1:] or ["an id without a pseudonym"]
    told = {"subject": sorted(subject), "tenant": tenant}
    return _erase(store, query, "erase", told, dry_run=dry_run, forget=forget, who=who)


def erase_older(
    store: Store, days: float, *, dry_run: bool = False, forget: Forget | None = None, who: str = ""
) -> Erasure:
    """Erase traffic that was recorded more than so many days ago, and all that was made of it."""
    table = TABLES[Interaction]
    limit = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="microseconds")
    query = select(table.c.id).where(table.c.created_at < limit)
    told = {"older_than_days": days}
    return _erase(store, query, "retention", told, dry_run=dry_run, forget=forget, who=who)


def retain(store: Store, config: PrivacyConfig, forget: Forget | None = None) -> Erasure | None:
    """Hold traffic to `privacy.retain_days`; None where it is unset. What was stopped, or done on
    another machine, is finished in any case."""
    resume(store, forget)
    if config.retain_days is None:
        return None
    return erase_older(store, config.retain_days, forget=forget)


def resume(store: Store, forget: Forget | None = None) -> int:
    """Finish what was stopped between the database and the files, and take from this machine's
    folder what another one erased from the store that they share; returns how many there were."""
    query = select(ERASURES.c.id).where(ERASURES.c.finished_at.is_(None))
    with store.reading() as connection:
        unfinished = connection.execute(query).scalars().all()
    for one in unfinished:
        _finish(store, one, forget)
    return len(unfinished) + _catch_up(store, forget)


def _erase(
    store: Store,
    query: Any,
    action: str,
    told: dict[str, Any],
    *,
    dry_run: bool,
    forget: Forget | None,
    who: str,
) -> Erasure:
    if dry_run:
        with store.reading() as connection:
            return _result("", _plan(connection, query), Counter())
    resume(store, forget)
    erasure = f"erasure_{uuid4().hex[:20]}"
    with store.writing() as connection:  # what arrives meanwhile waits, and then finds it gone
        plan = _plan(connection, query)
        if not plan.all_ids:
            if action == "erase":  # what somebody holds back for now is not to come after this
                row = {"id": erasure, "started_at": _now(), "finished_at": _now(), "details": "[]"}
                connection.execute(insert(ERASURES), row)
                # that somebody asked is worth a line, too
                add_entry(connection, action, {**told, "removed": {}}, who=who)
            return _result("", plan, Counter())
        needles = _needles(connection, plan)
        _blot_cards(store.folder, needles)  # here the texts are known; killed, it is done again
        redacted = _blot_records(connection, plan, needles)
        _remove(connection, store, plan, erasure)
        result = _result(erasure, plan, redacted)
        row = {"id": erasure, "started_at": _now(), "details": json.dumps(_lost_runs(plan))}
        connection.execute(insert(ERASURES), row)
        add_entry(connection, action, {**told, **result._asdict()}, who=who)
    _finish(store, erasure, forget)
    return result


def _result(erasure: str, plan: _Plan, redacted: Counter[str]) -> Erasure:
    removed = {kind.tag: len(ids) for kind, ids in plan.ids.items() if ids}
    return Erasure(
        erasure,
        removed,
        dict(redacted),
        tuple(plan.datasets),
        tuple(plan.checkpoints),
        tuple(plan.releases),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


# --- what goes --------------------------------------------------------------------------------


def _plan(connection: Connection, query: Any) -> _Plan:
    """Follow lineage forward from the interactions that a query selects."""
    roots = connection.execute(query).scalars().all()
    below = _descendants(connection, roots)
    talks = Talks(_prompts(connection, roots))
    below |= _descendants(connection, _labels_of(connection, talks))
    ids: dict[type[Record], list[str]] = {
        kind: sorted(one for one in below if kind_of(one) is kind) for kind in TRAFFIC
    }
    ids[SampleSet] = _samples_of(connection, talks)
    trained, idle = set[str](), set[str]()
    beyond = set[str]()
    for dataset in (one for one in below if kind_of(one) is Dataset):
        made = _descendants(connection, [dataset])
        if any(kind_of(one) is Checkpoint for one in made):
            trained.add(dataset)
            beyond |= made
        else:
            idle |= made
    ids[Dataset] = sorted(one for one in idle if kind_of(one) is Dataset)
    ids[TrainingRun] = sorted(one for one in idle if kind_of(one) is TrainingRun)
    kinds = (TrainingRun, Checkpoint, Release)
    runs, models, releases = (sorted(o for o in beyond if kind_of(o) is k) for k in kinds)
    return _Plan(ids, sorted(trained), runs, models, releases)


def _descendants(connection: Connection, roots: Sequence[str]) -> set[str]:
    """These and all that was made of them; of data sets only where one is a root."""
    found, waiting = set(roots), list(roots)
    while waiting:
        parents = [one for one in waiting if kind_of(one) is not Dataset or one in roots]
        waiting = []
        for part in _parts(parents):
            query = select(EDGES.c.child).where(EDGES.c.parent.in_(part))
            waiting += [c for c in connection.execute(query).scalars() if c not in found]
            found.update(waiting)
    return found


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(ids), AT_ONCE):
        yield ids[at : at + AT_ONCE]


def _bodies(connection: Connection, kind: type[Record], ids: Sequence[str]) -> Iterator[Any]:
    table = TABLES[kind]
    for part in _parts(ids):
        yield from connection.execute(select(table.c.id, table.c.body).where(table.c.id.in_(part)))


def _prompts(connection: Connection, interactions: Sequence[str]) -> Iterator[Any]:
    for row in _bodies(connection, Interaction, interactions):
        yield json.loads(row.body)["prompt"]


def _samples_of(connection: Connection, talks: Talks) -> list[str]:
    """Answers that were drawn outside of traffic to prompts that repeat a turn of these."""
    table = TABLES[SampleSet]
    rows = connection.execute(select(table.c.id, table.c.body)) if talks else ()
    return [r.id for r in rows if talks.are_in(json.loads(r.body)["prompt"])]


def _labels_of(connection: Connection, talks: Talks) -> list[str]:
    """Labels and tasks of these prompts that name no interaction: of answers drawn in rounds."""
    found = []
    for kind in (Label, ReviewTask):
        table = TABLES[kind]
        query = select(table.c.id, table.c.body).where(table.c.interaction_id.is_(None))
        rows = connection.execute(query) if talks else ()
        found += [r.id for r in rows if talks.has(json.loads(r.body)["prompt"])]
    return found


def _needles(connection: Connection, plan: _Plan) -> Needles:
    """What is to be found wherever else it stands."""
    roots = plan.ids[Interaction]
    talks = Talks(_prompts(connection, roots))
    systems, whole = _own_systems(connection, plan, talks)
    return Needles((*_texts(connection, plan), *systems), whole=whole, talks=talks)


def _own_systems(connection: Connection, plan: _Plan, talks: Talks) -> tuple[set[str], set[str]]:
    """System prompts that nothing else has: they may speak of the user. In the second set those
    that begin as others' do."""
    own = {
        text for prompt in _prompts(connection, plan.ids[Interaction]) for text in _rules(prompt)
    }
    alike = set[str]()
    for prompt in _other_prompts(connection, plan, talks) if own else ():
        for rules in _rules(prompt):
            own.discard(rules)
            alike |= {one for one in own if one[:START] == rules[:START]}
        if not own:  # with one prompt for everybody, after the first
            break
    return own - alike, own & alike


def _rules(prompt: Any) -> Iterator[str]:
    texts = (turn["content"].strip() for turn in prompt if turn["role"] == "system")
    yield from filter(None, texts)


def _other_prompts(connection: Connection, plan: _Plan, talks: Talks) -> Iterator[Any]:
    """Of traffic, labels and data sets that stay."""
    for kind in (Interaction, Label, Dataset):
        table, going = TABLES[kind], set(plan.ids[kind])
        query = select(table.c.id, table.c.body).execution_options(yield_per=AT_ONCE)
        with connection.execute(query) as rows:
            for row in rows:
                if row.id not in going:
                    body = json.loads(row.body)
                    prompts = [body["prompt"]] if "prompt" in body else body.get("prompts", ())
                    yield from (one for one in prompts if kind is not Dataset or not talks.has(one))


def _texts(connection: Connection, plan: _Plan) -> Iterator[str]:
    for kind in (*TRAFFIC, SampleSet):
        for row in _bodies(connection, kind, plan.ids[kind]):
            yield from texts_of(kind.model_validate_json(row.body))


# --- in the database --------------------------------------------------------------------------


def _remove(connection: Connection, store: Store, plan: _Plan, erasure: str) -> None:
    """The rows go, their ids stay. A data set that goes also leaves its pairs free."""
    for kind, ids in plan.ids.items():
        table = TABLES[kind]
        for part in _parts(ids):
            connection.execute(delete(table).where(table.c.id.in_(part)))
            if kind is not SampleSet:  # the same draw again is not what was erased
                rows = [{"id": one, "erasure": erasure} for one in part]
                connection.execute(store.insert_or_ignore(ERASED), rows)
    for part in _parts(plan.ids[Dataset]):
        connection.execute(delete(EDGES).where(EDGES.c.child.in_(part)))
    connection.execute(delete(VERDICTS))


def _blot_records(connection: Connection, plan: _Plan, needles: Needles) -> Counter[str]:
    """Reports, audits, runs, checkpoints and data sets stay; what they quote does not."""
    changed: Counter[str] = Counter()
    for kind in KINDS:
        if kind in TRAFFIC or kind is SampleSet:
            continue
        table, going = TABLES[kind], set(plan.ids.get(kind, ()))
        for row in connection.execute(select(table.c.id, table.c.body)).all():
            body = json.loads(row.body)
            made = needles.blotted(body)
            if made is not body and row.id not in going:
                values = {"body": json.dumps(made, ensure_ascii=False)}
                connection.execute(update(table).where(table.c.id == row.id).values(values))
                changed[kind.tag] += 1
    return changed


# --- files, vectors and free space ------------------------------------------------------------


def _lost_runs(plan: _Plan) -> list[str]:
    return sorted({*plan.ids[TrainingRun], *plan.runs})


def _finish(store: Store, erasure: str, forget: Forget | None) -> None:
    """What comes after the transaction; every step may be done twice."""
    with store.reading() as connection:
        ids = connection.execute(select(ERASED.c.id).where(ERASED.c.erasure == erasure))
        gone = ids.scalars().all()
        query = select(ERASURES.c.details).where(ERASURES.c.id == erasure)
        runs = json.loads(connection.execute(query).scalar_one())
    _remove_files(store.folder, runs)
    if forget is not None:
        forget(gone)
    _free_space(store)
    _mark(store, [erasure])
    with store.writing() as connection:
        done = update(ERASURES).where(ERASURES.c.id == erasure).values(finished_at=_now())
        connection.execute(done)


def _catch_up(store: Store, forget: Forget | None) -> int:
    """Rows and their tombstones are in the store, for every machine; reports, runs, cards and
    LanceDB's files are beside each machine that uses it."""
    if not store.is_postgres:
        return 0
    marks = store.folder / MARKS
    known = set(marks.read_text().split()) if marks.exists() else set[str]()
    with store.reading() as connection:
        rows = connection.execute(select(ERASURES.c.id, ERASURES.c.details)).all()
        missing = {row.id: json.loads(row.details) for row in rows if row.id not in known}
        gone: list[str] = []
        for part in _parts(list(missing)):
            query = select(ERASED.c.id).where(ERASED.c.erasure.in_(part))
            gone += connection.execute(query).scalars()
    if missing:
        _remove_files(store.folder, sorted({run for runs in missing.values() for run in runs}))
        _renew_cards(store)
        if forget is not None:
            forget(gone)
        _mark(store, missing)
    return len(missing)


def _mark(store: Store, erasures: Iterable[str]) -> None:
    """This machine's folder is done with these."""
    if store.is_postgres:
        try:
            with (store.folder / MARKS).open("a") as marks:
                marks.writelines(f"{one}\n" for one in erasures)
        except OSError as error:
            raise _not_removed(store.folder, error) from error


def _remove_files(folder: Path, runs: Iterable[str]) -> None:
    """Pages that may show a text, half-finished runs, and log-probs by hashes of texts."""
    try:
        for name in ("reports", *(f"runs/{run}" for run in runs)):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        for run in runs:
            shutil.rmtree(folder / "checkpoints" / f".{run}", ignore_errors=True)
        for file in (folder / "cache").glob("logprobs.sqlite*"):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise _not_removed(folder, error) from error


def _blot_cards(folder: Path, needles: Needles) -> None:
    """What a checkpoint's card quotes; its weights are named by their own contents."""
    _rewrite_cards(folder, needles.blotted)


def _renew_cards(store: Store) -> None:
    """The texts are known no more, but the records that a card repeats were blotted with them."""

    def renewed(card: dict[str, Any]) -> dict[str, Any]:
        run = card.get("run")
        run_id = run.get("id") if isinstance(run, dict) else None
        made = store.last(Checkpoint, run_id=run_id) if run_id else None
        runs = store.get_all(TrainingRun, [run_id]) if run_id else []
        if made is None or not runs:
            return card
        now: dict[str, Any] = {"run": runs[0].model_dump(mode="json")}
        now |= {"metrics": made.metrics} if "metrics" in card else {}
        return card if now.items() <= card.items() else card | now

    _rewrite_cards(store.folder, renewed)


def _rewrite_cards(folder: Path, change: Callable[[Any], Any]) -> None:
    """`change` gives back the same object where a card may stay."""
    for file in sorted((folder / "checkpoints").glob("*/card.json")):
        try:
            card = json.loads(file.read_text())
            made = change(card)
            if made is not card:
                scratch = file.with_name("card.json.new")
                scratch.write_text(json.dumps(made, indent=2, sort_keys=True))
                scratch.replace(file)
        except OSError as error:
            raise _not_removed(folder, error) from error
        except ValueError:
            continue  # no JSON: not written by us


def _not_removed(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Files in {folder} could not be removed",
        got=str(error),
        expected="a folder that may be written",
        next="mend that and run it again: it goes on from here",
    )


def _free_space(store: Store) -> None:
    """Overwrite what rows have left behind.

    SQLite zeroes freed bytes at once (`secure_delete`); the log beside the file holds older pages
    until it is emptied, which waits for readers. Postgres leaves dead rows until a table is
    rewritten, which a full vacuum does.
    """
    if store.is_postgres:
        _vacuum_postgres(store)
        return
    end = time.monotonic() + READERS_WAIT_S
    while True:
        with store.cleaning() as connection:
            raw: Any = connection.connection.driver_connection
            busy = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if not busy:
            return
        if time.monotonic() > end:
            raise StorageError(
                "Erased rows are still in the write-ahead log, which somebody is reading",
                got=str(store.folder / "store.sqlite-wal"),
                expected=f"readers to finish within {READERS_WAIT_S:g} s",
                next="run it again: it goes on from here",
            )
        time.sleep(0.05)


def _vacuum_postgres(store: Store) -> None:
    tables = [TABLES[kind].name for kind in KINDS] + [VERDICTS.name]
    with store.cleaning() as connection:
        for table in tables:
            connection.execute(text(f"VACUUM (FULL, ANALYZE) {table}"))
