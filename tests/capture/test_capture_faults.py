"""Kills, locks and full disks: what a crash takes is known exactly, what passes costs nothing."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mounts import on_a_disk_of
from trueup.capture import CaptureConfig, Recorder
from trueup.capture.importer import import_file
from trueup.capture.ledger import Ledger, crashes
from trueup.errors import StorageError
from trueup.privacy import PrivacyConfig, Scrubber
from trueup.records import Completion, Interaction, Message
from trueup.store import Store

SEND = """
import os, sys, time
from trueup.capture import CaptureConfig, Recorder
from trueup.records import Completion, Interaction, Message
from trueup.store import Store

recorder = Recorder(Store(sys.argv[1]), CaptureConfig(queue_size=100_000, commit_ms=20))
prompt = (Message(role="user", content="A question?"),)
for i in range(1_000_000):
    one = Interaction(prompt=prompt, completion=Completion(text="word " * 50), source="gateway",
                      request_id=f"{os.getpid()}-{i}")
    recorder.record(one)
    os.write(1, b".")
    time.sleep(0.0005)
"""

ON_A_FULL_DISK = """
import json, os, sys, threading, time
from pathlib import Path
from trueup.capture import CaptureConfig, Recorder
from trueup.records import Completion, Interaction, Message
from trueup.store import Store

