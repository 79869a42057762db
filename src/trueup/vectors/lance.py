"""The index in LanceDB: a folder of immutable files, a version a commit.

Exact while it is small. From `approximate_from` rows on an inverted file of whole vectors
(IVF_FLAT: no code is lossy, so what is found has its true cosine) answers searches: the more a
filter leaves out, the more of its lists are read, and where it leaves few rows all of these are
compared. Every commit is a version, and files of old versions stay until they are cleaned up; a
deleted vector is in them, too. So a deletion here compacts and cleans up at once, and additions
do when `compact_commits` or `compact_hours` say so. Writers take turns through a file lock, which
the kernel gives back after kill -9: two processes that compact at once would undo each other.
"""

import fcntl
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import lance
import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import Bitmap, BTree, IvfFlat

from trueup.errors import ProjectBusy, StorageError, TrueupError
from trueup.store.tables import column_value
from trueup.vectors.config import VectorsConfig
from trueup.vectors.index import (
    EVERYTHING,
    Filter,
    Hit,
    Row,
    check_size,
    lists_for,
    lists_read,
    microseconds,
    table_name,
)

__all__ = ["LanceIndex"]

T = TypeVar("T")

LOCK_TIMEOUT_S = 120
IDS_A_CLAUSE = 1000
EXACT_BELOW = 500  # rows that a filter leaves
UNINDEXED = 0.1  # share of rows behind the approximate index from which it is extended
GROWN = 2  # times as many lists as there are call for new centres
ROWS_A_FILE = 131_072  # full files are left alone, so a row is rewritten a few times at most
READ_GRACE = timedelta(minutes=2)  # a reader of an old version may still be at it


