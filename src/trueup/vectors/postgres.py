"""The index in Postgres with pgvector: a table for each embedder, beside the records.

Exact while it is small; from `approximate_from` rows on an inverted file (IVFFlat) answers
searches. It reads more lists the more a filter leaves out, and pgvector goes on to further ones
until enough rows came through; where the filter leaves few rows, all of these are compared. On
100,000 vectors an HNSW graph was as fast at equal recall and took a dozen times as long to build.

A deleted row's bytes stay in its page after a plain VACUUM, so a deletion rewrites the table. The
server's write-ahead log keeps them until it is recycled, its backups as long as they are kept.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    MetaData,
    String,
    Table,
    and_,
    delete,
    func,
    inspect,
    literal,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from trueup.errors import StorageError
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

__all__ = ["PgIndex"]

PREFIX = "vectors_"
EXACT_BELOW = 10_000  # rows that a filter leaves
MOST_COUNTED = 25_000  # of the rows that a filter leaves; counting them all takes too long
GROWN = 2  # times as many lists as there are call for new centres
IDS_A_CLAUSE = 10_000  # a statement takes 65,535 values
MOST_NUMBERS = 2000  # of a vector in an index
BUILD_MEMORY = "256MB"


class PgIndex:
    """See `trueup.vectors.Index`."""

    def __init__(
        self, engine: Engine, config: VectorsConfig, embedder_id: str, *, name: str = ""
    ) -> None:
        """
        Args:
            engine: of the store.
            name: of a table that is there, whoever's vectors it holds.
        """
        self.name = name or table_name(embedder_id, config.text)
        # this table's writers have a queue of their own, and must not hold up those of the records
        self._engine = engine.execution_options(read_only=True)
        self._config, self._embedder = config, embedder_id
        self._table = Table(
            PREFIX + self.name,
            MetaData(),
            Column("id", String, primary_key=True),
            Column("created_us", BigInteger, nullable=False),
            *(Column(name, String) for name in ("source", "user", "tenant", "model")),
            Column("raised", Boolean, nullable=False),
            Column("vector", Vector, nullable=False),
        )
        self._turn = threading.RLock()
        self._held = 0

    @staticmethod
    def names(engine: Engine) -> list[str]:
        """The tables of a database."""
        found = inspect(engine).get_table_names()
        return sorted(one.removeprefix(PREFIX) for one in found if one.startswith(PREFIX))

    # --- reading ------------------------------------------------------------------------------

    def count(self, where: Filter = EVERYTHING) -> int:
        query = select(func.count()).select_from(self._table).where(self._condition(where))
        return self._read(lambda c: c.execute(query).scalar_one(), 0)

    def ids(self, where: Filter = EVERYTHING) -> set[str]:
        query = select(self._table.c.id).where(self._condition(where))
        return self._read(lambda c: set(c.execute(query).scalars()), set())

    def read(self, where: Filter = EVERYTHING) -> tuple[list[Row], np.ndarray]:
        columns = self._table.c
        query = select(*(columns[name] for name in Row._fields), columns.vector)
        query = query.where(self._condition(where)).order_by(columns.created_us, columns.id)
        found = self._read(lambda c: [tuple(row) for row in c.execute(query)], [])
        if not found:
            return [], np.zeros((0, 1), np.float32)
        vectors = np.array([row[-1] for row in found], np.float32)
        return [Row(*row[:-1]) for row in found], vectors

    def search(
        self, vector_D: np.ndarray, k: int, where: Filter = EVERYTHING, *, exact: bool = False
    ) -> list[Hit]:
        columns, condition = self._table.c, self._condition(where)
        distance = columns.vector.cosine_distance(np.asarray(vector_D, np.float32))
        numbers = select(func.vector_dims(columns.vector)).limit(1)

        def nearest(connection: Any) -> list[Hit]:
            size = connection.execute(numbers).scalar()
            if size is None:
                return []
            check_size(self.name, size, len(vector_D))
            rows = self._reckoned(connection)
            left = rows if where == EVERYTHING else self._left(connection, condition)
            order = distance
            if exact or left <= EXACT_BELOW:
                order = distance + 0.0  # the index sorts by the bare distance alone
            else:
                lists = lists_read(max(rows, left), left)
                connection.execute(text(f"SET LOCAL ivfflat.probes = {lists}"))
                connection.execute(text("SET LOCAL ivfflat.iterative_scan = relaxed_order"))
            query = select(columns.id, distance).where(condition).order_by(order).limit(k)
            found = connection.execute(query)
            hits = [Hit(one, 1 - far) for one, far in found if far == far]  # not of zeros
            return sorted(hits, key=lambda hit: -hit.similarity)  # further lists come behind

        return self._read(nearest, [])

    def _reckoned(self, connection: Any) -> int:
        """Rows of the table as the server last reckoned: to count them is to read them all."""
        query = text("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:name)")
        reckoned = connection.execute(query, {"name": f'"{self._table.name}"'}).scalar_one()
        if reckoned >= 0:
            return int(reckoned)
        return connection.execute(select(func.count()).select_from(self._table)).scalar_one()

    def _left(self, connection: Any, condition: Any) -> int:
        """Rows that a filter leaves, as far as it pays to count."""
        few = select(literal(1)).select_from(self._table).where(condition).limit(MOST_COUNTED)
        return connection.execute(select(func.count()).select_from(few.subquery())).scalar_one()

    # --- writing ------------------------------------------------------------------------------

    def add(self, rows: Sequence[Row], vectors_ND: np.ndarray) -> None:
        if not rows:
            return
        self._make(vectors_ND.shape[1])
        check_size(self.name, self._size() or vectors_ND.shape[1], vectors_ND.shape[1])
        given = [
            {**row._asdict(), "vector": vector}
            for row, vector in zip(rows, np.asarray(vectors_ND, np.float32), strict=True)
        ]
        with self.writing(), self._errors("written"), self._engine.begin() as connection:
            connection.execute(insert(self._table).on_conflict_do_nothing(), given)

    def mark_raised(self, ids: Iterable[str]) -> None:
        wanted = sorted(set(ids))
        if not wanted or not self._is_there():
            return
        with self.writing(), self._errors("written"), self._engine.begin() as connection:
            for part in _parts(wanted):
                query = update(self._table).where(self._table.c.id.in_(part))
                connection.execute(query.where(~self._table.c.raised).values(raised=True))

    def delete(self, ids: Iterable[str]) -> int:
        wanted = sorted(set(ids))
        if not wanted or not self._is_there():
            return 0
        gone = 0
        with self.writing(), self._errors("written"):
            with self._engine.begin() as connection:
                for part in _parts(wanted):
                    query = delete(self._table).where(self._table.c.id.in_(part))
                    gone += connection.execute(query).rowcount
            # also where another call deleted, and was killed here
            self._maintain(f"VACUUM (FULL, ANALYZE) {self._table.name}")
        return gone

    def drop(self) -> None:
        with self.writing(), self._errors("written"), self._engine.begin() as connection:
            self._table.drop(connection, checkfirst=True)

    def close(self) -> None:
        """The engine is the store's to close."""

    # --- order ----------------------------------------------------------------------------------

    def tend(self, *, now: bool = False) -> bool:
        wants_index = self._wants_index()
        if not (now or wants_index) or not self._is_there():
            return False
        with self.writing(), self._errors("written"):
            if now:  # otherwise the server's own autovacuum sees to it
                self._maintain(f"VACUUM (ANALYZE) {self._table.name}")
            if self._wants_index():
                self._build()
        return True

    def _wants_index(self) -> bool:
        if self.count() < self._config.approximate_from or self._size() > MOST_NUMBERS:
            return False
        return lists_for(self.count()) > GROWN * self._lists()

    def _lists(self) -> int:
        """Lists of the index; 0 where there is none."""
        query = text("SELECT reloptions[1] FROM pg_class WHERE relname = :name")
        found = self._read(lambda c: c.execute(query, {"name": self._index("vector")}).scalar(), "")
        return int(found.partition("=")[2]) if found else 0

    def _build(self) -> None:
        name = self._table.name
        for column in ("created_us", "user", "tenant", "model", "source", "raised"):
            self._maintain(
                f'CREATE INDEX IF NOT EXISTS {self._index(column)} ON {name} ("{column}")'
            )
        self._maintain(f"DROP INDEX IF EXISTS {self._index('vector')}")
        self._maintain(
            f"CREATE INDEX {self._index('vector')} ON {name} "
            f"USING ivfflat (vector vector_cosine_ops) WITH (lists = {lists_for(self.count())})"
        )
        self._maintain(f"ANALYZE {name}")

    def _index(self, column: str) -> str:
        return f"{self._table.name}_{column}"

    def _size(self) -> int:
        """Numbers a vector; 0 where there is none."""
        query = select(func.vector_dims(self._table.c.vector)).limit(1)
        return self._read(lambda c: c.execute(query).scalar(), 0) or 0

    # --- inside -------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold an advisory lock of the database; the server gives it back when a process dies."""
        with self._turn:
            if self._held:
                yield
                return
            key = func.hashtextextended(self._table.name, 0)
            with self._engine.connect() as connection:
                connection.execute(select(func.pg_advisory_lock(key)))
                connection.commit()
                self._held += 1
                try:
                    yield
                finally:
                    self._held -= 1
                    connection.execute(select(func.pg_advisory_unlock(key)))
                    connection.commit()

    def _is_there(self) -> bool:
        return inspect(self._engine).has_table(self._table.name)

    def _make(self, size: int) -> None:
        """The table for vectors of `size` numbers, where it is missing."""
        if self._is_there():
            return
        self._table.c.vector.type = Vector(size)
        with self.writing(), self._errors("made"), self._engine.begin() as connection:
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
            self._table.create(connection, checkfirst=True)
            said = f"{self._config.text}, {self._embedder}".replace("'", "''").replace(":", r"\:")
            connection.execute(text(f"COMMENT ON TABLE {self._table.name} IS '{said}'"))

    def _maintain(self, statement: str) -> None:
        """Run what cannot run inside a transaction."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"SET maintenance_work_mem = '{BUILD_MEMORY}'"))
            connection.execute(text(statement))
            connection.execute(text("RESET maintenance_work_mem"))

    def _read(self, ask: Callable[[Any], Any], without: Any) -> Any:
        """What `ask` finds, or `without` where there is no table yet."""
        with self._errors("read"):
            try:
                with self._engine.begin() as connection:
                    return ask(connection)
            except SQLAlchemyError as error:
                if getattr(getattr(error, "orig", None), "sqlstate", "") == "42P01":
                    return without  # undefined table
                raise

    def _condition(self, where: Filter) -> Any:
        columns = self._table.c
        parts = [columns[name] == value for name, value in where.equals.items()]
        if where.users is not None:
            parts.append(columns.user.in_([column_value(one) for one in where.users]))
        if where.since:
            parts.append(columns.created_us >= microseconds(where.since))
        if where.until:
            parts.append(columns.created_us < microseconds(where.until))
        return and_(true(), *parts)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", error)).splitlines()
            needs_extension = any("extension" in line for line in reason)
            raise StorageError(
                f"The vector index {self._table.name} could not be {doing}",
                got=reason[0] if reason else type(error).__name__,
                expected="a Postgres with pgvector 0.8 or newer" if needs_extension else "a server",
                next="install pgvector on the server, or set vectors.backend to 'lancedb'"
                if needs_extension
                else "check the server; trueup embed --rebuild makes the index again",
            ) from error


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(ids), IDS_A_CLAUSE):
        yield ids[at : at + IDS_A_CLAUSE]
