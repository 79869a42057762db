"""Log-probs that were computed once, kept for every later loss, sweep and run.

The key is what determines the numbers: the weights, their number format, the prompt's tokens and
the completion's. Nothing else is asked, so a hit is right whoever asks; other weights or another
template give other keys.
"""

import hashlib
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trueup.errors import StorageError
from trueup.models.chat import digest

__all__ = ["LogprobCache"]

Key = bytes
AT_ONCE = 500  # SQLite's oldest limit on bound variables is 999


class LogprobCache:
    """A file of log-probs by content. Losing it costs a forward pass, nothing else."""

    def __init__(self, path: Path) -> None:
        """Open the file, creating it as needed; here as below a disk that is full, or a damaged
        file, is a StorageError."""
        self._path = path
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS logprobs (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            )

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
            with self._told():
                for key, value in self._file.execute(query, part):
                    found[key] = list(array("f", value))
        return found

    def put(self, logprobs: dict[Key, Sequence[float]]) -> None:
        """Keep these, in one transaction."""
        rows = [(key, array("f", value).tobytes()) for key, value in logprobs.items()]
        with self._told(), self._file:  # commits, or rolls back what failed
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT OR REPLACE INTO logprobs VALUES (?, ?)", rows)

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"The log-probs in {self._path} could not be read or kept",
                got=str(error),
                expected="a whole file, and free space on its disk",
                next="free some space; if the file is damaged, delete it: that loses nothing",
            ) from error
