"""The writer of captures in a process of its own, so that no request waits for its interpreter.

    gateway   record_later ──> queue ──> a batch every few milliseconds ──┐
    writer    store <── a recorder of its own: rules, scrubbing, recall <─┘

To put a record together, scrub it and write it takes as long as to forward the request, and a
thread that does it holds the interpreter when the next request wants it. The promise: nothing
changes but who does it. What was handed over outlives a kill of the gateway; if the writer dies,
the gateway writes by itself again, and what was lost is in the ledger.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trueup.capture.config import CaptureConfig
from trueup.capture.ledger import Handover, crashes, now
from trueup.errors import StorageError
from trueup.privacy import PrivacyConfig, Scrubber
from trueup.records import Interaction
from trueup.store import Store

if TYPE_CHECKING:
    from trueup.capture.recorder import Item

__all__ = ["Told", "WriterProcess", "WriterSetup"]

NICE = 5
"""The writer has time; requests have none."""
BREATH_S = 5e-5
"""Its sleep between two records. A kernel may let whoever runs go on for 4 ms before another gets
the processor, and that is what the slowest requests would wait."""
ANSWER_S = 120.0
"""A writer that says or takes nothing for so long is taken for dead."""
BUSY_S = 0.5
"""Who asks how it stands waits no longer while others are served."""
FLUSH_S = 0.05
"""How long the line is held at a time while somebody waits for the disk."""

END_S = 5.0
"""How long one that was told to end may take for it."""

COMMAND = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from trueup.capture.beside import main; main(int(sys.argv[1]))"
)
"""With our own search path: the folder that we were started in may hold a `logging.py`."""

_log = logging.getLogger(__name__)


class WriterSetup(NamedTuple):
    """What the writer needs to know. It goes through a socket: an address may hold a password."""

    folder: Path
    """Of the store."""
    url: Any
    """Of the store's database; None is the file in the folder."""
    capture: CaptureConfig
    privacy: PrivacyConfig


class Told(NamedTuple):
    """The writer's account, as `Recorder.counters` and `Recorder.reasons` have it."""

    counters: dict[str, int]
    reasons: dict[tuple[str, str], int]
    handed: int = 0
    """How many interactions it had been handed by then."""
    lost: int = 0
    """Those that it took with it when it died."""


class _Gone(Exception):
    """There is no writer at the other end."""


