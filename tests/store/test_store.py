"""The store keeps what it acknowledged: through bad batches, full disks, other writers, kill -9.

Processes are real processes and killed with SIGKILL; full and read-only disks are real mounts in
a namespace of their own. A batch is made to fail half-way by a trigger in the database itself.

Every test runs on SQLite and on a real Postgres, but those of bad disks and damaged files, which
are about SQLite's file; Postgres's own are in `test_postgres.py`.
"""

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text

from mounts import in_own_mounts, on_a_disk_of
from trueup.errors import DataError, ProjectBusy, RecordNotFound, StorageError
from trueup.records import (
    Checkpoint,
    Completion,
    Dataset,
    Feedback,
    Flag,
    Interaction,
    Label,
    Message,
    PreferencePair,
    Record,
    Release,
    TrainingRun,
)
from trueup.store import Store
from trueup.store.engine import open_engine
from trueup.store.migrations import MIGRATIONS, Migration, applied, migrate
from trueup.store.tables import KINDS, METADATA, kind_of

PROMPT = (Message(role="user", content="How long does a charge take?"),)


URL = "TRUEUP_TEST_URL"
"""Tells our own processes which database a test is about."""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """None for the SQLite file, or a Postgres database of the test's own."""
    if request.param == "sqlite":
        return None
    found = request.getfixturevalue("postgres_url")
    monkeypatch.setenv(URL, found)
    return found


@pytest.fixture
def store(tmp_path: Path, url: str | None) -> Iterator[Store]:
    opened = Store(tmp_path / "store", url=url)
    yield opened
    opened.close()


@pytest.fixture
def plain_engine(tmp_path: Path, url: str | None) -> Iterator[Engine]:
    """A database without anything in it, opened as a store opens it."""
    engine = open_engine(url or f"sqlite:///{tmp_path / 'plain.sqlite'}")
    yield engine
    engine.dispose()


def interaction(name: str, size: int = 0) -> Interaction:
    return Interaction(
        prompt=PROMPT,
        completion=Completion(text=f"4 hours {'x' * size}"),
        source="gateway",
        request_id=name,
    )


def chain() -> list:
    """One record of each kind on the way from an interaction to a checkpoint."""
    asked = interaction("1")
    said = Feedback(interaction_id=asked.id, rating=-1)
    flag = Flag(interaction_id=asked.id, flagger="signals/1", score=0.9, raised=True)
    label = Label(
        prompt=PROMPT,
        candidates=(Completion(text="4 hours."), asked.completion),
        scores=(1.0, 0.0),
        annotator="ann",
        annotator_kind="human",
        interaction_id=asked.id,
    )
    pair = PreferencePair(
        prompt=PROMPT,
        chosen=label.candidates[0],
        rejected=label.candidates[1],
        margin=1.0,
        label_ids=(label.id,),
    )
    dataset = Dataset(pair_ids=(pair.id,), source="loop")
    run = TrainingRun(
        dataset_id=dataset.id,
        method="dpo",
        config={},
        base_weights="weights_0",
        start_weights="weights_0",
        ref_weights="weights_0",
        template="template_0",
    )
    checkpoint = Checkpoint(run_id=run.id, path="c", weights="weights_1", base_weights="weights_0")
    return [asked, said, flag, label, pair, dataset, run, checkpoint]


def refuse_inserts(store: Store, table: str) -> None:
    """From now on the database itself refuses new rows of a table."""
    with store.engine.begin() as connection:
        if store.is_postgres:
            connection.execute(text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'refused by the test'; END $$"
            ))  # fmt: skip
            how = "FOR EACH ROW EXECUTE FUNCTION refuse()"
        else:
            how = "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        connection.execute(text(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} {how}"))


def python(code: str, *args: object) -> list[str]:
    """The command line that runs this code on the source under test."""
    return [sys.executable, "-c", PREAMBLE + code, *map(str, args)]


PREAMBLE = f"""
import os, sys
sys.path[:0] = {[p for p in sys.path if p]!r}
from trueup.errors import StorageError
from trueup.records import Completion, Interaction, Message
from trueup.store import Store as _Store

def Store(folder):
    return _Store(folder, url=os.environ.get({URL!r}))

def interaction(name, size=0):
    return Interaction(
        prompt=(Message(role="user", content="How long does a charge take?"),),
        completion=Completion(text="4 hours " + "x" * size), source="gateway", request_id=name)
"""


