"""What a model said of a text, kept by a hash of the text: a second look costs nothing.

One SQLite file of hashes and numbers. It holds no text.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from trueup.progress import task
from trueup.records import content_hash
from trueup.store import storage_errors

__all__ = ["Remembered"]


class Remembered:
    """Arrays of float32 by key, in a file."""

    def __init__(self, path: Path | None) -> None:
        """
        Args:
            path: made where it is missing; None keeps nothing.
        """
        self.path = path

    def get(
        self,
        name: str,
        by: str,
        texts: Sequence[str],
        make: Callable[[Sequence[int]], Sequence[np.ndarray]],
        *,
        batch: int = 64,
    ) -> list[np.ndarray]:
        """An array for each text.

        Args:
            name: of the work, for its progress bar.
            by: who says it, and how: another one's answers are others.
            make: the arrays of the texts at these places; asked in batches, each kept at once.
        """
        keys = [content_hash([by, text]) for text in texts]
        known = self._read(keys)
        missing: dict[str, int] = {}
        for place, key in enumerate(keys):
            if key not in known:
                missing.setdefault(key, place)
        # texts of like length together: little of a batch is padding
        places = sorted(missing.values(), key=lambda place: len(texts[place]))
        with task(name, len(places)) as advance:
            for at in range(0, len(places), batch):
                part = places[at : at + batch]
                fresh = {
                    keys[place]: np.asarray(one, np.float32)
                    for place, one in zip(part, make(part), strict=True)
                }
                self._keep(fresh)
                known |= fresh
                advance(len(part))
        return [known[key] for key in keys]

    def _read(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        if self.path is None or not self.path.is_file():
            return {}
        wanted, found = set(keys), {}
        with storage_errors(self.path.parent, "read"), closing(self._open()) as connection:
            for at in range(0, len(keys), 500):
                part = list(dict.fromkeys(keys[at : at + 500]))
                marks = ",".join("?" * len(part))
                rows = connection.execute(
                    f"SELECT key, said FROM said WHERE key IN ({marks})", part
                )
                found.update({key: np.frombuffer(said, np.float32) for key, said in rows})
        return {key: said for key, said in found.items() if key in wanted}

    def _keep(self, fresh: dict[str, np.ndarray]) -> None:
        if self.path is None:
            return
        rows = [(key, one.tobytes()) for key, one in fresh.items()]
        with storage_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as connection, connection:
                connection.executemany("INSERT OR IGNORE INTO said VALUES (?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path or "", timeout=30)
        connection.execute("CREATE TABLE IF NOT EXISTS said (key TEXT PRIMARY KEY, said BLOB)")
        return connection
