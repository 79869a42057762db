"""Log-probs that were computed once, kept for every later loss, sweep and run.

The key is what determines the numbers: the weights, their number format, the prompt's tokens and
the completion's. Nothing else is asked, so a hit is right whoever asks; other weights or another
template give other keys.
"""

import hashlib
import sqlite3
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from trueup.errors import StorageError
from trueup.models.chat import digest

__all__ = ["LogprobCache"]

Key = bytes
T = TypeVar("T")
NOT_THE_FILE = frozenset(
    (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    )
)
"""Complaints about disk, rights or company: a new file would fare no better."""
TABLE = "CREATE TABLE IF NOT EXISTS logprobs (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
AT_ONCE = 500  # SQLite's oldest limit on bound variables is 999


class LogprobCache:
    """A file of log-probs by content. Losing it costs a forward pass, nothing else: a file that
    turns out to be damaged is deleted and begun afresh, and a value whose check sum is wrong is
    not known."""

    def __init__(self, path: Path) -> None:
        """Open the file, creating it as needed; here as below a disk that is full or a file that
        may not be written is a StorageError."""
        self._path = path
        self._file: sqlite3.Connection | None = None
        self._do(lambda file: None)

    @staticmethod
    def key(
        weights: str, dtype: str, prompt_ids: Sequence[int], completion_ids: Sequence[int]
    ) -> Key:
        """What these log-probs are a function of."""
        said = "|".join((weights, dtype, digest(prompt_ids), digest(completion_ids)))
        return hashlib.sha256(said.encode()).digest()

    def get(self, keys: Iterable[Key]) -> dict[Key, list[float]]:
        """Those that are known, float32, one a token."""
        wanted, found = list(dict.fromkeys(keys)), {}
        for at in range(0, len(wanted), AT_ONCE):
            part = wanted[at : at + AT_ONCE]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, value FROM logprobs WHERE key IN ({marks})"
            rows = self._do(lambda file, q=query, p=part: file.execute(q, p).fetchall())
            found |= {key: _unpacked(value) for key, value in rows if _is_whole(key, value)}
        return found

    def put(self, logprobs: dict[Key, Sequence[float]]) -> None:
        """Keep these, in one transaction."""
        rows = [(key, _packed(key, values)) for key, values in logprobs.items()]

        def write(file: sqlite3.Connection) -> None:
            with file:  # commits, or rolls back what failed
                file.execute("BEGIN IMMEDIATE")
                file.executemany("INSERT OR REPLACE INTO logprobs VALUES (?, ?)", rows)

        self._do(write)

    def close(self) -> None:
        """Let go of the file; asking again opens it again."""
        if self._file:
            self._file.close()
        self._file = None

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Work on the open file; if it is damaged, once more on a new one."""
        try:
            try:
                return work(self._open())
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in NOT_THE_FILE:
                    raise
                self._delete()
                return work(self._open())
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"The log-probs in {self._path} could not be read or kept",
                got=str(error),
                expected="a file that can be written, and free space on its disk",
                next="free some space; deleting the file loses nothing",
            ) from error

    def _open(self) -> sqlite3.Connection:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            try:
                file.execute("PRAGMA journal_mode=WAL")
                file.execute(TABLE)
            except sqlite3.Error:
                file.close()
                raise
            self._file = file
        return self._file

    def _delete(self) -> None:
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _packed(key: Key, values: Sequence[float]) -> bytes:
    floats = array("f", values).tobytes()
    return zlib.crc32(key + floats).to_bytes(4, "big") + floats


def _is_whole(key: Key, packed: bytes) -> bool:
    return packed[:4] == zlib.crc32(key + packed[4:]).to_bytes(4, "big")


def _unpacked(packed: bytes) -> list[float]:
    return list(array("f", packed[4:]))