# --- adding and reading ---------------------------------------------------------------------------


def test_what_was_added_comes_back_as_it_was(store: Store) -> None:
    for record in chain():
        store.add(record)
        assert store.get(type(record), record.id) == record
        assert store.all(type(record)) == [record]


def test_adding_twice_is_adding_once(store: Store) -> None:
    records = chain()
    assert store.add(*records) == len(records)
    assert store.add(*records) == 0
    assert store.add_all([*records, *records]) == 0
    assert store.count(Interaction) == store.count(Label) == 1


def test_the_same_record_twice_in_a_batch_is_one_record(store: Store) -> None:
    assert store.add(interaction("1"), interaction("1"), interaction("2")) == 2
    assert store.count(Interaction) == 2


def test_the_first_of_two_equal_records_keeps_its_time(store: Store) -> None:
    first, second = interaction("1"), interaction("1")
    assert first.created_at != second.created_at
    store.add(first)
    store.add(second)
    assert store.get(Interaction, first.id).created_at == first.created_at


def test_records_come_oldest_first_and_the_last_is_the_newest(store: Store) -> None:
    records = [interaction(str(n)) for n in (3, 1, 2)]
    store.add_all(records)
    assert store.all(Interaction) == list(store.each(Interaction)) == records
    assert store.last(Interaction) == records[-1]
    assert store.last(Feedback) is None


def test_records_are_selected_by_their_indexed_fields(store: Store) -> None:
    flags = [
        Flag(interaction_id=f"interaction_{n}", flagger="signals/1", score=0.5, raised=n % 2 == 0)
        for n in range(5)
    ]
    store.add_all(flags)
    assert store.all(Flag, raised=True) == flags[::2]
    assert store.count(Flag, raised=False, flagger="signals/1") == 2
    assert store.last(Flag, raised=False) == flags[3]
    assert store.all(Flag, flagger="signals/2") == []
    store.add(interaction("1"))
    assert store.count(Interaction, user=None) == 1
    assert store.count(Interaction, user="ann") == 0


def test_many_ids_come_back_in_the_order_asked_for_and_unknown_ones_are_left_out(
    store: Store,
) -> None:
    records = [interaction(str(n)) for n in range(1200)]
    store.add_all(records)
    wanted = [r.id for r in reversed(records)]
    found = store.get_all(Interaction, [*wanted[:700], "interaction_none", *wanted[700:]])
    assert [r.id for r in found] == wanted


def test_an_unknown_id_is_a_record_not_found(store: Store) -> None:
    with pytest.raises(RecordNotFound, match=r"no label .*'label_none'.*'label_'"):
        store.get(Label, "label_none")


def test_a_store_that_was_closed_opens_again_with_everything(
    tmp_path: Path, url: str | None
) -> None:
    first = Store(tmp_path / "s", url=url)
    first.add_all(chain())
    first.close()
    second = Store(tmp_path / "s", url=url)
    assert [second.count(type(r)) for r in chain()] == [1] * len(chain())
    second.close()


def test_texts_that_trouble_databases_come_back_as_they_were(store: Store) -> None:
    for nasty in ("a\x00b", "'; DROP TABLE interaction; --", "🙂\u2028\x85", "x" * 1_000_000):
        record = Interaction(prompt=PROMPT, completion=Completion(text=nasty), source=nasty)
        store.add(record)
        assert store.get(Interaction, record.id) == record
        assert store.all(Interaction, source=nasty) == [record]


def test_half_a_character_is_refused_with_its_whole_batch(store: Store) -> None:
    """A lone surrogate is no text: no UTF-8 says it, and no database could hold it."""
    with pytest.raises(ValueError, match="surrogates not allowed"):
        store.add(interaction("whole"), interaction("half \ud83d"))
    assert store.count(Interaction) == 0
    assert store.add(interaction("whole")) == 1


def test_ten_megabytes_come_back_as_they_were(store: Store) -> None:
    one = interaction("big", size=10_000_000)
    store.add(one)
    assert store.get(Interaction, one.id) == one


def test_a_row_that_is_no_record_of_this_version_says_so(store: Store) -> None:
    record = interaction("1")
    store.add(record)
    with store.engine.begin() as connection:
        connection.execute(text("""UPDATE interaction SET body = '{"id": "interaction_1"}'"""))
    with pytest.raises(DataError, match=f"stored interaction '{record.id}' cannot be read"):
        store.all(Interaction)


