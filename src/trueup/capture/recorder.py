"""Writes interactions down without ever standing in the way of the request.

    request ── record() ──> bounded queue ──> one writer thread ──> store, a batch a commit

The promise: `record` neither blocks nor raises, whatever the disk, the database or the record is
like. What could not be kept is counted, and each kind of trouble is logged once. Feedback does
not go this way: its sender is told that it is kept, so it is on disk before the answer.
"""

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from trueup.capture.config import CaptureConfig
from trueup.errors import StorageError
from trueup.records import Feedback, Interaction
from trueup.store import Store

__all__ = ["Recorder"]

COUNTERS: tuple[str, ...] = (
    "captured", "dropped", "failed", "skipped_by_rate", "skipped_not_text",
)  # fmt: skip
BATCH = 256  # records a commit: one fsync for many, and a lock held for milliseconds

_log = logging.getLogger(__name__)


class Recorder:
    """A bounded queue in front of the store. Safe to call from any thread."""

    def __init__(self, store: Store, config: CaptureConfig) -> None:
        self._store, self._config = store, config
        self._waiting: deque[Interaction] = deque()
        self._changed = threading.Condition()
        self._num_accepted = self._num_settled = 0
        self._is_closed = False
        self._counts = {name: 0 for name in COUNTERS}
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._write_all, name="trueup-capture", daemon=True)
        self._thread.start()

    # --- from the request's side ----------------------------------------------------------------

    def record(self, *interactions: Interaction) -> None:
        """Queue the interactions of one request (one a choice): all of them, or none."""
        self.record_from(lambda: interactions)

    def record_from(self, build: Callable[[], Sequence[Interaction]]) -> None:
        """As `record`, for interactions still to be put together.

        Args:
            build: if it raises, that is counted as `failed`; if it returns nothing, the request
                held something that is not text, which is counted as `skipped_not_text`.
        """
        try:
            interactions = build()
            if interactions:
                self._enqueue(interactions)
            else:
                self._count("skipped_not_text", 1)
        except Exception as error:  # the caller is a user's request: nothing may get through
            self._count("failed", 1)
            self._warn("failed", f"An interaction could not be put together: {error}")

    def feedback(self, feedback: Feedback) -> None:
        """Write feedback; it is on disk when this returns.

        Raises:
            StorageError: it could not be written.
        """
        self._store.add(feedback)

    @property
    def counters(self) -> dict[str, int]:
        """Interactions `captured` (on disk), `dropped` (queue full), `failed`, and skipped."""
        with self._changed:
            return dict(self._counts)

    # --- from the server's side -----------------------------------------------------------------

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was recorded before is written or given up; False if time ran out."""
        with self._changed:
            target = self._num_accepted
            return self._changed.wait_for(lambda: self._num_settled >= target, timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what is queued, then stop. What is recorded afterwards counts as dropped."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._warn("closed", f"Capture was closed with {len(self._waiting)} records unwritten")

    # --- inside ---------------------------------------------------------------------------------

    def _enqueue(self, interactions: Sequence[Interaction]) -> None:
        num_new = len(interactions)
        if not self._is_wanted(interactions[0]):
            self._count("skipped_by_rate", num_new)
            return
        with self._changed:
            has_room = len(self._waiting) + num_new <= self._config.queue_size
            if has_room and not self._is_closed:
                self._waiting.extend(interactions)
                self._num_accepted += num_new
                self._changed.notify_all()
                return
            self._counts["dropped"] += num_new
            is_closed = self._is_closed
        reason = "capture is closed" if is_closed else "the store is slower than the traffic"
        self._warn("dropped", f"Interactions are being dropped: {reason}")

    def _is_wanted(self, first: Interaction) -> bool:
        digest = hashlib.sha256(
            (first.request_id or first.id).encode("utf-8", "surrogatepass")
        ).digest()
        return int.from_bytes(digest[:8]) / 2**64 < self._config.rate

    def _write_all(self) -> None:
        while batch := self._take():
            num_written = self._write(batch)
            with self._changed:
                self._counts["captured"] += num_written
                self._counts["failed"] += len(batch) - num_written
                self._num_settled += len(batch)
                self._changed.notify_all()

    def _take(self) -> list[Interaction]:
        """The next batch; empty once closed and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def _write(self, batch: list[Interaction]) -> int:
        """Commit a batch; returns how many of it are on disk."""
        try:
            self._store.add_all(batch)
            return len(batch)
        except StorageError as error:
            self._warn("storage", f"Interactions could not be kept: {error}")
            return 0
        except Exception as error:
            # not the disk, so a record: alone it fails, and its neighbours are kept
            if len(batch) > 1:
                return sum(self._write([one]) for one in batch)
            self._warn("record", f"An interaction could not be kept: {error}")
            return 0

    def _count(self, name: str, number: int) -> None:
        with self._changed:
            self._counts[name] += number

    def _warn(self, kind: str, message: str) -> None:
        with self._changed:
            is_new = kind not in self._warned
            self._warned.add(kind)
        if is_new:
            _log.warning("%s (said once; see the counters in /health)", message)
