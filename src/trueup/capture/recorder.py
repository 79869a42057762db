"""Writes interactions down without ever standing in the way of the request.

    request ── record() ──> bounded queue ──> one writer thread ──> store, a batch a commit

The thread writes by itself, or hands over to a process beside, see `capture.beside`.

The promise: `record` neither blocks nor raises, whatever the disk, the database or the record is
like, and nothing gets lost without being counted. At any moment

    sent = captured + dropped + failed + skipped_by_rate + skipped_by_rule + skipped_not_text
           + skipped_known + skipped_erased + waiting

holds, and what a kill takes away is in the `ledger`. Each kind of trouble is logged once.
Feedback and mirrored traffic do not go this way: their sender is told that they are kept, so they
are on disk before the answer.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from trueup.capture.beside import Told, WriterProcess
from trueup.capture.config import CaptureConfig
from trueup.capture.ledger import Ledger, crashes
from trueup.capture.recall import Recall, size_of
from trueup.capture.rules import why_left_out
from trueup.errors import DataError, RecordNotFound, StorageError
from trueup.privacy import Scrub, Scrubber
from trueup.records import Feedback, Interaction
from trueup.store import Store

__all__ = ["Item", "Kept", "Recorder", "Scrub"]

Build = Callable[[], Sequence[Interaction]]
REASONS: dict[str, tuple[str, ...]] = {
    "captured": ("",),
    "dropped": ("queue_size", "queue_mb", "closed"),
    "failed": ("build", "scrub", "storage", "record"),
    "skipped": ("rate", "rule", "not_text", "known", "erased"),
}
"""What can become of an interaction, and why."""

HAND_OVER = 0.2
"""Of the time that a commit waits for company, how long a batch for the process beside does."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
LAST_S = 5.0
"""At the end: for what a process beside that hung gave back."""
PASSING = (
    *("locked", "busy", "full", "no space", "i/o", "unable to open", "connect", "timeout"),
    *("deadlock", "could not serialize", "read-only transaction", "recovery"),
    *("starting up", "shutting down", "accepting", "too many clients"),
)
"""Words in complaints of a store that may yet come round. Postgres: a server that fails over is
read-only or in recovery for a while."""

_log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """What became of a request whose sender waits."""

    ids: tuple[str, ...]
    """Of its interactions; they are on disk unless `skipped` says why not."""
    skipped: str
    """`rate`, `rule`, `scrub` where it could not be scrubbed, `erased` where it was and so stays
    away; empty where it was kept, now or before."""


class Item(NamedTuple):
    """What one request put into the queue."""

    build: Build
    number: int
    size: int
    """Bytes, roughly."""
    route: str
    is_admitted: bool