# --- transactions ---------------------------------------------------------------------------------


def test_a_batch_that_fails_half_way_writes_nothing(store: Store) -> None:
    asked, said, *_ = chain()
    refuse_inserts(store, "feedback")
    with pytest.raises(StorageError, match="refused by the test"):
        store.add(asked, said)
    assert store.count(Interaction) == store.count(Feedback) == 0
    assert store.add(asked) == 1


def test_a_record_whose_lineage_cannot_be_written_is_not_written(store: Store) -> None:
    asked, said, *_ = chain()
    store.add(asked)
    refuse_inserts(store, "edges")
    with pytest.raises(StorageError):
        store.add(said)
    assert store.count(Feedback) == 0


def test_a_batch_whose_source_breaks_writes_nothing(store: Store) -> None:
    def broken() -> Iterator[Interaction]:
        yield interaction("1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.add_all(broken())
    assert store.count(Interaction) == 0


def test_what_makes_a_batch_may_itself_write(store: Store) -> None:
    def made() -> Iterator[Interaction]:
        for name in "12":
            store.add(interaction(f"beside {name}"))
            yield interaction(name)

    assert store.add_all(made()) == 2
    assert store.count(Interaction) == 4


# --- lineage --------------------------------------------------------------------------------------


def test_lineage_can_be_walked_both_ways(store: Store) -> None:
    asked, said, flag, label, pair, dataset, run, checkpoint = records = chain()
    store.add_all(records)
    line = [asked, label, pair, dataset, run, checkpoint]
    for parent, child in pairwise(line):
        assert store.parents(child.id) == [parent]
        assert child in store.children(parent.id)
    assert {r.id for r in store.children(asked.id)} == {said.id, flag.id, label.id}
    assert store.parents(asked.id) == []
    assert store.children(checkpoint.id) == []


def test_a_parent_that_is_not_in_the_store_is_left_out(store: Store) -> None:
    store.add(Feedback(interaction_id="interaction_gone", rating=1))
    assert store.parents(store.all(Feedback)[0].id) == []


def test_used_names_the_parents_of_a_kind_and_of_no_other(store: Store) -> None:
    asked, _, _, label, pair, *_ = chain()
    assert store.used(PreferencePair) == set()
    store.add_all(chain())
    assert store.used(PreferencePair) == {label.id}
    assert store.used(Dataset) == {pair.id}
    assert store.used(Label) == {asked.id}


def test_an_ids_tag_names_its_kind() -> None:
    for kind in KINDS:
        assert kind_of(f"{kind.tag}_0123") is kind
    assert kind_of("weights_0123") is None


# --- the champion ---------------------------------------------------------------------------------


def test_a_release_moves_the_champion_and_stays_on_record(store: Store) -> None:
    assert store.champion() is None
    first = Release(action="first", weights="weights_0")
    store.release(first)
    second = Release(action="promote", weights="weights_1", previous=first.id)
    store.release(second)
    assert store.champion() == second
    assert store.all(Release) == [first, second]
    assert store.parents(second.id) == [first]


def test_a_release_that_fails_leaves_the_champion_and_no_trace(store: Store) -> None:
    first = Release(action="first", weights="weights_0")
    store.release(first)
    refuse_inserts(store, "aliases")
    with pytest.raises(StorageError):
        store.release(Release(action="promote", weights="weights_1", previous=first.id))
    assert store.champion() == first
    assert store.all(Release) == [first]


def test_a_reader_never_finds_the_champion_missing(store: Store, url: str | None) -> None:
    store.release(Release(action="first", weights="weights_0"))
    reader, seen, done = Store(store.folder, url=url), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            champion = reader.champion()
            seen.append(champion and champion.weights)

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(1, 60):
        store.release(Release(action="promote", weights=f"weights_{n}"))
    done.set()
    thread.join()
    reader.close()
    assert None not in seen
    order = [int(weights.removeprefix("weights_")) for weights in seen if weights]
    assert order == sorted(order)


# --- one turn at a time ---------------------------------------------------------------------------

HOLD = """
import time
with Store(sys.argv[1]).exclusive():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_even_by_kill_9(store: Store) -> None:
    holder = subprocess.Popen(python(HOLD, store.folder), stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(ProjectBusy, match=f"process {holder.pid}"), store.exclusive():
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()  # type: ignore[union-attr]
    with store.exclusive():
        pass


def test_the_lock_is_given_back_when_a_turn_raises(store: Store, url: str | None) -> None:
    with pytest.raises(ZeroDivisionError), store.exclusive():
        raise ZeroDivisionError
    other = Store(store.folder, url=url)
    with store.exclusive(), pytest.raises(ProjectBusy, match=str(os.getpid())), other.exclusive():
        pass
    other.close()


def test_records_are_written_and_read_while_another_process_holds_the_turn(store: Store) -> None:
    with store.exclusive():
        code = "print(Store(sys.argv[1]).add(interaction('other')))"
        done = subprocess.run(python(code, store.folder), capture_output=True, text=True)
        assert done.stdout == "1\n", done.stderr
    assert store.count(Interaction) == 1


# --- migrations -----------------------------------------------------------------------------------


def columns(engine: Engine) -> dict[str, list[tuple]]:
    """Every table's columns, by name: type, may it be empty, is it the key. (SQLite says of an
    integer key that it may be empty, or not, as it was written; it never is.)"""
    look = inspect(engine)
    found = {}
    for table in sorted(set(look.get_table_names()) - {"migrations"}):
        keys = look.get_pk_constraint(table)["constrained_columns"]
        found[table] = sorted(
            (c["name"], str(c["type"]), c["nullable"] or c["name"] in keys, c["name"] in keys)
            for c in look.get_columns(table)
        )
    return found


def uniques(engine: Engine) -> dict[str, list[list[str]]]:
    look = inspect(engine)
    return {
        table: sorted(u["column_names"] for u in look.get_unique_constraints(table))
        for table in look.get_table_names()
        if table != "migrations"
    }


def test_the_migrated_schema_is_the_one_that_tables_describes(
    tmp_path: Path, url: str | None
) -> None:
    migrated, described = two_databases(tmp_path, url)
    migrate(migrated)
    METADATA.create_all(described)
    assert columns(migrated) == columns(described)
    assert uniques(migrated) == uniques(described)
    migrated.dispose()
    described.dispose()


def two_databases(tmp_path: Path, url: str | None) -> tuple[Engine, Engine]:
    """Two that are empty: files, or schemas of one database."""
    if url is None:
        files = [tmp_path / f"{name}.sqlite" for name in ("first", "second")]
        return open_engine(f"sqlite:///{files[0]}"), open_engine(f"sqlite:///{files[1]}")
    first = open_engine(url)
    with first.begin() as connection:
        connection.execute(text("CREATE SCHEMA second"))
    return first, open_engine(f"{url}&options=-csearch_path%3Dsecond")


def test_every_indexed_field_has_an_index(plain_engine: Engine) -> None:
    migrate(plain_engine)
    for kind in KINDS:
        indexed = {
            name for i in inspect(plain_engine).get_indexes(kind.tag) for name in i["column_names"]
        }
        assert set(kind.indexed) <= indexed, kind


def old_store(folder: Path, url: str | None, steps: tuple[Migration, ...]) -> list[Record]:
    """A store as an earlier release left it, with an interaction and a label; returns them."""
    folder.mkdir()
    engine = open_engine(url or f"sqlite:///{folder / 'store.sqlite'}")
    assert migrate(engine, steps) == [step.__name__ for step in steps]
    asked, _, _, label, *_ = chain()
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO interaction (id, created_at, source, request_id, body) "
                "VALUES (:id, :at, 'gateway', '1', :body)"
            ),
            {"id": asked.id, "at": asked.created_at, "body": asked.model_dump_json()},
        )
        connection.execute(
            text(
                "INSERT INTO label (id, created_at, interaction_id, annotator, annotator_kind, "
                "source, body) VALUES (:id, :at, :asked, 'ann', 'human', '', :body)"
            ),
            {
                "id": label.id,
                "at": label.created_at,
                "asked": asked.id,
                "body": label.model_dump_json(),
            },
        )
        if len(steps) > 3:  # from then on the column says that there is no task
            connection.execute(text("UPDATE label SET task_id = ''"))
    engine.dispose()
    return [asked, label]


@pytest.mark.parametrize("num_steps", range(1, len(MIGRATIONS)))
def test_a_store_of_every_earlier_release_opens_with_its_records(
    tmp_path: Path, url: str | None, num_steps: int
) -> None:
    asked, label = old_store(tmp_path / "old", url, MIGRATIONS[:num_steps])
    store = Store(tmp_path / "old", url=url)
    assert store.all(Interaction, request_id="1") == [asked]
    assert store.all(Interaction, tenant=None) == [asked]
    assert store.all(Label, annotator="ann") == store.all(Label, task_id="") == [label]
    assert store.add(asked, label, interaction("new")) == 1
    store.close()


def test_processes_that_open_an_old_store_at_once_migrate_it_once(
    tmp_path: Path, url: str | None
) -> None:
    """The gateway and the loop are upgraded, and started, together."""
    old = old_store(tmp_path / "old", url, MIGRATIONS[:1])
    code = "sys.stdin.readline()\nStore(sys.argv[1]).add(interaction(sys.argv[2]))"
    assert at_once([python(code, tmp_path / "old", name) for name in ("a", "b", "c")]) == []
    store = Store(tmp_path / "old", url=url)
    assert {i.request_id for i in store.each(Interaction)} == {"1", "a", "b", "c"}
    assert store.all(Label, task_id="") == old[1:]
    with store.engine.connect() as connection:
        names = connection.execute(text("SELECT name FROM migrations")).scalars().all()
    assert sorted(names) == [step.__name__ for step in MIGRATIONS]
    store.close()


def at_once(commands: list[list[str]]) -> list[str]:
    """Run processes that wait for a line, all at the same time; what went wrong in them."""
    started = [
        subprocess.Popen(one, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for one in commands
    ]
    for one in started:
        assert one.stdin
        one.stdin.write("go\n")
        one.stdin.flush()
    problems = [one.communicate()[1] for one in started]
    return [problem.splitlines()[-1] for problem in problems if problem]


def test_a_store_that_is_up_to_date_is_not_migrated_again(store: Store) -> None:
    store.add(interaction("1"))
    assert migrate(store.engine) == []
    with store.engine.begin() as connection:
        assert applied(connection) == {step.__name__ for step in MIGRATIONS}
    assert store.count(Interaction) == 1


def test_a_migration_that_fails_leaves_no_trace_and_may_be_tried_again(store: Store) -> None:
    def m999_note(connection) -> None:
        connection.execute(text("CREATE TABLE note (body TEXT)"))
        connection.execute(text("INSERT INTO note VALUES ('half')"))
        if is_broken:
            raise ZeroDivisionError

    is_broken = True
    with pytest.raises(ZeroDivisionError):
        migrate(store.engine, (*MIGRATIONS, m999_note))
    assert "note" not in inspect(store.engine).get_table_names()
    is_broken = False
    assert migrate(store.engine, (*MIGRATIONS, m999_note)) == ["m999_note"]
    with store.engine.connect() as connection:
        assert connection.execute(text("SELECT body FROM note")).scalars().all() == ["half"]


def test_processes_that_open_a_new_store_at_once_all_succeed(
    tmp_path: Path, url: str | None
) -> None:
    """The gateway and the first turn are often started together."""
    rounds = 1 if url else 8  # a database is one store, a folder is eight
    code = (
        "sys.stdin.readline()\n"
        f"for n in range({rounds}): Store(f'{{sys.argv[1]}}/{{n}}').add(interaction(sys.argv[2]))"
    )
    assert at_once([python(code, tmp_path, name) for name in ("a", "b", "c")]) == []
    for n in range(rounds):
        opened = Store(tmp_path / str(n), url=url)
        assert {i.request_id for i in opened.each(Interaction)} == {"a", "b", "c"}
        opened.close()


# --- bad disks ------------------------------------------------------------------------------------


def test_a_full_disk_is_a_storage_error_and_what_was_acknowledged_is_safe(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    code = """
from pathlib import Path
ballast = Path(sys.argv[1]) / "ballast"
ballast.write_bytes(b"x" * 500_000)
store, kept = Store(Path(sys.argv[1]) / "store"), []
try:
    for n in range(10_000):
        one = interaction(str(n), size=4000)
        store.add(one)
        kept.append(one.id)