folder = Path(sys.argv[1])
store = Store(folder / "store")
recorder = Recorder(store, CaptureConfig())
filler = folder / "filler"
with open(filler, "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
prompt = (Message(role="user", content="A question?"),)
for i in range(200):
    recorder.record(Interaction(prompt=prompt, completion=Completion(text="word " * 200),
                                source="gateway", request_id=str(i)))
deadline = time.monotonic() + 30
while not recorder.counters["retries"] and time.monotonic() < deadline:
    time.sleep(0.01)
full = recorder.counters
filler.unlink()
assert recorder.flush(60)
print(json.dumps([full, recorder.counters, store.count(Interaction)]))
recorder.close()
"""


def interaction(name: str) -> Interaction:
    prompt = (Message(role="user", content="A question?"),)
    return Interaction(
        prompt=prompt, completion=Completion(text="Yes."), source="gateway", request_id=name
    )


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.close()


def test_after_a_kill_the_next_start_knows_how_many_were_lost(store) -> None:
    """Killed at many moments, in commits and between them: the account is right each time."""
    total = 0
    for round_ in range(5):
        before = store.count(Interaction)
        child = subprocess.Popen(
            [sys.executable, "-c", SEND, str(store.folder)], stdout=subprocess.PIPE
        )
        assert child.stdout and child.stdout.read(1) == b"."
        killer = threading.Timer(0.3 + 0.037 * round_, child.send_signal, [signal.SIGKILL])
        killer.start()
        num_sent = 1 + len(child.stdout.read())
        child.wait()
        num_stored = store.count(Interaction) - before
        lost = sum(one.lost for one in crashes(store)) - total
        assert lost - 1 <= num_sent - num_stored <= lost, round_  # killed before the dot
        total += lost
    assert total and store.count(Interaction)
    recorder = Recorder(store, CaptureConfig())
    assert recorder.counters["lost_in_crashes"] == total
    recorder.close()
    assert all(one.process and one.started_at for one in crashes(store))


def test_a_commit_that_arrived_before_the_kill_is_not_called_lost(store, tmp_path) -> None:
    """Killed after the commit and before the account said so, and before the commit."""
    for arrives in (True, False):
        ledger = Ledger(store.folder)
        batch = [interaction(f"{arrives}-{i}") for i in range(10)]
        ledger.accept(14)
        ledger.begin([one.id for one in batch])
        if arrives:
            store.add_all(batch)
        ledger._words.release()  # as the kernel does it
        ledger._page.close()
        ledger._file.close()
        found = crashes(store)[-1]
        assert (found.accepted, found.lost) == (14, 4 if arrives else 14)


@pytest.mark.parametrize("number", [2, 600])
def test_a_commit_that_began_with_what_was_there_is_not_called_arrived(store, number) -> None:
    """The first of it was in the store before, and one was erased; the others never came."""
    from trueup.privacy import erase_user

    batch = [interaction(f"{number}-{i}") for i in range(number)]
    gone = Interaction(**{**dict(interaction("gone")), "id": "", "user": "ann"})
    store.add_all([batch[0], gone])
    erase_user(store, "ann")
    for arrives in (False, True):
        ledger = Ledger(store.folder)
        ledger.accept(number + 1)
        ledger.begin([batch[0].id, gone.id, *(one.id for one in batch[1:])])
        if arrives:
            store.add_all([*batch, gone])
        ledger._words.release()  # as the kernel does it
        ledger._page.close()
        ledger._file.close()
        found = crashes(store)
        assert sum(one.lost for one in found) == number + 1  # of the first round


def test_the_account_of_a_living_process_is_left_alone(store) -> None:
    recorder = Recorder(store, CaptureConfig(commit_ms=60_000))
    recorder.record(interaction("r"))
    assert crashes(store) == []
    other = Recorder(store, CaptureConfig())
    other.close()
    assert crashes(store) == [] and recorder.counters["waiting"] == 1
    recorder.close()
    assert store.count(Interaction) == 1 and crashes(store) == []


def test_a_damaged_account_stops_nobody(store) -> None:
    folder = store.folder / "capture"
    folder.mkdir()
    (folder / "1-ab.counts").write_bytes(b"")
    (folder / "2-ab.counts").write_bytes(os.urandom(4096))
    (folder / "3-ab.counts").write_bytes(b"short")
    (folder / "crashes.jsonl").write_text('\n{"process": "9-cd", "started_at": "then", "acc')
    assert crashes(store) == [] and list(folder.glob("*.counts")) == []
    (folder / "crashes.jsonl").unlink()
    (folder / "crashes.jsonl").mkdir()
    recorder = Recorder(store, CaptureConfig())
    recorder.record(interaction("r"))
    assert recorder.flush(60) and store.count(Interaction) == 1
    recorder.close()


def test_a_lock_held_by_another_process_delays_and_loses_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trueup.store.engine.LOCK_TIMEOUT_S", 0.05)
    store = Store(tmp_path)
    recorder = Recorder(store, CaptureConfig(commit_ms=1))
    other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for i in range(300):
        started = time.perf_counter()
        recorder.record(interaction(f"r{i}"))
        assert time.perf_counter() - started < 1
    deadline = time.monotonic() + 30
    while recorder.counters["retries"] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert recorder.counters["captured"] == 0 and recorder.counters["waiting"] == 300
    other.execute("ROLLBACK")
    other.close()
    assert recorder.flush(60)
    counts = recorder.counters
    assert (counts["captured"], counts["failed"], counts["dropped"]) == (300, 0, 0)
    recorder.close()
    store.close()


def test_a_lock_that_stays_is_given_up_and_counted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trueup.store.engine.LOCK_TIMEOUT_S", 0.05)
    store = Store(tmp_path)
    recorder = Recorder(store, CaptureConfig(commit_ms=1, retry_s=0.2))
    other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    recorder.record(interaction("lost"))
    assert recorder.flush(60)
    assert recorder.reasons["failed", "storage"] == 1
    other.execute("ROLLBACK")
    recorder.record(interaction("kept"))
    assert recorder.flush(60) and recorder.counters["captured"] == 1
    other.execute("BEGIN IMMEDIATE")
    patient = Recorder(store, CaptureConfig(commit_ms=1, retry_s=600))
    patient.record(interaction("last"))
    started = time.monotonic()
    patient.close(timeout_s=1)  # a shutdown does not wait for ten minutes
    assert time.monotonic() - started < 20
    other.close()
    recorder.close()
    store.close()


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A store that somebody else is writing to, until `ROLLBACK`."""
    monkeypatch.setattr("trueup.store.engine.LOCK_TIMEOUT_S", 0.05)
    store = Store(tmp_path)
    database = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    yield store, database
    database.close()
    store.close()


def asked_by(user: str) -> Interaction:
    one = interaction(f"r-{user}").model_copy(update={"user": user, "tenant": "new"})
    return one.model_copy(update={"id": one.expected_id()})


def test_a_lock_delays_the_key_of_a_new_tenants_pseudonyms_and_loses_nothing(locked) -> None:
    store, database = locked
    recorder = Recorder(store, CaptureConfig(), scrub=Scrubber(PrivacyConfig(), store))
    for user in ("ann", "bob"):
        recorder.record(asked_by(user))
    with pytest.raises(StorageError, match="locked"):  # who waits is told to send it again
        recorder.keep([[asked_by("eve")]])
    database.execute("ROLLBACK")
    assert recorder.flush()
    counts = recorder.counters
    assert (counts["sent"], counts["captured"], counts["failed"]) == (2, 2, 0)
    assert store.count(Interaction) == 2
    recorder.close()


def test_a_lock_that_stays_costs_records_without_a_key_and_is_counted(locked) -> None:
    store, _ = locked
    config = CaptureConfig(retry_s=0)
    recorder = Recorder(store, config, scrub=Scrubber(PrivacyConfig(), store))
    for user in ("ann", "bob"):
        recorder.record(asked_by(user))
    assert recorder.flush()
    assert recorder.reasons["failed", "storage"] == recorder.counters["sent"] == 2
    assert not recorder.counters["waiting"]
    recorder.close()
    assert crashes(store) == []


def test_an_import_into_a_locked_store_stops_and_skips_no_row(locked, tmp_path) -> None:
    store, database = locked
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a?", "completion": "b.", "user": "ann", "tenant": "new"}\n')
    scrubber = Scrubber(PrivacyConfig(), store)

    def scrub(record: Interaction) -> Interaction:
        try:
            return scrubber(record)
        finally:
            if database.in_transaction:
                database.execute("ROLLBACK")

    with pytest.raises(StorageError, match="locked"):
        import_file(store, file, scrub=scrub)
    assert import_file(store, file, scrub=scrub).new == 1


def test_a_full_disk_that_gets_room_again_costs_nothing(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    done = on_a_disk_of("6m", place, [sys.executable, "-c", ON_A_FULL_DISK, str(place)])
    assert done.returncode == 0, done.stderr
    full, after, num_stored = json.loads(done.stdout)
    assert full["retries"] and full["captured"] < 200 and full["failed"] == 0
    assert after["captured"] == num_stored == 200 and after["failed"] == after["dropped"] == 0


def test_a_postgres_that_fails_over_costs_nothing(tmp_path, postgres_url) -> None:
    """Its stand-in is read-only until it is made the first: what came in meanwhile is kept."""
    import psycopg

    def failed_over(is_read_only: bool) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            name = connection.info.dbname
            state = "on" if is_read_only else "off"
            connection.execute(
                f'ALTER DATABASE "{name}" SET default_transaction_read_only = {state}'
            )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    store = Store(tmp_path, url=postgres_url)
    recorder = Recorder(store, CaptureConfig(commit_ms=1))
    recorder.record(interaction("before"))
    assert recorder.flush(60)
    failed_over(True)
    for i in range(20):
        recorder.record(interaction(f"r{i}"))
    deadline = time.monotonic() + 30
    while recorder.counters["retries"] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert recorder.counters["waiting"] == 20
    failed_over(False)
    assert recorder.flush(60)
    counts = recorder.counters
    assert (counts["captured"], counts["failed"], store.count(Interaction)) == (21, 0, 21)
    recorder.close()
    store.close()