class Recorder:
    """A bounded queue in front of the store. Safe to call from any thread."""

    def __init__(
        self,
        store: Store,
        config: CaptureConfig,
        *,
        scrub: Scrub | None = None,
        beside: WriterProcess | None = None,
        breath_s: float = 0.0,
    ) -> None:
        """
        Args:
            beside: writes what `record_later` brings, with the same settings. It is closed with us.
            breath_s: how long the writer sleeps after each record while it is not behind, for those
                who want the processor now.
        """
        self._store, self._config, self._scrub, self._beside = store, config, scrub, beside
        self._max_bytes = config.queue_mb * 1e6
        self._waiting: deque[Item] = deque()
        self._num_waiting = self._num_bytes = 0
        self._lock = threading.RLock()
        self._work, self._done = threading.Condition(self._lock), threading.Condition(self._lock)
        self._num_in = self._num_out = self._hurry_to = 0  # items
        self._closing_at: float | None = None
        self._sent = self._unsettled = self._handed = self._recalled = self._retries = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._recall = Recall(config.recall_s, config.recall_size, self._max_bytes)
        self._warned: set[str] = set()
        self._num_lost = self._look_back()
        self._ledger = self._open_ledger()
        self._company_s, self._breath_s = config.commit_ms / 1000, breath_s
        if beside:
            beside.open(self._ledger.path if self._ledger else None, store)
            self._company_s *= HAND_OVER
        self._thread = threading.Thread(target=self._write_all, name="trueup-capture", daemon=True)
        self._thread.start()

    # --- from the request's side ----------------------------------------------------------------

    def record(self, *interactions: Interaction, route: str = "") -> None:
        """Queue the interactions of one request (one a choice): all of them, or none."""
        self.record_from(lambda: interactions, route=route)

    def record_from(self, build: Build, *, route: str = "") -> None:
        """As `record`, for interactions still to be put together; that is done here and now.

        Args:
            build: if it raises, that is counted as `failed`; if it returns nothing, the request
                held something that is not text, which is counted as `skipped_not_text`.
            route: the path of the request, for the rules.
        """
        try:
            interactions = self._built(build, 0)
            if interactions and self._admit(interactions, route, 0):
                size = sum(map(size_of, interactions))
                self._enqueue(
                    Item(lambda: interactions, len(interactions), size, route, is_admitted=True)
                )
        except Exception as error:  # the caller is a user's request: nothing may get through
            self._fail(error)

    def record_later(self, build: Build, *, size: int, route: str = "") -> None:
        """As `record_from`, but the writer puts them together, off the request's way.

        Args:
            size: bytes that wait with it: the request's body and the answer's.
        """
        try:
            self._enqueue(Item(build, 1, size, route, is_admitted=False))
        except Exception as error:
            self._fail(error)

    def put(self, items: Sequence[Item]) -> None:
        """Queue what another recorder hands over."""
        for item in items:
            self._enqueue(item)

    # --- for senders who wait -------------------------------------------------------------------

    def feedback(self, feedback: Feedback) -> Feedback:
        """Write feedback, scrubbed; what was written is on disk when this returns.

        Raises:
            StorageError: it could not be written.
            DataError: it could not be scrubbed.
            RecordNotFound: what it is about was erased meanwhile.
        """
        try:
            clean = self._scrub(feedback) if self._scrub else feedback
        except Exception as error:  # its text may be the very thing that must not be written
            raise DataError(
                "Feedback could not be scrubbed, and so is not kept",
                got=type(error).__name__,
                expected="text that privacy.scrubber can read",
                next="see the gateway's log",
            ) from None
        if not self._store.add(clean) and not self._store.get_all(Feedback, [clean.id]):
            raise RecordNotFound(
                "The answer that this feedback is about was erased",
                got=clean.interaction_id,
                expected="an answer that is still there",
                next="nothing: there is no such answer any more",
            )
        return clean

    def keep(self, requests: Sequence[Sequence[Interaction]], *, route: str = "") -> list[Kept]:
        """Write the interactions of requests (one a choice) by the same rules, scrubbed likewise;
        they are on disk when this returns, in one transaction.

        Raises:
            StorageError: they could not be written.
        """
        kept: list[Kept] = []
        wanted: list[Interaction] = []
        for group in requests:
            if not self._admit(group, route, 0):
                left = why_left_out(self._config, group[0], route) or ""
                kept.append(Kept(tuple(one.id for one in group), left))
                continue
            clean = [one for one in map(self._scrubbed, group) if one]
            wanted += clean
            kept.append(Kept(tuple(one.id for one in clean), "" if clean else "scrub"))
        erased = self._kept_now(wanted, self._store.add_all)
        return [_without(one, erased) for one in kept] if erased else kept

    def recall(self, name: str, tenant: str | None = None) -> list[Interaction]:
        """Bring in a request that the rate had left out; it is on disk when this returns.

        Args:
            name: its request id, or the id of one of its interactions.
            tenant: whose it must be, if it matters.

        Returns:
            Its interactions as they were written; empty if it is not remembered (any more), or if
            somebody's traffic was erased since it was: it may be theirs.

        Raises:
            StorageError: it could not be written. It is remembered still.
        """
        with self._lock:
            group = self._recall.take(name, tenant)
        if not group and self._beside:
            return self._beside.recall(name, tenant)
        try:
            clean = [one for one in map(self._scrubbed, group) if one]
            erased = self._kept_now(clean, self._store.add_late)
        except Exception:
            with self._lock:
                self._recall.hold(group)
            raise
        found = [one for one in clean if one.id not in erased]
        with self._lock:
            self._recalled += len(found)
        return found

    def known_as(self, request_id: str) -> str:
        """What this request id is in the store, where scrubbing may have changed it."""
        scrub = self._scrub
        return scrub.request_id(request_id) if isinstance(scrub, Scrubber) else request_id

    # --- what it all came to --------------------------------------------------------------------

    @property
    def counters(self) -> dict[str, int]:
        """Interactions `sent`, and what became of them: on disk (`captured`), no room (`dropped`),
        `failed`, skipped, `waiting`. Beside that sum: how many of the captured were `recalled` by
        feedback, commits tried again (`retries`), and interactions `lost_in_crashes` of earlier
        processes on this store. Takes a moment where a process beside is asked."""
        told = self._beside.told() if self._beside else Told({}, {})
        with self._lock:
            total = {
                kind: sum(self._counts[kind, why] for why in REASONS[kind])
                for kind in ("captured", "dropped", "failed")
            }
            skipped = {
                f"skipped{'_by' if why in ('rate', 'rule') else ''}_{why}": number
                for why in REASONS["skipped"]
                for number in [self._counts["skipped", why]]
            }
            more = {"recalled": self._recalled, "retries": self._retries}
            waiting = self._unsettled + self._handed - told.handed
            sent = self._sent - told.handed
            lost = self._num_lost + told.lost
        own = {"sent": sent, **total, **skipped, "waiting": waiting, **more}
        sums = {name: number + told.counters.get(name, 0) for name, number in own.items()}
        return sums | {"lost_in_crashes": lost}

    @property
    def reasons(self) -> dict[tuple[str, str], int]:
        """The same by outcome and reason: `("dropped", "queue_mb")`."""
        theirs = self._beside.told().reasons if self._beside else {}
        with self._lock:
            return {
                (kind, why): self._counts[kind, why] + theirs.get((kind, why), 0)
                for kind in REASONS
                for why in REASONS[kind]
            }

    # --- from the server's side -----------------------------------------------------------------

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was recorded before is written or given up; False if time ran out."""
        with self._lock:
            target = self._num_in
            self._hurry_to = max(self._hurry_to, target)
            self._work.notify()
            is_out = self._done.wait_for(lambda: self._num_out >= target, timeout_s)
        return is_out and (self._beside is None or self._beside.flush(timeout_s))

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what is queued, then stop. What is recorded afterwards counts as dropped."""
        with self._lock:
            if self._closing_at is None:
                self._closing_at = time.monotonic() + timeout_s
            self._work.notify_all()
        self._thread.join(timeout_s)
        if self._beside:
            if not self._beside.close(max(1.0, self._closing_at - time.monotonic())):
                self._warn("closed", "Capture was closed before its writer was through")
            self._thread.join(LAST_S)
        with self._lock:
            if self._thread.is_alive():
                self._warn("closed", f"Capture was closed with {self._unsettled} records unwritten")
            elif self._ledger:
                self._ledger.close()
                self._ledger = None

    # --- on the way in --------------------------------------------------------------------------

    def _built(self, build: Build, in_queue: int) -> Sequence[Interaction]:
        """The interactions; empty, and counted, where there are none to be had."""
        try:
            interactions = build()
        except Exception as error:
            self._warn("failed", f"An interaction could not be put together: {error}")
            self._settle("failed", "build", max(1, in_queue), in_queue)
            return ()
        if not interactions:
            self._settle("skipped", "not_text", max(1, in_queue), in_queue)
        return interactions

    def _admit(self, interactions: Sequence[Interaction], route: str, in_queue: int) -> bool:
        left = why_left_out(self._config, interactions[0], route)
        if left is None:
            return True
        with self._lock:
            self._settle("skipped", left, len(interactions), in_queue)
            if left == "rate":
                self._recall.hold(interactions)
        return False

    def _enqueue(self, item: Item) -> None:
        with self._lock:
            self._sent += item.number
            reason = self._no_room(item)
            if reason:
                self._counts["dropped", reason] += item.number
            else:
                was_idle = not self._waiting
                was_due = self._is_due()
                self._waiting.append(item)
                self._num_in += 1
                self._num_waiting += item.number
                self._num_bytes += item.size
                self._take_in(item.number)
                if was_idle or self._is_due() != was_due:  # waking it for each would cost the most
                    self._work.notify()
        if reason:
            why = "capture is closed" if reason == "closed" else "the store is slower than traffic"
            self._warn("dropped", f"Interactions are being dropped: {why}")

    def _no_room(self, item: Item) -> str:
        if self._closing_at is not None:
            return "closed"
        if self._num_waiting + item.number > self._config.queue_size:
            return "queue_size"
        return "queue_mb" if self._num_bytes + item.size > self._max_bytes else ""

    def _is_due(self) -> bool:
        """True when the next commit has no reason to wait for company."""
        return (
            self._num_waiting >= self._config.commit_size
            or self._num_bytes >= self._max_bytes / 4
            or self._hurry_to > self._num_out
            or self._closing_at is not None
        )

    # --- the writer -----------------------------------------------------------------------------

    def _write_all(self) -> None:
        while items := self._take():
            try:
                if not self._hand_over(items):
                    self._write(self._all_opened(items))
            except Exception as error:  # a fault of ours: those behind must not wait for ever
                self._warn("writer", f"A commit was abandoned: {error!r}")
            finally:
                with self._lock:
                    self._num_out += len(items)
                    self._done.notify_all()

    def _hand_over(self, items: list[Item]) -> bool:
        """True where the process beside has them now, and accounts for them."""
        if self._beside is None or not self._beside.take(items):
            return False
        number = sum(item.number for item in items)
        with self._lock:
            self._handed += number
            self._unsettled -= number
        return True

    def _take(self) -> list[Item]:
        """The items of the next commit; empty once closed and drained."""
        items: list[Item] = []
        with self._lock:
            self._work.wait_for(lambda: self._waiting or self._closing_at is not None)
            self._work.wait_for(self._is_due, self._company_s)
            number = 0
            while self._waiting and number < self._config.commit_size:
                item = self._waiting.popleft()
                items.append(item)
                number += item.number
                self._num_waiting -= item.number
                self._num_bytes -= item.size
        return items

    def _all_opened(self, items: Sequence[Item]) -> list[Interaction]:
        """The records of a batch, ready to be written; what is left out is counted."""
        wanted: deque[Interaction] = deque()
        for item in items:
            wanted += self._opened(item)
            self._breathe()
        records: list[Interaction] = []

        def scrub() -> None:
            while wanted:
                clean = self._scrubbed(wanted[0], in_queue=1)
                wanted.popleft()
                records.extend([clean] if clean else [])
                self._breathe()

        try:
            self._patiently(scrub)
        except StorageError:
            self._settle("failed", "storage", len(wanted), len(wanted))
        return records

    def _opened(self, item: Item) -> Sequence[Interaction]:
        """The records of an item that are to be kept."""
        interactions = self._built(item.build, item.number)
        if not interactions:
            return ()
        if not item.is_admitted and not self._admit(interactions, item.route, item.number):
            return ()
        with self._lock:
            more = len(interactions) - item.number
            self._sent += more
            self._take_in(more)
        return interactions

    def _breathe(self) -> None:
        if self._breath_s and not self._is_due():
            time.sleep(self._breath_s)

    def _scrubbed(self, one: Interaction, in_queue: int = 0) -> Interaction | None:
        """The record without what must not be written; None, and counted, if that fails.

        Raises:
            StorageError: the key of a pseudonym is to be had from the store, and is not.
        """
        if self._scrub is None:
            return one
        try:
            clean = self._scrub(one)
            if clean is one or clean.id not in ("", one.id):
                return clean
            # the old id is a hash of what was taken out
            return clean.model_copy(update={"id": clean.expected_id()})
        except StorageError:
            raise
        except Exception as error:  # its text may be the very thing that must not be written
            self._warn("scrub", f"Interactions could not be scrubbed: {type(error).__name__}")
            self._settle("failed", "scrub", 1, in_queue)
            return None

    def _kept_now(
        self, records: Sequence[Interaction], add: Callable[[Sequence[Interaction]], int]
    ) -> set[str]:
        """Write for a sender who waits, and count it; the ids of what stays away as erased."""
        try:
            new = add(records) if records else 0
        except Exception:
            self._settle("failed", "storage", len(records), 0)
            raise
        return self._settle_written(records, new, 0)

    def _write(self, records: list[Interaction]) -> None:
        """Commit a batch and count what became of it."""
        if not records:
            return
        is_first_try = True

        def commit() -> None:
            nonlocal is_first_try
            may_be_ours, is_first_try = not is_first_try, False
            with self._lock:
                if self._ledger:
                    self._ledger.begin([one.id for one in records])
            new = self._store.add_all(records)
            self._settle_written(records, new, 1, may_be_ours=may_be_ours)

        try:
            self._patiently(commit)
        except StorageError:
            self._settle("failed", "storage", len(records), len(records))
        except Exception as error:  # not the disk, so a record: alone it fails, not its neighbours
            self._write_good(records, error)

    def _write_good(self, records: list[Interaction], error: Exception) -> None:
        """Commit those of a batch that can be, after one that cannot broke it up."""
        good = [one for one in records if _is_writable(one)]
        if len(records) == 1:
            good = []
        if num_bad := len(records) - len(good):
            self._warn("record", f"An interaction could not be kept: {error}")
            self._settle("failed", "record", num_bad, num_bad)
            self._write(good)
            return
        for one in records:
            self._write([one])

    def _patiently(self, work: Callable[[], object]) -> None:
        """Do it, again and again while the store is locked, full or away.

        Raises:
            StorageError: it did not come round in time.
        """
        give_up, pause = time.monotonic() + self._config.retry_s, FIRST_PAUSE_S
        while True:
            try:
                work()
                return
            except StorageError as error:
                self._warn("storage", f"Interactions could not be kept: {error}")
                if not self._may_try_again(error, give_up):
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _may_try_again(self, error: StorageError, give_up: float) -> bool:
        with self._lock:
            until = min(give_up, self._closing_at or give_up)
            may = time.monotonic() < until and any(w in str(error.got).lower() for w in PASSING)
            self._retries += may
        return may

    # --- counting -------------------------------------------------------------------------------

    def _settle_written(
        self, records: Sequence[Interaction], new: int, in_queue: int, *, may_be_ours: bool = False
    ) -> set[str]:
        """Count a commit of which `new` were new; the ids of what was erased, and stays away.

        Args:
            may_be_ours: an earlier try may have arrived although it seemed to fail, so that what
                is there already is counted as captured.
        """
        erased, num_erased = set[str](), 0
        if new < len(records):
            ids = [one.id for one in records]
            erased = set(ids) - {one for (one,) in self._store.values(Interaction, "id", among=ids)}
            num_erased = min(sum(one in erased for one in ids), len(ids) - new)
        known = len(records) - new - num_erased
        with self._lock:
            for kind, why, number in (
                ("captured", "", new + (known if may_be_ours else 0)),
                ("skipped", "known", 0 if may_be_ours else known),
                ("skipped", "erased", num_erased),
            ):
                self._settle(kind, why, number, number * in_queue)
        return erased

    def _settle(self, kind: str, why: str, number: int, in_queue: int) -> None:
        """Count an outcome. Of the interactions it is about, `in_queue` had been taken in as
        waiting; the others are sent only now."""
        with self._lock:
            self._counts[kind, why] += number
            self._sent += number - in_queue
            self._take_in(-in_queue, settles=True)

    def _take_in(self, number: int, *, settles: bool = False) -> None:
        """So many more (fewer) are unsettled; the ledger has it, too."""
        self._unsettled += number
        if self._ledger and number:
            if settles:
                self._ledger.settle(-number)
            else:
                self._ledger.accept(number)

    def _fail(self, error: Exception) -> None:
        self._settle("failed", "record", 1, 0)
        self._warn("failed", f"An interaction could not be recorded: {error}")

    def _warn(self, kind: str, message: str) -> None:
        with self._lock:
            is_new = kind not in self._warned
            self._warned.add(kind)
        if is_new:
            _log.warning("%s (said once; see the counters in /health)", message)

    # --- what others left behind ----------------------------------------------------------------

    def _look_back(self) -> int:
        """How many interactions earlier processes on this store lost in crashes."""
        try:
            found = crashes(self._store)
        except StorageError as error:
            self._warn("crashes", f"The accounts of earlier processes cannot be read: {error}")
            return 0
        return sum(one.lost for one in found)

    def _open_ledger(self) -> Ledger | None:
        try:
            return Ledger(self._store.folder)
        except OSError as error:
            self._warn("ledger", f"What a kill would take cannot be counted: {error}")
            return None


def _without(kept: Kept, erased: set[str]) -> Kept:
    """What is told where some of it was erased."""
    if kept.skipped or erased.isdisjoint(kept.ids):
        return kept
    ids = tuple(one for one in kept.ids if one not in erased)
    return Kept(ids, "" if ids else "erased")


def _is_writable(one: Interaction) -> bool:
    """False where half of a character, say, keeps it out of any store."""
    try:
        one.model_dump_json().encode()
    except ValueError:
        return False
    return True