except StorageError as error:
    print(str(error))
print(sorted(r.id for r in store.each(Interaction)) == sorted(kept), len(kept) > 50)
try:
    store.add(*(interaction(f"batch {n}", size=4000) for n in range(200)))
except StorageError:
    print(store.count(Interaction) == len(kept))
store.close()
store = Store(Path(sys.argv[1]) / "store")
print(store.count(Interaction) == len(kept))
ballast.unlink()
print(store.add(interaction("after")), store.count(Interaction) == len(kept) + 1)
"""
    done = on_a_disk_of("3m", disk, python(code, disk))
    assert done.returncode == 0, done.stderr
    message, *checks = done.stdout.splitlines()
    assert "could not be written; what was written before is safe" in message
    assert "disk is full" in message or "No space left" in message
    assert "Next: free some space" in message
    assert checks == ["True True", "True", "True", "1 True"]


READ_ONLY = """
for attempt in (lambda: Store(sys.argv[1]), lambda: Store(sys.argv[1]).add(interaction("2"))):
    try:
        attempt()
        print("no error")
    except StorageError as error:
        print(error)
"""


def test_a_read_only_disk_is_a_storage_error_for_a_new_store(tmp_path: Path) -> None:
    done = in_own_mounts(
        f"mount --bind '{tmp_path}' '{tmp_path}'; mount -o remount,ro,bind '{tmp_path}'; "
        + shlex.join(python(READ_ONLY, tmp_path / "new"))
    )
    assert done.stdout.count("could not be written") == 2, done.stdout + done.stderr
    assert "Read-only file system" in done.stdout


def test_a_read_only_disk_is_a_storage_error_for_a_store_that_was_there(tmp_path: Path) -> None:
    old = Store(tmp_path / "old")
    old.add(interaction("1"))
    old.close()
    done = in_own_mounts(
        f"mount --bind '{tmp_path}' '{tmp_path}'; mount -o remount,ro,bind '{tmp_path}'; "
        + shlex.join(python(READ_ONLY, tmp_path / "old"))
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("The store in"), done.stdout + done.stderr
    again = Store(tmp_path / "old")
    assert again.count(Interaction) == 1
    again.close()


def test_a_file_in_place_of_the_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StorageError, match="could not be written"):
        Store(tmp_path / "store")
    with pytest.raises(StorageError, match="could not be written"):
        Store(tmp_path / "store" / "below")


def test_a_file_that_is_no_database_is_a_storage_error_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match="not a database"):
        Store(tmp_path)
    assert (tmp_path / "store.sqlite").read_bytes() == b"not a database" * 100


NO_TURN = """
store = Store(Path(sys.argv[1]) / "store")
store.add(interaction("before"))
try:
    (Path(sys.argv[1]) / "ballast").write_bytes(b"x" * 5_000_000)
