"""The recorder: nothing lost that need not be, nothing raised, everything counted."""

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from trueup.capture import CaptureConfig, Recorder
from trueup.errors import StorageError
from trueup.records import Completion, Feedback, Interaction, Message
from trueup.store import Store


class SlowStore(Store):
    """A real store whose disk can be stopped, and broken."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.may_write = threading.Event()
        self.may_write.set()
        self.is_full = False
        self.commits: list[int] = []

    def add_all(self, records) -> int:
        records = list(records)
        self.may_write.wait(60)
        if self.is_full:
            raise StorageError("No space", got="full", expected="room", next="free some")
        self.commits.append(len(records))
        return super().add_all(records)


@pytest.fixture
def store(tmp_path) -> Iterator[SlowStore]:
    store = SlowStore(tmp_path)
    yield store
    store.may_write.set()
    store.close()


def interaction(name: str, text: str = "An answer.") -> Interaction:
    prompt = (Message(role="user", content="A question?"),)
    return Interaction(
        prompt=prompt, completion=Completion(text=text), source="gateway", request_id=name
    )


def test_what_is_recorded_is_in_the_store_after_a_flush(store) -> None:
    recorder = Recorder(store, CaptureConfig())
    sent = [interaction(f"r{i}") for i in range(500)]
    for one in sent:
        recorder.record(one)
    assert recorder.flush(60)
    assert [one.id for one in store.all(Interaction)] == [one.id for one in sent]
    assert recorder.counters["captured"] == 500
    recorder.close()


def test_waiting_records_share_a_commit(store) -> None:
    recorder = Recorder(store, CaptureConfig())
    store.may_write.clear()
    for i in range(400):
        recorder.record(interaction(f"r{i}"))
    store.may_write.set()
    assert recorder.flush(60) and sum(store.commits) == 400 and len(store.commits) <= 4
    recorder.close()


def test_a_full_queue_drops_the_newest_counts_and_never_waits(store, caplog) -> None:
    recorder = Recorder(store, CaptureConfig(queue_size=10))
    store.may_write.clear()
    recorder.record(interaction("in hand"))
    while recorder._waiting:  # the writer has it, and hangs
        time.sleep(0.001)
    started = time.perf_counter()
    for i in range(1000):
        recorder.record(interaction(f"r{i}"))
    assert time.perf_counter() - started < 2
    assert recorder.counters["dropped"] == 990
    assert not recorder.flush(0.05)
    store.may_write.set()
    assert recorder.flush(60)
    kept = [one.request_id for one in store.all(Interaction)]
    assert kept == ["in hand", *(f"r{i}" for i in range(10))]
    assert [r.levelno for r in caplog.records] == [logging.WARNING]  # one, not 990
    recorder.close()


def test_a_full_disk_is_counted_warned_of_once_and_survived(store, caplog) -> None:
    recorder = Recorder(store, CaptureConfig(retry_s=0))
    store.is_full = True
    for i in range(3):
        recorder.record(interaction(f"lost{i}"))
        assert recorder.flush(60)
    store.is_full = False
    recorder.record(interaction("kept"))
    assert recorder.flush(60)
    assert recorder.counters["failed"] == 3 and recorder.counters["captured"] == 1
    assert len(caplog.records) == 1 and "No space" in caplog.text
    recorder.close()


def test_a_record_that_cannot_be_written_fails_alone(store) -> None:
    recorder = Recorder(store, CaptureConfig())
    store.may_write.clear()
    recorder.record(interaction("first"))
    for name, text in (("a", "fine"), ("b", "half a character: \ud800"), ("c", "fine")):
        recorder.record(interaction(name, text))
    store.may_write.set()
    assert recorder.flush(60)
    assert [one.request_id for one in store.all(Interaction)] == ["first", "a", "c"]
    assert recorder.counters["failed"] == 1 and recorder.counters["captured"] == 3
    recorder.close()


def test_records_that_cannot_be_written_do_not_cost_the_others_their_shared_commit(store) -> None:
    recorder = Recorder(store, CaptureConfig())
    store.may_write.clear()
    for i in range(250):
        recorder.record(interaction(f"r{i}", "half: \ud800" if i % 50 == 7 else "fine"))
    store.may_write.set()
    assert recorder.flush(60)
    assert recorder.counters["failed"] == 5 and recorder.counters["captured"] == 245
    assert store.count(Interaction) == 245 and len(store.commits) <= 8
    recorder.close()


@pytest.mark.parametrize(
    ("complaint", "may_pass"),
    [
        ("database is locked", True),
        ("deadlock detected\nDETAIL:  Process 7 waits for ShareLock", True),
        ("could not serialize access due to concurrent update", True),
        ("cannot execute INSERT in a read-only transaction", True),
        ("FATAL:  the database system is in recovery mode", True),
        ("FATAL:  the database system is starting up", True),
        ("FATAL:  the database system is shutting down", True),
        ("FATAL:  the database system is not yet accepting connections", True),
        ("FATAL:  sorry, too many clients already", True),
        ("attempt to write a readonly database", False),
        ("no such table: interaction", False),
        ("database disk image is malformed", False),
    ],
)
def test_what_passes_is_tried_again(store, complaint, may_pass) -> None:
    """As SQLite and Postgres say it."""
    refused = []
    write = Store.add_all

    def add_all(records) -> int:
        if not refused:
            refused.append(1)
            raise StorageError("No", got=complaint, expected="", next="")
        return write(store, records)

    store.add_all = add_all
    recorder = Recorder(store, CaptureConfig())
    recorder.record(interaction("r"))
    assert recorder.flush(60)
    counts = recorder.counters
    assert (counts["captured"], counts["retries"]) == ((1, 1) if may_pass else (0, 0))
    recorder.close()


def test_a_commit_that_arrived_although_it_seemed_to_fail_is_captured(store) -> None:
    write = store.add_all
    num_tries = []

    def add_all(records) -> int:
        new = write(records)
        num_tries.append(new)
        if len(num_tries) == 1:  # the server was gone before it could say so
            raise StorageError("No", got="connection lost", expected="", next="")
        return new

    store.add_all = add_all
    recorder = Recorder(store, CaptureConfig(commit_ms=200))
    recorder.record(interaction("a"), interaction("b"))
    assert recorder.flush(60)
    assert num_tries == [2, 0]
    assert recorder.counters["captured"] == 2 and recorder.counters["skipped_known"] == 0
    recorder.close()


def test_feedback_on_what_was_erased_meanwhile_is_not_called_kept(store) -> None:
    from trueup.errors import RecordNotFound
    from trueup.privacy import erase_user

    recorder = Recorder(store, CaptureConfig())
    one = interaction("r").model_copy(update={"user": "ann", "id": ""})
    one = Interaction.model_validate(one.model_dump())
    store.add(one)
    said = Feedback(interaction_id=one.id, rating=1)
    assert recorder.feedback(said) == recorder.feedback(said)  # twice is once
    erase_user(store, "ann")
    with pytest.raises(RecordNotFound, match="was erased"):
        recorder.feedback(Feedback(interaction_id=one.id, rating=-1))
    recorder.close()


def test_a_record_that_cannot_be_made_raises_nothing(store) -> None:
    recorder = Recorder(store, CaptureConfig())
    recorder.record_from(lambda: [interaction(None)])
    recorder.record_from(lambda: [])
    assert recorder.counters["failed"] == 1 and recorder.counters["skipped_not_text"] == 1
    recorder.close()


def test_the_rate_keeps_its_share_and_always_the_same(store, tmp_path) -> None:
    recorder = Recorder(store, CaptureConfig(rate=0.5, queue_size=5000))
    names = [f"chatcmpl-{i}" for i in range(2000)]
    for name in names:
        recorder.record(interaction(name))
    assert recorder.flush(60)
    kept = {one.request_id for one in store.all(Interaction)}
    assert 900 < len(kept) < 1100
    assert recorder.counters["skipped_by_rate"] == 2000 - len(kept)

    again = SlowStore(tmp_path / "again")
    other = Recorder(again, CaptureConfig(rate=0.5, queue_size=5000))
    less = Recorder(again, CaptureConfig(rate=0.0))
    for name in names:
        other.record(interaction(name, "Another answer."))
        less.record(interaction(name, "A third."))
    assert other.flush(60) and less.flush(60)
    assert {one.request_id for one in again.all(Interaction)} == kept
    for one in (recorder, other, less):
        one.close()
    again.close()


def test_choices_of_one_request_stand_or_fall_together(store) -> None:
    recorder = Recorder(store, CaptureConfig(rate=0.5, queue_size=5000))
    for i in range(200):
        recorder.record(interaction(f"r{i}"), interaction(f"r{i}-1", "Another."))
    assert recorder.flush(60)
    kept = [one.request_id for one in store.all(Interaction)]
    assert 0 < len(kept) < 400
    assert all(f"{name}-1" in kept for name in kept if not name.endswith("-1"))
    assert len(kept) % 2 == 0
    recorder.close()


def test_feedback_is_on_disk_when_the_call_returns_and_says_when_not(store) -> None:
    recorder = Recorder(store, CaptureConfig())
    feedback = Feedback(interaction_id="interaction_0", rating=1)
    recorder.feedback(feedback)
    assert Store(store.folder).get(Feedback, feedback.id).rating == 1
    store.is_full = True
    with pytest.raises(StorageError):
        recorder.feedback(Feedback(interaction_id="interaction_0", rating=-1))
    recorder.close()


def test_close_drains_and_what_comes_later_is_counted(store) -> None:
    recorder = Recorder(store, CaptureConfig())
    store.may_write.clear()
    for i in range(300):
        recorder.record(interaction(f"r{i}"))
    threading.Timer(0.05, store.may_write.set).start()
    recorder.close()
    recorder.close()
    assert store.count(Interaction) == 300
    recorder.record(interaction("late"))
    assert recorder.counters["dropped"] == 1 and store.count(Interaction) == 300
    assert recorder.flush(1)


def test_a_read_only_store_is_a_failure_not_a_crash(tmp_path) -> None:
    Store(tmp_path).close()
    url = f"sqlite:///file:{tmp_path / 'store.sqlite'}?mode=ro&uri=true"
    store = Store(tmp_path)
    recorder = Recorder(store, CaptureConfig())
    store._engine.dispose()
    from sqlalchemy import create_engine

    store._engine = create_engine(url)  # as on a volume that was remounted
    recorder.record(interaction("r"))
    assert recorder.flush(60) and recorder.counters["failed"] == 1
    recorder.close()
    store.close()
