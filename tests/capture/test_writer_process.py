"""The writer beside: the same account as the thread's, through kills of either of the two."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trueup.capture import CaptureConfig, Recorder
from trueup.capture.beside import WriterProcess, WriterSetup
from trueup.capture.ledger import crashes
from trueup.gateway.transcript import Heard
from trueup.privacy import PrivacyConfig, erase_user
from trueup.records import Feedback, Interaction
from trueup.store import Store

SEND = """
import os, sys, time
from pathlib import Path
from trueup.capture import CaptureConfig, Recorder
from trueup.capture.beside import WriterProcess, WriterSetup
from trueup.gateway.transcript import Heard
from trueup.privacy import PrivacyConfig
from trueup.store import Store

store = Store(sys.argv[1])
config = CaptureConfig(commit_ms=100)
beside = WriterProcess(WriterSetup(store.folder, None, config, PrivacyConfig()))
print(beside.pid, flush=True)
recorder = Recorder(store, config, beside=beside)
recorder.flush()
body = b'{"model": "m", "messages": [{"role": "user", "content": "A question?"}]}'
for i in range(1_000_000):
    text = f'{{"id": "{i}", "choices": [{{"message": {{"content": "An answer."}}}}]}}'
    heard = Heard(body, text.encode(), False, "", "", 0.1, str(i), None)
    recorder.record_later(heard, size=200)
    os.write(1, b"." if i else b"|.")
    time.sleep(0.001)
