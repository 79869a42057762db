"""Where records live: a folder with one SQLite file, or Postgres; the weights are beside it.

    .trueup/
    ├── store.sqlite      records, lineage, aliases; absent where they are in Postgres
    ├── checkpoints/      one folder a checkpoint: safetensors and a JSON card
    ├── runs/             half-finished training, to resume from
    └── reports/          HTML pages

Adding is idempotent (an id already there is left alone, one that was erased stays away), a batch
is one transaction, and what was added is on disk when `add` returns. Writers queue, on either
database: what one adds has higher numbers than what was there, so whoever reads on from a number
misses nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL

from trueup.errors import DataError, RecordNotFound
from trueup.records import Record, Release
from trueup.store.engine import open_engine, shown
from trueup.store.errors import storage_errors
from trueup.store.loading import Load, loading
from trueup.store.lock import hold_advisory, hold_file
from trueup.store.migrations import migrate
from trueup.store.tables import (
    ALIASES,
    EDGES,
    ERASED,
    ERASURES,
    TABLES,
    VERDICTS,
    column_value,
    kind_of,
)

__all__ = ["CHAMPION", "Store", "storage_errors"]

R = TypeVar("R", bound=Record)

CHAMPION = "champion"
IN_CLAUSE = 500  # SQLite's oldest limit on bound variables is 999
CLOCKS_DIFFER = timedelta(minutes=1)  # those of several machines that share a store


class Store:
    """Records in, records out. Safe to open from several processes at once."""

    def __init__(self, folder: Path | str, *, url: URL | str | None = None) -> None:
        """Open the store in `folder`, creating and migrating it as needed.

        Args:
            url: a Postgres database; by default the SQLite file in the folder.

        Raises:
            StorageError: the folder cannot be written, or the database not be reached.
        """
        self.folder = Path(folder).resolve()
        self._place: Path | str = shown(url) if url else self.folder
        with self.errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._engine = open_engine(url or f"sqlite:///{self.folder / 'store.sqlite'}")
            migrate(self._engine)
        self._reader = self._engine.execution_options(read_only=True)

    @property
    def engine(self) -> Engine:
        """The database, for tables that are no records. A transaction of it queues with every
        other writer: keep it short."""
        return self._engine

    @property
    def is_postgres(self) -> bool:
        """True where records are in Postgres, False for the SQLite file."""
        return self._engine.dialect.name == "postgresql"

    def errors(self, doing: str = "written") -> AbstractContextManager[None]:
        """Turns what the database complains of into a StorageError that names this store."""
        return storage_errors(self._place, doing)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that does not queue with the writers."""
        with self.errors("read"), self._reader.connect() as connection:
            yield connection.execution_options(stream_results=True)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that has waited for its turn to write."""
        with self.errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def cleaning(self) -> Iterator[Connection]:
        """A connection outside of any transaction, for what allows none: vacuums, checkpoints."""
        with self.errors(), self._reader.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Give back the connections. The store can be opened again at once."""
        self._engine.dispose()

    # --- writing ------------------------------------------------------------------------------

    def add(self, *records: Record) -> int:
        """Write records and their lineage in one transaction; returns how many were new."""
        return self.add_all(records)

    def add_all(self, records: Iterable[Record]) -> int:
        """As `add`, for many. All or nothing. What makes the records may itself use the store."""
        made = list(records)
        with self.writing() as connection:
            return self._add(connection, made)

    def add_late(self, records: Sequence[Record]) -> int:
        """As `add_all`, for records that somebody held back: an erasure since then could not find
        them. Where there was one, whoever it was for, nothing is written."""
        with self.writing() as connection:
            last = connection.execute(select(func.max(ERASURES.c.started_at))).scalar()
            if last and min(one.created_at for one in records) < _soon_after(last):
                return 0
            return self._add(connection, records)

    def _add(self, connection: Connection, records: Iterable[Record]) -> int:
        by_kind: dict[type[Record], list[Record]] = {}
        for record in records:
            by_kind.setdefault(type(record), []).append(record)
        new = 0
        for kind, group in by_kind.items():
            statement = self.insert_or_ignore(TABLES[kind])
            known = self.known(connection, TABLES[kind], [r.id for r in group])
            fresh = {r.id: r for r in group if r.id not in known}
            for one in self._erased(connection, fresh.values()):
                del fresh[one]
            if not fresh:
                continue
            connection.execute(statement, [self._row(kind, r) for r in fresh.values()])
            edges = [{"child": r.id, "parent": p} for r in fresh.values() for p in set(r.parents())]
            if edges:
                connection.execute(self.insert_or_ignore(EDGES), edges)
            new += len(fresh)
        return new

    def loading(self) -> AbstractContextManager[Load]:
        """For many rows at once, see `trueup.store.loading`."""
        return loading(self)

    def release(self, release: Release) -> None:
        """Record a release and move the alias `champion` to it, in one transaction."""
        with self.writing() as connection:
            connection.execute(
                self.insert_or_ignore(TABLES[Release]), [self._row(Release, release)]
            )
            edges = [{"child": release.id, "parent": p} for p in set(release.parents())]
            if edges:
                connection.execute(self.insert_or_ignore(EDGES), edges)
            upsert = self._insert(ALIASES).on_conflict_do_update(
                index_elements=["name"], set_={"release_id": release.id}
            )
            connection.execute(upsert, {"name": CHAMPION, "release_id": release.id})

    # --- reading ------------------------------------------------------------------------------

    def get(self, kind: type[R], record_id: str) -> R:
        """The record with this id.

        Raises:
            RecordNotFound: there is none.
        """
        found = self.get_all(kind, [record_id])
        if not found:
            with self.reading() as connection:
                if self.known(connection, ERASED, [record_id]):
                    raise RecordNotFound(
                        f"This {kind.tag} was erased",
                        got=record_id,
                        expected="a record that is still there",
                        next="see why with 'trueup audit-trail'",
                    )
            raise RecordNotFound(
                f"There is no {kind.tag} with this id in {self._place}",
                got=record_id,
                expected=f"an id that starts with '{kind.tag}_'",
                next="list them with 'trueup status'",
            )
        return found[0]

    def get_all(self, kind: type[R], ids: Iterable[str]) -> list[R]:
        """The records with these ids that exist, in the order asked for."""
        wanted, found, table = list(ids), {}, TABLES[kind]
        with self.reading() as connection:
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
            query = query.where(table.c[name] == self.column(value))
        with self.reading() as connection:
            for row in connection.execute(query):
                yield _record(kind, row)

    def values(
        self, kind: type[Record], *columns: str, among: Iterable[str] | None = None, **equals: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Columns alone of the records that `each` would give, without reading their bodies.

        Args:
            among: only the records with these ids; they may come in another order.
        """
        table = TABLES[kind]
        query = select(*(table.c[name] for name in columns)).order_by(table.c.seq)
        for name, value in equals.items():
            query = query.where(table.c[name] == self.column(value))
        wanted = None if among is None else list(among)
        with self.reading() as connection:
            if wanted is None:
                yield from map(tuple, connection.execute(query))
                return
            for at in range(0, len(wanted), IN_CLAUSE):
                part = query.where(table.c.id.in_(wanted[at : at + IN_CLAUSE]))
                yield from map(tuple, connection.execute(part))

    def last(self, kind: type[R], **equals: Any) -> R | None:
        """The newest record of a kind whose indexed fields equal these."""
        table = TABLES[kind]
        query = select(table).order_by(table.c.seq.desc()).limit(1)
        for name, value in equals.items():
            query = query.where(table.c[name] == self.column(value))
        with self.reading() as connection:
            row = connection.execute(query).first()
        return _record(kind, row) if row else None

    def count(self, kind: type[Record], **equals: Any) -> int:
        """How many records of a kind there are."""
        table = TABLES[kind]
        query = select(func.count()).select_from(table)
        for name, value in equals.items():
            query = query.where(table.c[name] == self.column(value))
        with self.reading() as connection:
            return connection.execute(query).scalar_one()

    def champion(self) -> Release | None:
        """The release that serves, or None before the first."""
        with self.reading() as connection:
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
        with self.reading() as connection:
            return set(connection.execute(query).scalars())

    def _linked(self, wanted: Any, condition: Any) -> list[Record]:
        with self.reading() as connection:
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
        with self.reading() as connection:
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
        with self.writing() as connection:
            connection.execute(self.insert_or_ignore(VERDICTS), rows)

    # --- one turn at a time ---------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the project's turn lock, given back even after kill -9: by the kernel, or by the
        server, whose lock holds across machines.

        Raises:
            ProjectBusy: another process holds it; the message names the process.
            StorageError: the folder cannot be written, or the server not be reached; or its lock
                was lost on the way.
        """
        if self.is_postgres:
            lock = hold_advisory(self._engine, self._place)
        else:
            lock = hold_file(self.folder)
        with lock:
            yield

    # --- inside -------------------------------------------------------------------------------

    def _insert(self, table: Any) -> Any:
        return (postgresql if self.is_postgres else sqlite).insert(table)

    def insert_or_ignore(self, table: Any) -> Any:
        """An insertion that leaves alone what is there."""
        return self._insert(table).on_conflict_do_nothing()

    def column(self, value: Any) -> Any:
        """A value as this database's columns hold it."""
        return column_value(value) if self.is_postgres else value

    def _row(self, kind: type[Record], record: Record) -> dict[str, Any]:
        columns = {name: self.column(getattr(record, name)) for name in kind.indexed}
        return {
            "id": record.id,
            "created_at": record.created_at,
            "body": record.model_dump_json(),
            **columns,
        }

    def known(self, connection: Connection, table: Any, ids: Sequence[str]) -> set[str]:
        """Which of these ids the table has."""
        known = set[str]()
        for at in range(0, len(ids), IN_CLAUSE):
            part = ids[at : at + IN_CLAUSE]
            known.update(
                connection.execute(select(table.c.id).where(table.c.id.in_(part))).scalars()
            )
        return known

    def _erased(self, connection: Connection, records: Iterable[Record]) -> list[str]:
        """Ids of those that were erased, or were made of what was: they stay away. A list of what
        something was made of (a data set) is no text, and may name what is gone."""
        if connection.execute(select(ERASED.c.id).limit(1)).first() is None:
            return []
        made_of = {r.id: [r.id, *(() if r.tag == "dataset" else r.parents())] for r in records}
        asked = list(dict.fromkeys(one for ids in made_of.values() for one in ids))
        gone = self.known(connection, ERASED, asked)
        return [one for one, ids in made_of.items() if not gone.isdisjoint(ids)]


def _soon_after(time: str) -> str:
    return (datetime.fromisoformat(time) + CLOCKS_DIFFER).isoformat(timespec="microseconds")


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