class LanceIndex:
    """See `trueup.vectors.Index`."""

    def __init__(
        self, folder: Path, config: VectorsConfig, embedder_id: str, *, name: str = ""
    ) -> None:
        """
        Args:
            folder: usually `.trueup/vectors`; made where it is missing.
            name: of a table that is there, whoever's vectors it holds.
        """
        self.name = name or table_name(embedder_id, config.text)
        self.folder, self._config, self._embedder = folder, config, embedder_id
        self._path = folder / f"{self.name}.lance"
        with self._errors("opened"):
            folder.mkdir(parents=True, exist_ok=True)
            # every read looks for a newer version first
            self._db = lancedb.connect(folder, read_consistency_interval=timedelta(0))
        self._opened: Any = None
        self._turn = threading.RLock()
        self._held = 0

    @staticmethod
    def names(folder: Path) -> list[str]:
        """The tables of a folder."""
        return sorted(one.stem for one in folder.glob("*.lance"))

    # --- reading ------------------------------------------------------------------------------

    def count(self, where: Filter = EVERYTHING) -> int:
        return self._read(lambda table: table.count_rows(_condition(where)), 0)

    def ids(self, where: Filter = EVERYTHING) -> set[str]:
        return self._read(
            lambda table: set(_scan(table, where, ["id"])["id"].to_pylist()), set[str]()
        )

    def read(self, where: Filter = EVERYTHING) -> tuple[list[Row], np.ndarray]:
        def every(table: Any) -> tuple[list[Row], np.ndarray]:
            found = _scan(table, where, [*Row._fields, "vector"])
            found = found.sort_by([("created_us", "ascending"), ("id", "ascending")])
            columns = [found[name].to_pylist() for name in Row._fields]
            return [Row(*one) for one in zip(*columns, strict=True)], _matrix(found["vector"])

        return self._read(every, ([], np.zeros((0, 1), np.float32)))

    def search(
        self, vector_D: np.ndarray, k: int, where: Filter = EVERYTHING, *, exact: bool = False
    ) -> list[Hit]:
        def nearest(table: Any) -> list[Hit]:
            check_size(self.name, _size(table), len(vector_D))
            query = table.search(np.asarray(vector_D, np.float32)).distance_type("cosine")
            if condition := _condition(where):
                query = query.where(condition, prefilter=True)
            lists = 0 if exact else self._lists(table, condition)
            query = query.nprobes(lists) if lists else query.bypass_vector_index()
            found = query.select(["id", "_distance"]).limit(k).to_arrow()
            pairs = zip(found["id"].to_pylist(), found["_distance"].to_pylist(), strict=True)
            return [Hit(one, 1 - distance) for one, distance in pairs]

        return self._read(nearest, list[Hit]())

    def _lists(self, table: Any, condition: str | None) -> int:
        """Lists to read for one search; 0 compares every row."""
        rows = table.count_rows()
        if rows < self._config.approximate_from:
            return 0
        left = table.count_rows(condition) if condition else rows
        if left <= EXACT_BELOW:
            return 0
        return lists_read(rows, left)

    # --- writing ------------------------------------------------------------------------------

    def add(self, rows: Sequence[Row], vectors_ND: np.ndarray) -> None:
        if not rows:
            return
        given = self._arrow(rows, vectors_ND)
        with self.writing():
            table = self._table()
            if table is None:
                shutil.rmtree(self._path, ignore_errors=True)  # of a first commit that was killed
                self._opened = self._db.create_table(self.name, given)
                return
            check_size(self.name, _size(table), vectors_ND.shape[1])
            known = set(_scan_ids(table, [row.id for row in rows]))
            fresh = [at for at, row in enumerate(rows) if row.id not in known]
            if fresh:
                table.add(given.take(fresh))

    def mark_raised(self, ids: Iterable[str]) -> None:
        with self.writing():
            table = self._table()
            if table is None:
                return
            for part in _parts(ids):
                table.update(where=f"id IN ({part}) AND NOT raised", values={"raised": True})

    def delete(self, ids: Iterable[str]) -> int:
        with self.writing():
            table = self._table()
            if table is None:
                shutil.rmtree(self._path, ignore_errors=True)  # of a first commit that was killed
                return 0
            before = table.count_rows()
            for part in _parts(ids):
                table.delete(f"id IN ({part})")
            gone = before - table.count_rows()
            self._compact(timedelta(0))  # also where another call deleted, and was killed here
            return gone

    def drop(self) -> None:
        with self.writing():
            self._opened = None
            shutil.rmtree(self._path, ignore_errors=True)

    def close(self) -> None:
        self._opened = None

    # --- order ----------------------------------------------------------------------------------

    def tend(self, *, now: bool = False) -> bool:
        if not (now or self._is_due()):
            return False
        with self.writing():
            if self._table() is None or not (now or self._is_due()):
                return False  # another process was quicker
            self._compact(timedelta(0) if now else READ_GRACE)
            self._build()
        return True

    def _is_due(self) -> bool:
        table = self._read(lambda table: table, None)
        if table is None:
            return False
        versions = self._read(lambda one: one.list_versions(), [])
        made = [one["timestamp"] for one in versions]
        ages = [datetime.now(UTC) - (at if at.tzinfo else at.astimezone()) for at in made]
        is_old = max(ages, default=READ_GRACE) > timedelta(hours=self._config.compact_hours)
        # a younger version stays whatever is done: it must not call for another round at once
        has_many = sum(age > READ_GRACE for age in ages) > self._config.compact_commits
        is_due = has_many or (is_old and len(versions) > 1) or self._wants_index(table)
        return is_due or self._num_small() > self._config.compact_commits

    def _num_small(self) -> int:
        """Files of rows that compacting would merge with others."""
        every = lance.dataset(self._path).get_fragments()
        return sum(one.metadata.num_rows < ROWS_A_FILE for one in every)

    def _wants_index(self, table: Any) -> bool:
        rows = table.count_rows()
        if rows < self._config.approximate_from:
            return False
        built = table.index_stats("vector_idx")
        if built is None or built.num_unindexed_rows > UNINDEXED * rows:
            return True
        parts = lance.dataset(self._path).stats.index_stats("vector_idx")["indices"]
        return lists_for(rows) > GROWN * max(one["num_partitions"] for one in parts)

    def _compact(self, grace: timedelta) -> None:
        """Rewrite what has deletions, merge what is small, and remove what no version needs."""
        data = lance.dataset(self._path)
        data.optimize.compact_files(
            target_rows_per_fragment=ROWS_A_FILE, materialize_deletions_threshold=0.0
        )
        data.optimize.optimize_indices()
        # nobody else writes now: a file that no version names is left over from a kill
        data.cleanup_old_versions(older_than=grace, delete_unverified=not grace)

    def _build(self) -> None:
        """The indexes of columns and vectors that a table of this size needs."""
        table = self._table()
        rows = table.count_rows()
        if rows < self._config.approximate_from:
            return
        there = {one.name for one in table.list_indices()}
        for name in ("id", "created_us", "user", "tenant", "model", "source", "raised"):
            if f"{name}_idx" not in there:
                kind = BTree() if name in ("id", "created_us", "user") else Bitmap()
                table.create_index(name, config=kind)
        if self._wants_index(table):
            lists = IvfFlat(distance_type="cosine", num_partitions=lists_for(rows))
            table.create_index("vector", config=lists, replace=True)
            lance.dataset(self._path).cleanup_old_versions(older_than=READ_GRACE)

    # --- inside -------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock that writers of this folder take turns by.

        Raises:
            ProjectBusy: it was not free for two minutes.
        """
        with self._turn, self._errors("written"):
            if self._held:  # this thread has it already
                yield
                return
            with open(self.folder / "writer.lock", "a+b") as lock:
                _take(lock, self.folder)
                self._held += 1
                try:
                    yield
                finally:
                    self._held -= 1

    def _table(self) -> Any:
        """The table, or None before anything was added."""
        if self._opened is None and _has_version(self._path):
            self._opened = self._db.open_table(self.name)
        return self._opened

    def _read(self, ask: Callable[[Any], T], without: T) -> T:
        """What `ask` finds, or `without` where there is no table yet. Files may go away under a
        reader when another process cleans up or drops; it looks again, once."""
        with self._errors("read"):
            try:
                table = self._table()
                return without if table is None else ask(table)
            except TrueupError:
                raise
            except (RuntimeError, ValueError, OSError):
                self._opened = None
                table = self._table()
                return without if table is None else ask(table)

    def _arrow(self, rows: Sequence[Row], vectors_ND: np.ndarray) -> pa.Table:
        vectors = np.ascontiguousarray(vectors_ND, np.float32)
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("created_us", pa.int64(), nullable=False),
                *(pa.field(name, pa.string()) for name in ("source", "user", "tenant", "model")),
                pa.field("raised", pa.bool_(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), vectors.shape[1]), nullable=False),
            ],
            metadata={"embedder": self._embedder, "text": self._config.text},
        )
        flat = pa.array(vectors.reshape(-1))
        columns = [
            pa.array(one, schema.field(i).type) for i, one in enumerate(zip(*rows, strict=True))
        ]
        vector = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        return pa.table([*columns, vector], schema=schema)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Whatever the library complains of, as one error that says what to do."""
        try:
            yield
        except TrueupError:
            raise
        except (RuntimeError, ValueError, OSError, pa.ArrowException) as error:
            is_full = "No space" in str(error)
            raise StorageError(
                f"The vector index in {self.folder} could not be {doing}",
                got=str(error).splitlines()[0][:300] if str(error) else type(error).__name__,
                expected="free space" if is_full else "a whole index in a writable folder",
                next="free some space and run it again"
                if is_full
                else "trueup embed --rebuild makes it again from the records",
            ) from error