except OSError:
    pass
try:
    with store.exclusive():
        print("no error")
except StorageError as error:
    print(error)
(Path(sys.argv[1]) / "ballast").unlink()
with store.exclusive():
    print(store.count(Interaction))
"""


def test_a_turn_on_a_full_disk_is_a_storage_error_and_the_next_one_is_free(tmp_path: Path) -> None:
    code = "from pathlib import Path" + NO_TURN
    done = on_a_disk_of("1m", tmp_path, python(code, tmp_path))
    assert done.returncode == 0, done.stderr
    message, kept = done.stdout.splitlines()
    assert "No space left" in message and "Next: free some space" in message
    assert kept == "1"


def test_a_turn_in_a_folder_that_became_a_file_is_a_storage_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.close()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StorageError, match="could not be written"), store.exclusive():
        pass
    assert (tmp_path / "store").read_text() == "not a folder"


def test_a_turn_whose_lock_cannot_be_opened_is_a_storage_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.folder / "turn.lock").mkdir()
    with pytest.raises(StorageError, match=r"could not be written.*turn\.lock"), store.exclusive():
        pass


# --- damaged files --------------------------------------------------------------------------------

PAGE = 4096


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The file of a store with records over many pages, closed."""
    store = Store(tmp_path / "whole")
    records = [interaction(str(n), size=900) for n in range(200)]
    flags = [Flag(interaction_id=r.id, flagger="f", score=0.5, raised=True) for r in records]
    store.add_all([*records, *flags])
    store.release(Release(action="first", weights="weights_0"))
    store.close()
    assert [f.name for f in store.folder.iterdir()] == ["store.sqlite"]
    return store.folder / "store.sqlite"


