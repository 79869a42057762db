"""Many rows at once, for imports: without lineage, and without a record built for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from trueup.records import Record
from trueup.store.tables import ERASED, TABLES

if TYPE_CHECKING:
    from trueup.store.store import Store

__all__ = ["Load", "loading", "row_of"]

Load = Callable[[Mapping[type[Record], Sequence[Sequence[Any]]]], int]
"""Adds rows by kind, each in the order of `row_of`; returns how many were new."""

FAST = {"synchronous": "NORMAL", "cache_size": -64_000, "wal_autocheckpoint": 8000}
USUAL = {"synchronous": "FULL", "cache_size": -2000, "wal_autocheckpoint": 1000}


@contextmanager
def loading(store: "Store") -> Iterator[Load]:
    """Yields what adds a batch of rows, of kinds that have no parents, in one transaction.

    A killed process loses no batch that was added. A power cut may take the last of them, but
    none once the block is left: only then is the disk waited for.
    """
    with store.errors(), store.engine.connect() as connection:
        raw = connection.connection
        if not store.is_postgres:
            _tune(raw, FAST)
        try:
            yield lambda batch: _load(store, connection, batch)
        finally:
            if not store.is_postgres:
                _tune(raw, USUAL)
                raw.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")


def row_of(record: Record) -> tuple[Any, ...]:
    """A record as `loading` takes it: id, time, the indexed fields, the JSON."""
    columns = (getattr(record, name) for name in record.indexed)
    return (record.id, record.created_at, *columns, record.model_dump_json())


def _load(
    store: "Store", connection: Connection, batch: Mapping[type[Record], Sequence[Sequence[Any]]]
) -> int:
    new = 0
    with connection.begin():
        for kind, rows in batch.items():
            kept = _not_erased(store, connection, rows)
            if kept:
                new += _insert(store, connection, kind, kept)
    return new


def _insert(
    store: "Store", connection: Connection, kind: type[Record], rows: list[Sequence[Any]]
) -> int:
    table = TABLES[kind]
    names = [column.name for column in table.columns if column.name != "seq"]
    if not store.is_postgres:  # SQLAlchemy would turn each row into a dictionary and back
        into = ", ".join(f'"{name}"' for name in names)
        places = ", ".join("?" * len(names))
        return connection.exec_driver_sql(
            f'INSERT OR IGNORE INTO "{table.name}" ({into}) VALUES ({places})', rows
        ).rowcount
    statement = store.insert_or_ignore(table).returning(table.c.id)
    named = [dict(zip(names, (*map(store.column, row[:-1]), row[-1]), strict=True)) for row in rows]
    return len(connection.execute(statement, named).fetchall())


def _not_erased(
    store: "Store", connection: Connection, rows: Sequence[Sequence[Any]]
) -> list[Sequence[Any]]:
    """What was erased stays away."""
    if connection.execute(select(ERASED.c.id).limit(1)).first() is None:
        return list(rows)
    gone = store.known(connection, ERASED, [row[0] for row in rows])
    return [row for row in rows if row[0] not in gone]


def _tune(raw: Any, pragmas: Mapping[str, object]) -> None:
    cursor = raw.cursor()
    for name, value in pragmas.items():
        cursor.execute(f"PRAGMA {name}={value}")
    cursor.close()