def _has_version(path: Path) -> bool:
    """False for a folder whose first commit was killed before its end: nothing is in it."""
    return any((path / "_versions").glob("*.manifest"))


def _take(lock: Any, folder: Path) -> None:
    """Wait for the lock of a file, and not for ever."""
    until = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise ProjectBusy(
                    f"Another process has been writing to the index in {folder}",
                    got=f"no turn in {LOCK_TIMEOUT_S} seconds",
                    expected="one writer at a time",
                    next="wait for it, or stop that process",
                ) from None
            time.sleep(0.05)


def _size(table: Any) -> int:
    """Numbers a vector."""
    return table.schema.field("vector").type.list_size


def _scan(table: Any, where: Filter, columns: list[str]) -> pa.Table:
    query = table.search().select(columns)
    if condition := _condition(where):
        query = query.where(condition)
    return query.to_arrow()


def _scan_ids(table: Any, ids: list[str]) -> Iterator[str]:
    for part in _parts(ids):
        yield from (
            table.search().where(f"id IN ({part})").select(["id"]).to_arrow()["id"].to_pylist()
        )


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of vectors as (N, D), without going through Python numbers."""
    lists = column.combine_chunks()
    flat = lists.flatten() if not isinstance(lists, pa.ChunkedArray) else lists.chunk(0).flatten()
    return np.asarray(flat, np.float32).reshape(len(lists), column.type.list_size)


def _parts(ids: Iterable[str]) -> Iterator[str]:
    every = sorted(set(ids))
    for at in range(0, len(every), IDS_A_CLAUSE):
        yield ", ".join(_quoted(one) for one in every[at : at + IDS_A_CLAUSE])


def _condition(where: Filter) -> str | None:
    """The filter as SQL of LanceDB, which takes no parameters; None where all rows count."""
    parts = [
        f"raised = {str(value).lower()}" if value in (True, False) else f"{name} = {_quoted(value)}"
        for name, value in where.equals.items()
    ]
    if where.users is not None:
        names = ", ".join(_quoted(column_value(one)) for one in where.users)
        parts.append(f"user IN ({names})" if names else "false")
    if where.since:
        parts.append(f"created_us >= {microseconds(where.since)}")
    if where.until:
        parts.append(f"created_us < {microseconds(where.until)}")
    return " AND ".join(parts) or None


def _quoted(value: object) -> str:
    """A string of SQL: a quote inside it is doubled, nothing else has a meaning there."""
    return "'" + str(value).replace("'", "''") + "'"