@pytest.mark.parametrize("junk", [b"\0", b"\xff", b"junk"], ids=["zeros", "ones", "text"])
def test_reading_over_damaged_pages_is_a_storage_error_that_names_the_folder(
    whole: Path, junk: bytes
) -> None:
    content = bytearray(whole.read_bytes())
    middle = len(content) // PAGE // 2 * PAGE
    size = 20 * PAGE
    content[middle : middle + size] = (junk * size)[:size]
    whole.write_bytes(content)
    store = Store(whole.parent)
    with pytest.raises(StorageError, match="could not be read") as caught:
        store.all(Interaction)
    assert str(whole.parent) in str(caught.value)
    assert "restore the folder from a backup" in caught.value.next
    store.close()


def test_a_damaged_schema_is_a_storage_error_even_where_its_text_is_no_text(whole: Path) -> None:
    """SQLite quotes the damage in its complaint, and the complaint is then no UTF-8 either."""
    content = whole.read_bytes()
    assert content.count(b"CREATE TABLE flag") == 1
    whole.write_bytes(content.replace(b"CREATE TABLE flag", b"CREATE T\xb1BLE flag"))
    with pytest.raises(StorageError):
        Store(whole.parent)


def test_a_file_cut_short_is_a_storage_error(whole: Path) -> None:
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError):
        Store(whole.parent).all(Interaction)