class WriterProcess:
    """The gateway's end. Safe to call from any thread; they are served one by one."""

    def __init__(self, setup: WriterSetup) -> None:
        """Start it. It takes a second or two; what is handed over meanwhile waits."""
        self._setup, self._told = setup, Told({}, {})
        self._store: Store | None = None
        self._lock = threading.Lock()
        self._is_gone = False
        self._since = now()
        self._line, theirs = Pipe()
        _hurry_sends(self._line)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # A terminal's Ctrl-C or hang-up is meant for the gateway. Not a session of its own:
                # the kernel may share the processor out among sessions first, niceness or not.
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def open(self, account: Path | None, store: Store) -> None:
        """Tell it what to do.

        Args:
            account: of our ledger; there it notes what it took over.
            store: the same as its own, to see what it left behind.
        """
        self._store = store
        with contextlib.suppress(OSError):  # if it is gone already, the first batch shows it
            self._line.send((self._setup, account))

    def take(self, items: Sequence["Item"]) -> bool:
        """Hand over what waits; False where it stays ours, because there is no writer any more or
        an item cannot travel."""
        try:
            message = pickle.dumps(("take", (list(items),)))
        except (pickle.PicklingError, AttributeError, TypeError):  # built by a function of ours
            return False
        number = sum(item.number for item in items)
        try:
            with self._lock:
                told = self._answer(message)
                self._told = told._replace(handed=self._told.handed + number)
        except _Gone:
            return False
        return True

    def flush(self, timeout_s: float) -> bool:
        """As the recorder's."""
        until = time.monotonic() + timeout_s
        while not self._or("flush", True, FLUSH_S):
            if time.monotonic() > until:
                return False
        return True

    def recall(self, name: str, tenant: str | None) -> list[Interaction]:
        """As the recorder's.

        Raises:
            StorageError: likewise.
        """
        return self._or("recall", [], name, tenant)

    def told(self) -> Told:
        """Its account as it is now, or a moment ago if it is busy; of a writer that died, what its
        ledger says."""
        if self._lock.acquire(timeout=BUSY_S):
            try:
                self._told = self._ask("told")._replace(handed=self._told.handed)
            except _Gone:
                pass
            finally:
                self._lock.release()
        return self._told

    def close(self, timeout_s: float) -> bool:
        """Have it write what it has, and end; False if that took too long."""
        if not self._lock.acquire(timeout=timeout_s):
            self._process.kill()  # it hangs; who stands in line with it is set free, and buries it
            return False
        try:
            with contextlib.suppress(_Gone):
                message = pickle.dumps(("close", (timeout_s,)))
                told = self._answer(message, timeout_s + END_S)
                self._told = told._replace(handed=self._told.handed)
            self._is_gone = True
            self._line.close()
        finally:
            self._lock.release()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return not self._told.counters.get("waiting")

    def _or(self, verb: str, otherwise: Any, *given: Any) -> Any:
        try:
            with self._lock:
                return self._ask(verb, *given)
        except _Gone:
            return otherwise

    def _ask(self, verb: str, *given: Any) -> Any:
        return self._answer(pickle.dumps((verb, given)))

    def _answer(self, message: bytes, patience_s: float = ANSWER_S) -> Any:
        if self._is_gone:
            raise _Gone
        try:
            self._line.send_bytes(message)
            if not self._line.poll(patience_s):
                raise EOFError
            answer = self._line.recv()
        except (EOFError, OSError):
            self._bury()
            raise _Gone from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _bury(self) -> None:
        """The writer is dead, or as good as dead: balance its account."""
        self._is_gone = True
        self._process.kill()
        self._process.wait()
        _log.warning("The writer of captures died (%s)", self._process.returncode)
        lost = self._lost()
        counts, reasons = Counter(self._told.counters), Counter(self._told.reasons)
        # of those that waited when it last spoke, what its ledger does not miss had arrived
        arrived = max(0, counts["waiting"] - lost)
        counts["sent"] -= counts["waiting"] - arrived
        counts["captured"] += arrived
        reasons["captured", ""] += arrived
        counts["waiting"] = 0
        self._told = Told(counts, reasons, self._told.handed, lost)

    def _lost(self) -> int:
        """What it took with it; where the store cannot say, all that waited."""
        if self._store is None:
            return 0
        try:
            found = crashes(self._store)
        except StorageError:
            return self._told.counters.get("waiting", 0)
        # in a container the same few process ids are given out at every start
        mine = (one for one in found if one.started_at >= self._since)
        return sum(one.lost for one in mine if one.process.startswith(f"{self.pid}-"))


def _hurry_sends(line: Connection) -> None:
    """A process that does not read must not hold up who writes to it for longer than the answer
    may take: what does not go through by then is an OSError."""
    with socket.socket(fileno=os.dup(line.fileno())) as same:
        most = struct.pack("ll", int(ANSWER_S), 0)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, most)


# --- the writer's end -----------------------------------------------------------------------------


def main(file: int) -> None:
    """Write what comes through the line, until it is closed or the gateway is gone."""
    # meant for the gateway, which tells us
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    line = Connection(file)
    try:
        setup, account = line.recv()
    except (EOFError, OSError):
        return
    _write_for(line, setup, account)


def _write_for(line: Connection, setup: WriterSetup, account: Path | None) -> None:
    from trueup.capture.recorder import Recorder

    store = Store(setup.folder, url=setup.url)
    scrub = _scrubber(setup, store)
    recorder = Recorder(store, setup.capture, scrub=scrub, breath_s=BREATH_S)
    handover = Handover(account) if account else None

    def told() -> Told:
        return Told(recorder.counters, recorder.reasons)

    def take(items: Sequence["Item"]) -> Told:
        recorder.put(items)
        if handover:
            handover.took(sum(item.number for item in items))
        return told()

    def close(timeout_s: float) -> Told:
        recorder.close(timeout_s)
        return told()

    verbs = {
        "take": take,
        "told": told,
        "close": close,
        "flush": recorder.flush,
        "recall": recorder.recall,
    }
    try:
        while True:
            verb, given = pickle.loads(line.recv_bytes())  # from our own parent, on a socket pair
            try:
                answer = verbs[verb](*given)
            except Exception as error:  # whoever asked is to hear of it
                answer = error
            line.send(answer)
    except (EOFError, OSError):  # the gateway is gone; what it handed over is still to be written
        recorder.close(ANSWER_S)
    finally:
        store.close()


def _scrubber(setup: WriterSetup, store: Store) -> Scrubber | None:
    asked = setup.privacy
    return Scrubber(asked, store) if asked.scrubber != "off" or asked.pseudonyms else None