"""


def heard(number: int, *, user: str = "u", text: str = "An answer.") -> Heard:
    body = f'{{"user": "{user}", "messages": [{{"role": "user", "content": "Why {number}?"}}]}}'
    said = f'{{"id": "r{number}", "choices": [{{"message": {{"content": "{text}"}}}}]}}'
    return Heard(body.encode(), said.encode(), False, "", "", 0.1, f"r{number}", "t")


def balance(recorder: Recorder) -> None:
    told = recorder.counters
    kept = sum(told[name] for name in ("captured", "dropped", "failed", "waiting"))
    assert told["sent"] == kept + sum(n for name, n in told.items() if name.startswith("skipped"))
    for kind in ("captured", "dropped", "failed"):
        assert told[kind] == sum(n for (of, _), n in recorder.reasons.items() if of == kind)


@pytest.fixture
def start(tmp_path: Path):
    made = []

    def start(**settings) -> tuple[Recorder, WriterProcess, Store]:
        store, config = Store(tmp_path), CaptureConfig(**settings)
        beside = WriterProcess(WriterSetup(store.folder, None, config, PrivacyConfig()))
        made.append((Recorder(store, config, beside=beside), beside, store))
        return made[-1]

    yield start
    for recorder, _, store in made:
        recorder.close()
        store.close()


def test_what_is_recorded_is_written_by_the_other_process_scrubbed(start) -> None:
    recorder, beside, store = start()
    for i in range(50):
        recorder.record_later(heard(i, text="Write to ann@example.org"), size=100)
    assert recorder.flush()
    found = list(store.all(Interaction))
    assert [one.request_id for one in found] == [f"r{i}" for i in range(50)]
    assert {one.completion.text for one in found} == {"Write to <EMAIL_1>"}
    assert found[0].user and found[0].user != "u", "a pseudonym"
    told = recorder.counters
    assert told["sent"] == told["captured"] == 50 and not told["waiting"]
    balance(recorder)
    recorder.close()
    assert recorder.counters == told
    with pytest.raises(ProcessLookupError):
        os.kill(beside.pid, 0)
    assert not list(store.folder.glob("capture/*.counts")) and not crashes(store)


def test_it_writes_to_postgres_likewise(tmp_path: Path, postgres_url: str) -> None:
    store, config = Store(tmp_path, url=postgres_url), CaptureConfig()
    setup = WriterSetup(store.folder, store.engine.url, config, PrivacyConfig())
    recorder = Recorder(store, config, beside=WriterProcess(setup))
    recorder.record_later(heard(1, text="Write to ann@example.org"), size=100)
    assert recorder.flush()
    [found] = store.all(Interaction)
    assert found.completion.text == "Write to <EMAIL_1>"
    recorder.close()
    store.close()


def test_the_counters_add_up_at_any_moment(start) -> None:
    recorder, _, _ = start(rate=0.5, by="request", commit_ms=20)
    sent = 0
    for i in range(600):
        recorder.record_later(heard(i), size=100)
        if i % 20 == 0:
            balance(recorder)
            assert recorder.counters["sent"] == i + 1 >= sent
            sent = i + 1
    assert recorder.flush()
    told = recorder.counters
    assert told["captured"] + told["skipped_by_rate"] == 600 and told["skipped_by_rate"] > 200


def test_a_complaint_recalls_what_the_rate_left_out(start) -> None:
    recorder, _, store = start(rate=0.0)
    recorder.record_later(heard(1), size=100)
    assert recorder.flush() and not list(store.all(Interaction))
    assert not recorder.recall("r1", "another tenant")
    [found] = recorder.recall("r1", "t")
    recorder.feedback(Feedback(interaction_id=found.id, rating=-1))
    assert [one.id for one in store.all(Interaction)] == [found.id]
    told = recorder.counters
    assert told["recalled"] == told["captured"] == 1
    balance(recorder)


def test_a_complaint_to_either_process_brings_back_nobody_who_was_erased(start) -> None:
    recorder, _, store = start(rate=0.0)
    recorder.record_later(heard(1, user="ann"), size=100)
    recorder.record(*heard(2, user="ann")())
    assert recorder.flush()
    erase_user(store, "ann")
    assert not recorder.recall("r1", "t") and not recorder.recall("r2", "t")
    assert not list(store.all(Interaction)) and recorder.counters["skipped_erased"] == 2
    balance(recorder)


def test_what_cannot_travel_is_written_here(start) -> None:
    recorder, beside, store = start()
    made = heard(1)()
    recorder.record_later(lambda: made, size=100)
    recorder.record_later(heard(2), size=100)
    assert recorder.flush()
    recorder.record_later(heard(3), size=100)
    assert recorder.flush()
    assert {one.request_id for one in store.all(Interaction)} == {"r1", "r2", "r3"}
    os.kill(beside.pid, 0)
    balance(recorder)


def test_a_writer_that_is_killed_is_replaced_by_the_gateway_itself(start, caplog) -> None:
    recorder, beside, store = start(commit_ms=200)
    assert recorder.flush()
    for i in range(100):
        recorder.record_later(heard(i), size=100)
        time.sleep(0.002)
    os.kill(beside.pid, signal.SIGKILL)
    for i in range(100, 150):
        recorder.record_later(heard(i), size=100)
    assert recorder.flush()
    stored = {one.request_id for one in store.all(Interaction)}
    assert {f"r{i}" for i in range(100, 150)} <= stored, "those behind it lose nothing"
    told = recorder.counters
    assert told["captured"] == len(stored)
    assert told["lost_in_crashes"] == 150 - len(stored)
    assert not told["waiting"]
    balance(recorder)
    recorder.close()
    assert "The writer of captures died" in caplog.text
    assert "closed before" not in caplog.text, "nothing was left to do"


def test_a_writer_that_hangs_does_not_hold_up_the_end_nor_what_it_never_took(start) -> None:
    recorder, beside, store = start()
    recorder.record_later(heard(0), size=100)
    assert recorder.flush()
    os.kill(beside.pid, signal.SIGSTOP)
    for i in range(1, 5):
        recorder.record_later(heard(i, text="long " * 100_000), size=100)  # more than a line holds
    began = time.monotonic()
    recorder.close(1.0)
    assert time.monotonic() - began < 20
    assert store.count(Interaction) == 5
    assert recorder.counters["captured"] == 5
    balance(recorder)


def test_an_earlier_loss_under_the_same_process_id_is_not_counted_again(start) -> None:
    recorder, beside, store = start()
    earlier = [f"{beside.pid}-0", "2026-01-01T00:00:00.000+00:00", 9, 7]
    line = dict(zip(("process", "started_at", "accepted", "lost"), earlier, strict=True))
    (store.folder / "capture" / "crashes.jsonl").write_text(json.dumps(line))
    recorder.record_later(heard(1), size=100)
    assert recorder.flush()
    os.kill(beside.pid, signal.SIGKILL)
    recorder.record_later(heard(2), size=100)
    assert recorder.flush()
    assert recorder.counters["lost_in_crashes"] == 0 and recorder.counters["captured"] == 2


def test_what_a_writer_takes_with_it_is_lost_also_where_the_store_is_locked(start) -> None:
    recorder, beside, store = start()
    assert recorder.flush()
    database = sqlite3.connect(store.folder / "store.sqlite", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    for i in range(5):
        recorder.record_later(heard(i), size=100)
    while recorder.counters["sent"] < 5 or recorder._handed < 5:
        time.sleep(0.01)
    os.kill(beside.pid, signal.SIGKILL)
    time.sleep(0.1)
    told = recorder.counters
    database.execute("ROLLBACK")
    database.close()
    assert (told["captured"], told["lost_in_crashes"]) == (0, 5)
    balance(recorder)


def test_the_writer_imports_nothing_from_the_folder_it_was_started_in(
    tmp_path: Path, monkeypatch, start
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "logging.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path / "elsewhere")
    recorder, beside, store = start()
    recorder.record_later(heard(1), size=100)
    assert recorder.flush() and store.count(Interaction) == 1
    os.kill(beside.pid, 0)
    assert os.getpgid(beside.pid) != os.getpgid(0), "a terminal's Ctrl-C is not meant for it"
    assert os.getsid(beside.pid) == os.getsid(0), "nor a share of its own of the processor"


def test_a_writer_that_never_starts_costs_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("trueup.capture.beside.COMMAND", "raise SystemExit(1)")
    store = Store(tmp_path)
    beside = WriterProcess(WriterSetup(store.folder, None, CaptureConfig(), PrivacyConfig()))
    recorder = Recorder(store, CaptureConfig(), beside=beside)
    recorder.record_later(heard(1), size=100)
    assert recorder.flush() and store.count(Interaction) == 1
    balance(recorder)
    recorder.close()
    store.close()


def test_a_killed_gateway_loses_only_what_it_had_not_handed_over(tmp_path: Path) -> None:
    gateway = subprocess.Popen(
        [sys.executable, "-c", SEND, str(tmp_path)], stdout=subprocess.PIPE, bufsize=0
    )
    assert gateway.stdout
    writer = int(gateway.stdout.readline())
    sent = 0
    while sent < 400:
        sent += gateway.stdout.read(1) == b"."
    gateway.send_signal(signal.SIGKILL)
    gateway.wait()
    sent += gateway.stdout.read().count(b".")
    until = time.monotonic() + 30
    while Path(f"/proc/{writer}").exists() and time.monotonic() < until:
        time.sleep(0.05)  # it writes what it has, and ends by itself
    store = Store(tmp_path)
    stored = store.count(Interaction)
    lost = sum(one.lost for one in crashes(store))
    assert not Path(f"/proc/{writer}").exists()
    # one may have been taken in and not yet said so
    assert sent <= stored + lost <= sent + 1
    assert lost < 100, "far less than what a commit's window holds"
    store.close()
