"""Where records live: a folder with one SQLite file, and the weights beside it.

    .trueup/
    ├── store.sqlite      records, lineage, aliases
    ├── checkpoints/      one folder a checkpoint: safetensors and a JSON card
    ├── runs/             half-finished training, to resume from
    └── reports/          HTML pages

Adding is idempotent (an id already there is left alone), a batch is one transaction, and what
was added is on disk when `add` returns.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, create_engine, event, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError

from trueup.errors import DataError, ProjectBusy, RecordNotFound, StorageError, TrueupError
from trueup.records import Record, Release
from trueup.store.migrations import migrate
from trueup.store.tables import ALIASES, EDGES, TABLES, VERDICTS, kind_of

__all__ = ["CHAMPION", "Store", "storage_errors"]

R = TypeVar("R", bound=Record)

CHAMPION = "champion"
LOCK_TIMEOUT_S = 30
IN_CLAUSE = 500  # SQLite's oldest limit on bound variables is 999


class Store:
    """Records in, records out. Safe to open from several processes at once."""

    def __init__(self, folder: Path | str, *, url: str | None = None) -> None:
        """Open the store in `folder`, creating and migrating it as needed.

        Args:
            url: any SQLAlchemy URL; by default the SQLite file in the folder.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.folder = Path(folder).resolve()
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._engine = _engine(url or f"sqlite:///{self.folder / 'store.sqlite'}")
            migrate(self._engine)
        self._reader = self._engine.execution_options(read_only=True)

    @property
    def engine(self) -> Engine:
        """The database, for tables that hold no records."""
        return self._engine

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """A connection that does not queue with the writers."""
        with storage_errors(self.folder, "read"), self._reader.connect() as connection:
            yield connection.execution_options(stream_results=True)

    def close(self) -> None:
        """Give back the connections. The store can be opened again at once."""
        self._engine.dispose()

    # --- writing ------------------------------------------------------------------------------

    def add(self, *records: Record) -> int:
        """Write records and their lineage in one transaction; returns how many were new."""
        return self.add_all(records)

    def add_all(self, records: Iterable[Record]) -> int:
        """As `add`, for many. All or nothing."""
        by_kind: dict[type[Record], list[Record]] = {}
        for record in records:
            by_kind.setdefault(type(record), []).append(record)
        new = 0
        with storage_errors(self.folder), self._engine.begin() as connection:
            for kind, group in by_kind.items():
                statement = self._insert_or_ignore(TABLES[kind])
                known = self._known(connection, kind, [r.id for r in group])
                fresh = {r.id: r for r in group if r.id not in known}
                if not fresh:
                    continue
                connection.execute(statement, [_row(kind, r) for r in fresh.values()])
                edges = [
                    {"child": r.id, "parent": p} for r in fresh.values() for p in set(r.parents())
                ]
                if edges:
                    connection.execute(self._insert_or_ignore(EDGES), edges)
                new += len(fresh)
        return new

    def release(self, release: Release) -> None:
        """Record a release and move the alias `champion` to it, in one transaction."""
        with storage_errors(self.folder), self._engine.begin() as connection:
            connection.execute(self._insert_or_ignore(TABLES[Release]), [_row(Release, release)])
            edges = [{"child": release.id, "parent": p} for p in set(release.parents())]
            if edges:
                connection.execute(self._insert_or_ignore(EDGES), edges)
            connection.execute(ALIASES.delete().where(ALIASES.c.name == CHAMPION))
            connection.execute(insert(ALIASES), [{"name": CHAMPION, "release_id": release.id}])

    # --- reading ------------------------------------------------------------------------------

    def get(self, kind: type[R], record_id: str) -> R:
        """The record with this id.

        Raises:
            RecordNotFound: there is none.
        """
        found = self.get_all(kind, [record_id])
        if not found:
            raise RecordNotFound(
                f"There is no {kind.tag} with this id in {self.folder}",
                got=record_id,
                expected=f"an id that starts with '{kind.tag}_'",
                next="list them with 'trueup status'",
            )
        return found[0]

    def get_all(self, kind: type[R], ids: Iterable[str]) -> list[R]:
        """The records with these ids that exist, in the order asked for."""
        wanted, found, table = list(ids), {}, TABLES[kind]
        with self._reading() as connection:
            for at in range(0, len(wanted), IN_CLAUSE):
                part = wanted[at : at + IN_CLAUSE]
                for row in connection.execute(select(table).where(table.c.id.in_(part))):
                    found[row.id] = _record(kind, row)
        return [found[one] for one in wanted if one in found]

    def all(self, kind: type[R], **equals: Any) -> list[R]:
        """Every record of a kind whose indexed fields equal these, oldest first."""
        return list(self.each(kind, **equals))

    def each(self, kind: type[R], **equals: Any) -> Iterator[R]:
        """As `all`, one at a time, for kinds with many records."""
        table = TABLES[kind]
        query = select(table).order_by(table.c.seq)
        for name, value in equals.items():
            query = query.where(table.c[name] == value)
        with self._reading() as connection:
            for row in connection.execute(query):
                yield _record(kind, row)

    def last(self, kind: type[R], **equals: Any) -> R | None:
        """The newest record of a kind whose indexed fields equal these."""
        table = TABLES[kind]
        query = select(table).order_by(table.c.seq.desc()).limit(1)
        for name, value in equals.items():
            query = query.where(table.c[name] == value)
        with self._reading() as connection:
            row = connection.execute(query).first()
        return _record(kind, row) if row else None

    def count(self, kind: type[Record], **equals: Any) -> int:
        """How many records of a kind there are."""
        from sqlalchemy import func

        table = TABLES[kind]
        query = select(func.count()).select_from(table)
        for name, value in equals.items():
            query = query.where(table.c[name] == value)
        with self._reading() as connection:
            return connection.execute(query).scalar_one()

    def champion(self) -> Release | None:
        """The release that serves, or None before the first."""
        with self._reading() as connection:
            row = connection.execute(select(ALIASES).where(ALIASES.c.name == CHAMPION)).first()
        return self.get(Release, row.release_id) if row else None

    # --- lineage ------------------------------------------------------------------------------

    def parents(self, record_id: str) -> list[Record]:
        """The records this one was made from."""
        return self._linked(EDGES.c.parent, EDGES.c.child == record_id)

    def children(self, record_id: str) -> list[Record]:
        """The records made from this one."""
        return self._linked(EDGES.c.child, EDGES.c.parent == record_id)

    def used(self, kind: type[Record]) -> set[str]:
        """Ids of all parents of records of a kind: the labels that gave pairs, and the like."""
        child, table = TABLES[kind], EDGES
        query = select(table.c.parent).join(child, child.c.id == table.c.child).distinct()
        with self._reading() as connection:
            return set(connection.execute(query).scalars())

    def _linked(self, wanted: Any, condition: Any) -> list[Record]:
        with self._reading() as connection:
            ids = list(connection.execute(select(wanted).where(condition)).scalars())
        found: list[Record] = []
        for one in sorted(ids):
            kind = kind_of(one)
            found.extend(self.get_all(kind, [one]) if kind else [])
        return found

    # --- a judge's verdicts -----------------------------------------------------------------------

    def remembered(self, keys: Sequence[str]) -> dict[str, str]:
        """The verdicts that were kept under these keys."""
        found, table = {}, VERDICTS
        with self._reading() as connection:
            for at in range(0, len(keys), IN_CLAUSE):
                part = keys[at : at + IN_CLAUSE]
                for row in connection.execute(select(table).where(table.c.key.in_(part))):
                    found[row.key] = row.verdict
        return found

    def remember(self, verdicts: dict[str, str]) -> None:
        """Keep verdicts under their keys; one that is there already stays."""
        if not verdicts:
            return
        rows = [{"key": key, "verdict": verdict} for key, verdict in verdicts.items()]
        with storage_errors(self.folder), self._engine.begin() as connection:
            connection.execute(self._insert_or_ignore(VERDICTS), rows)

    # --- one turn at a time ---------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the project's turn lock; the kernel gives it back even after kill -9.

        Raises:
            ProjectBusy: another process holds it; the message names the process.
            StorageError: the folder cannot be written.
        """
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # unbuffered: closing must not try again what the disk has refused
            lock = open(self.folder / "turn.lock", "a+b", buffering=0)  # noqa: SIM115  closed below
        with lock:
            with storage_errors(self.folder):
                self._take(lock)
            yield

    def _take(self, lock: Any) -> None:
        """Lock the file and write down whose it is."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ProjectBusy(
                f"Another process is turning the loop in {self.folder}",
                got=f"process {lock.read().decode().strip() or 'unknown'}",
                expected="one turn at a time",
                next="wait for it, or stop that process; nothing was changed",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())

    # --- inside -------------------------------------------------------------------------------

    def _insert_or_ignore(self, table: Any) -> Any:
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table).on_conflict_do_nothing()

    def _known(self, connection: Any, kind: type[Record], ids: list[str]) -> set[str]:
        table, known = TABLES[kind], set()
        for at in range(0, len(ids), IN_CLAUSE):
            part = ids[at : at + IN_CLAUSE]
            known.update(
                connection.execute(select(table.c.id).where(table.c.id.in_(part))).scalars()
            )
        return known


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url)
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # safe against a power cut, too
        cursor.execute("PRAGMA secure_delete=ON")  # erased text must leave the file
        cursor.close()
        # Python's sqlite3 would begin transactions late and leave table changes out of them
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # a writer takes its place in the queue at once: one that read first could not wait
        reads = connection.get_execution_options().get("read_only")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def storage_errors(folder: Path, doing: str = "written") -> Iterator[None]:
    """Turn the database's and the disk's complaints into one error a person can act on."""
    try:
        yield
    except TrueupError:
        raise
    except Exception as error:
        # UnicodeDecodeError: SQLite quotes damaged text when it complains of it
        is_ours = isinstance(error, DatabaseError | OSError | UnicodeDecodeError)
        # safetensors has no import here; its errors are told by name
        if not is_ours and type(error).__name__ != "SafetensorError":
            raise
        reason = str(getattr(error, "orig", error))
        hint = "free some space" if "full" in reason or "No space" in reason else "check the folder"
        if doing == "read":
            hint = "check the disk, restore the folder from a backup"
        raise StorageError(
            f"The store in {folder} could not be {doing}"
            + ("; what was written before is safe" if doing == "written" else ""),
            got=reason,
            expected="a writable folder with free space"
            if doing == "written"
            else "a whole, readable store",
            next=f"{hint} and run it again",
        ) from error


def _row(kind: type[Record], record: Record) -> dict[str, Any]:
    columns = {name: getattr(record, name) for name in kind.indexed}
    return {
        "id": record.id,
        "created_at": record.created_at,
        "body": record.model_dump_json(),
        **columns,
    }


def _record(kind: type[R], row: Any) -> R:
    try:
        return kind.model_validate_json(row.body)
    except ValueError as error:
        raise DataError(
            f"The stored {kind.tag} '{row.id}' cannot be read",
            got=str(row.body)[:80],  # a damaged file may have lost it
            expected="a record of this version",
            next="restore the store from a backup",
        ) from error
