"""How much a process took in and how much of it is settled, where a kill cannot reach it.

    .trueup/capture/
    ├── 4711-….counts    one page of a running process, mapped into its memory
    └── crashes.jsonl    what the processes that were killed left unsettled

A store into mapped memory costs no system call and outlives the process (not the machine: after
a power cut the page may be old). The file is locked as long as its process lives; the kernel
gives the lock back even after kill -9, so a file that can be locked is a dead process's. Whoever
opens the store next reads it, asks the store whether the commit that was under way arrived, and
writes the difference down.
"""

import fcntl
import json
import mmap
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from trueup.records import Interaction
from trueup.store import Store, storage_errors
from trueup.store.tables import ERASED, TABLES

__all__ = ["Crash", "Handover", "Ledger", "crashes", "now"]

PAGE = 4096
MAGIC = 0x7472756575700002
# 8-byte words, each with one writer; word 0 is the magic number
ACCEPTED, SETTLED, PENDING, HANDED, NUM_IDS = 1, 2, 3, 4, 5
STARTED_AT, STARTED_BYTES = 64, 32
IDS_AT, ID_BYTES = 128, 10  # the hex digits of ids, as bytes
MAX_IDS = (PAGE - IDS_AT) // ID_BYTES


class Crash(NamedTuple):
    """A process that ended without settling its account."""

    process: str
    started_at: str
    accepted: int
    """Interactions it took in."""
    lost: int
    """Of those, how many are neither in the store nor counted as dropped or failed."""


class Ledger:
    """The account of this process. One thread at a time: the recorder's lock guards it."""

    def __init__(self, folder: Path) -> None:
        """Open the account.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = folder / "capture"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        unlocked, self._path = folder / f"{name}.new", folder / f"{name}.counts"
        self._file = open(unlocked, "x+b", buffering=0)  # noqa: SIM115  closed with the account
        try:
            # on disk beforehand: writing to a mapped page that has no room is a fatal signal
            self._file.write(bytes(PAGE))
            os.fsync(self._file.fileno())
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._page = mmap.mmap(self._file.fileno(), PAGE)
        except OSError:
            self._file.close()
            unlocked.unlink(missing_ok=True)
            raise
        self._words: Any = memoryview(self._page).cast("Q")
        self._page[STARTED_AT : STARTED_AT + STARTED_BYTES] = now().encode().ljust(STARTED_BYTES)
        self._words[0] = MAGIC
        os.rename(unlocked, self._path)  # only now may others find it

    def accept(self, number: int) -> None:
        """So many more are in our hands."""
        self._words[ACCEPTED] += number

    def begin(self, ids: Sequence[str]) -> None:
        """A commit of these is about to be tried. It has arrived where all of them are there: one
        alone may have been there before."""
        self._words[PENDING] = 0
        noted = b"".join(filter(None, map(_packed, ids[:MAX_IDS])))
        self._page[IDS_AT : IDS_AT + len(noted)] = noted
        self._words[NUM_IDS] = len(noted) // ID_BYTES
        self._words[PENDING] = self._words[SETTLED] + len(ids)

    def settle(self, number: int) -> None:
        """So many are stored, or counted as given up."""
        self._words[SETTLED] += number

    @property
    def path(self) -> Path:
        """Where the account is, for `Handover`."""
        return self._path

    def close(self) -> None:
        """Close the account; it is kept only where something is owed."""
        is_settled = self._words[ACCEPTED] == self._words[SETTLED] + self._words[HANDED]
        self._words.release()
        self._page.close()
        if is_settled:
            self._path.unlink(missing_ok=True)
        self._file.close()


class Handover:
    """The other end of an account: who takes interactions over from a process notes it there, so
    that those are not missed if it is killed."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._words: Any = memoryview(mmap.mmap(file.fileno(), PAGE)).cast("Q")

    def took(self, number: int) -> None:
        """So many are in the hands of this process."""
        self._words[HANDED] += number


def crashes(store: Store) -> list[Crash]:
    """What killed processes left unsettled, oldest first; the accounts of those that died since
    the last call are closed first.

    Raises:
        StorageError: the folder cannot be read or written.
    """
    folder = store.folder / "capture"
    with storage_errors(store.folder):
        for path in sorted(folder.glob("*.counts")):
            _close_if_dead(path, store)
        return _written_down(folder)


def _written_down(folder: Path) -> list[Crash]:
    try:
        lines = (folder / "crashes.jsonl").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found: dict[str, Crash] = {}  # a kill between writing down and deleting writes it twice
    for line in lines:
        try:
            one = Crash(**json.loads(line))
        except (ValueError, TypeError):  # cut short, by a kill or a full disk
            continue
        found[one.process] = one
    return list(found.values())


def _close_if_dead(path: Path, store: Store) -> None:
    try:
        file = open(path, "r+b", buffering=0)  # noqa: SIM115  closed below
    except FileNotFoundError:
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # its process lives
        if os.fstat(file.fileno()).st_nlink == 0:
            return  # another reader was faster
        crash = _read(path.stem, file.read(PAGE), store)
        if crash and crash.lost:
            line = "\n" + json.dumps(crash._asdict())  # so that one cut short ends before it
            with open(path.parent / "crashes.jsonl", "ab", buffering=0) as log:
                log.write(line.encode())
                os.fsync(log.fileno())
        path.unlink(missing_ok=True)


def _read(name: str, page: bytes, store: Store) -> Crash | None:
    words: Any = memoryview(page[: len(page) // 8 * 8]).cast("Q")
    if len(page) < PAGE or words[0] != MAGIC:
        return None
    accepted, settled, pending = words[ACCEPTED], words[SETTLED], words[PENDING]
    handed = words[HANDED]
    if pending > settled:
        end = IDS_AT + ID_BYTES * min(words[NUM_IDS], MAX_IDS)
        noted = (page[at : at + ID_BYTES] for at in range(IDS_AT, end, ID_BYTES))
        ids = [f"{Interaction.tag}_{one.hex()}" for one in noted]
        if ids and _are_settled(ids, store):
            settled = pending
    started = page[STARTED_AT : STARTED_AT + STARTED_BYTES].decode(errors="replace").strip()
    return Crash(name, started, accepted, max(0, accepted - settled - handed))


def _are_settled(ids: list[str], store: Store) -> bool:
    """True where each is in the store, or was and has been erased."""
    with store.reading() as connection:
        found = store.known(connection, TABLES[Interaction], ids)
        return found.issuperset(set(ids) - store.known(connection, ERASED, ids))


def _packed(record_id: str) -> bytes:
    """The digits of an id; nothing where somebody gave it another form."""
    try:
        packed = bytes.fromhex(record_id.rpartition("_")[2])
    except ValueError:
        return b""
    return packed if len(packed) == ID_BYTES else b""


def now() -> str:
    """As `Crash.started_at` has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