def test_whatever_bytes_are_damaged_no_error_comes_out_raw(whole: Path) -> None:
    content, problems = whole.read_bytes(), 0
    for seed in range(60):
        damaged, chance = bytearray(content), random.Random(seed)
        for _ in range(200):
            damaged[chance.randrange(PAGE, len(damaged))] = chance.randrange(256)
        whole.write_bytes(damaged)
        try:
            store = Store(whole.parent)
        except StorageError:
            problems += 1
            continue
        for ask in (
            lambda s: s.all(Interaction),
            lambda s: s.all(Flag, raised=True),
            lambda s: s.last(Interaction),
            lambda s: s.champion(),
            lambda s: s.used(Flag),
        ):
            try:
                ask(store)
            except (StorageError, DataError):
                problems += 1
        store.close()
        for beside in whole.parent.glob("store.sqlite-*"):
            beside.unlink()
    assert problems > 60


# --- several writers, and kill -9 -----------------------------------------------------------------


def test_processes_that_write_at_once_lose_nothing(store: Store) -> None:
    code = """
store = Store(sys.argv[1])
for n in range(60):
    store.add(interaction(f"{sys.argv[2]} {n}"), interaction(f"both {n}"))
store.add_all(interaction(f"{sys.argv[2]} batch {n}") for n in range(300))
"""
    writers = [
        subprocess.Popen(python(code, store.folder, name), stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for n in range(60):
        store.add(interaction(f"c {n}"))
    problems = [writer.communicate()[1] for writer in writers]
    assert problems == ["", ""]
    names = [i.request_id for i in store.each(Interaction)]
    wanted = {f"{w} {n}" for w in ("a", "b", "c", "both") for n in range(60)}
    assert set(names) == wanted | {f"{w} batch {n}" for w in "ab" for n in range(300)}
    assert len(names) == len(set(names))


@pytest.mark.parametrize("acknowledged", [1, 40, 160])
def test_kill_9_in_the_middle_of_many_adds_loses_nothing_acknowledged(
    tmp_path: Path, url: str | None, acknowledged: int
) -> None:
    code = """
store = Store(sys.argv[1])
for n in range(100_000):
    store.add_all(interaction(f"{n}.{part}") for part in range(5))
    print(n, flush=True)
"""
    writer = subprocess.Popen(python(code, tmp_path), stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    for _ in range(acknowledged):
        last = writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    told = [last, *writer.stdout.read().splitlines(keepends=True)]  # said before it died
    writer.wait()
    writer.stdout.close()
    num_acknowledged = int([line for line in told if line.endswith("\n")][-1]) + 1
    store = Store(tmp_path, url=url)
    batches: dict[str, int] = {}
    for one in store.each(Interaction):
        batch = one.request_id.partition(".")[0]
        batches[batch] = batches.get(batch, 0) + 1
    assert {str(n) for n in range(num_acknowledged)} <= set(batches)
    assert set(batches.values()) == {5}, "a batch is whole or absent"
    assert store.add(interaction("after")) == 1
    store.close()
