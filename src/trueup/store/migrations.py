"""The store's schema as a list of numbered steps. A step, once released, never changes.

Applied names are rows of the table `migrations`; opening a store applies what is missing, each
step in its own transaction. The last step's result must equal `tables.py`: a test compares them.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, text

from trueup.store.engine import queue_writer

__all__ = ["MIGRATIONS", "applied", "migrate"]

Migration = Callable[[Connection], None]

_M001_COLUMNS = {
    "interaction": ("source", "request_id", '"user"'),
    "feedback": ("interaction_id",),
    "flag": ("interaction_id", "flagger", "raised"),
    "label": ("interaction_id", "annotator", "annotator_kind", "source"),
    "pair": ("prompt_hash",),
    "dataset": (),
    "run": ("dataset_id",),
    "checkpoint": ("run_id", "weights"),
    "samples": ("weights",),
    "guard": ("checkpoint_id", "champion"),
    "eval": ("checkpoint_id", "champion"),
    "ab": ("checkpoint_id", "champion"),
    "release": ("weights",),
}


def m001_initial(connection: Connection) -> None:
    """A table a record kind, the lineage edges, the aliases."""
    for table, columns in _M001_COLUMNS.items():
        _create(connection, table, columns)
    connection.execute(
        text(
            "CREATE TABLE edges (child VARCHAR NOT NULL, parent VARCHAR NOT NULL, "
            "UNIQUE (child, parent))"
        )
    )
    connection.execute(text("CREATE INDEX edges_by_parent ON edges (parent)"))
    connection.execute(
        text("CREATE TABLE aliases (name VARCHAR PRIMARY KEY, release_id VARCHAR NOT NULL)")
    )


def m002_audit(connection: Connection) -> None:
    """Audits of judges."""
    _create(connection, "audit", ("judge", "source"))


def m003_verdicts(connection: Connection) -> None:
    """The verdicts of language models, by what they were asked."""
    connection.execute(
        text("CREATE TABLE verdicts (key VARCHAR PRIMARY KEY, verdict VARCHAR NOT NULL)")
    )


def m004_tasks(connection: Connection) -> None:
    """Review tasks, and whose key a request came with."""
    _create(connection, "task", ("interaction_id", "source"))
    for table, column, value in (("interaction", "tenant", "NULL"), ("label", "task_id", "''")):
        connection.execute(text(f"ALTER TABLE {table} ADD COLUMN {column} VARCHAR"))
        connection.execute(text(f"UPDATE {table} SET {column} = {value}"))
        connection.execute(text(f"CREATE INDEX {table}_by_{column} ON {table} ({column})"))


def m005_privacy(connection: Connection) -> None:
    """What was erased and by which job, the keys of pseudonyms, and who did what."""
    for table in (
        "erased (id VARCHAR PRIMARY KEY, erasure VARCHAR NOT NULL)",
        "erasures (id VARCHAR PRIMARY KEY, started_at VARCHAR NOT NULL, finished_at VARCHAR, "
        "details VARCHAR NOT NULL)",
        "salts (tenant VARCHAR PRIMARY KEY, salt VARCHAR NOT NULL)",
        "audit_trail (number INTEGER PRIMARY KEY, at VARCHAR NOT NULL, who VARCHAR NOT NULL, "
        "action VARCHAR NOT NULL, details VARCHAR NOT NULL, hash VARCHAR NOT NULL)",
    ):
        connection.execute(text(f"CREATE TABLE {table}"))
    connection.execute(text("CREATE INDEX erased_by_erasure ON erased (erasure)"))
    if connection.dialect.name == "postgresql":
        # Postgres's statistics keep samples of a column's values, which erasing would not reach
        for table in (*_M001_COLUMNS, "audit", "task"):
            connection.execute(text(f"ALTER TABLE {table} ALTER COLUMN body SET STATISTICS 0"))
        connection.execute(text('ALTER TABLE interaction ALTER COLUMN "user" SET STATISTICS 0'))


def m006_review(connection: Connection) -> None:
    """The review page's people, sessions, assignments, leases and what each person did."""
    for table in (
        "review_user (name VARCHAR PRIMARY KEY, role VARCHAR NOT NULL, password VARCHAR NOT NULL, "
        "is_active BOOLEAN NOT NULL, created_at VARCHAR NOT NULL)",
        "review_session (token VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, csrf VARCHAR NOT NULL, "
        "until FLOAT NOT NULL)",
        "review_assignment (task_id VARCHAR NOT NULL, name VARCHAR NOT NULL, "
        "assigned_by VARCHAR NOT NULL, UNIQUE (task_id, name))",
        "review_lease (task_id VARCHAR NOT NULL, name VARCHAR NOT NULL, until FLOAT NOT NULL, "
        "UNIQUE (task_id, name))",
        f"review_history (seq {_serial(connection)}, name VARCHAR NOT NULL, "
        "task_id VARCHAR NOT NULL, action VARCHAR NOT NULL, label_ids VARCHAR NOT NULL, "
        "created_at VARCHAR NOT NULL)",
    ):
        connection.execute(text(f"CREATE TABLE {table}"))
    for table in ("session", "assignment", "lease", "history"):
        connection.execute(text(f"CREATE INDEX review_{table}_by_name ON review_{table} (name)"))


_M007_TEXTS = {
    "interaction": ("source", "request_id", '"user"', "tenant", "body"),
    **dict.fromkeys((*list(_M001_COLUMNS)[1:], "audit", "task"), ("body",)),
    "verdicts": ("verdict",),
}


def m007_statistics(connection: Connection) -> None:
    """Postgres keeps no samples of what clients wrote, nor those it took before."""
    if connection.dialect.name != "postgresql":
        return
    for table, columns in _M007_TEXTS.items():
        for column in columns:
            kind = "TEXT" if column == "body" else "VARCHAR"
            change = f"ALTER TABLE {table} ALTER COLUMN {column}"
            connection.execute(text(f"{change} SET STATISTICS 0"))
            # the type it has already: rewrites nothing, and drops the samples that are there
            connection.execute(text(f"{change} TYPE {kind}"))


def _serial(connection: Connection) -> str:
    is_postgres = connection.dialect.name == "postgresql"
    return "SERIAL PRIMARY KEY" if is_postgres else "INTEGER PRIMARY KEY"


def _create(connection: Connection, table: str, columns: tuple[str, ...]) -> None:
    """The table of a record kind, with an index a column."""
    serial = _serial(connection)
    extra = "".join(f", {c} {'BOOLEAN' if c == 'raised' else 'VARCHAR'}" for c in columns)
    connection.execute(
        text(
            f"CREATE TABLE {table} (seq {serial}, id VARCHAR NOT NULL UNIQUE, "
            f"created_at VARCHAR NOT NULL{extra}, body TEXT NOT NULL)"
        )
    )
    for column in columns:
        name = f"{table}_by_{column}".replace('"', "")
        connection.execute(text(f"CREATE INDEX {name} ON {table} ({column})"))


MIGRATIONS: tuple[Migration, ...] = (
    m001_initial,
    m002_audit,
    m003_verdicts,
    m004_tasks,
    m005_privacy,
    m006_review,
    m007_statistics,
)


def applied(connection: Connection) -> set[str]:
    """Names of the steps this store already has."""
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS migrations "
            "(name VARCHAR PRIMARY KEY, applied_at VARCHAR NOT NULL)"
        )
    )
    return {row.name for row in connection.execute(text("SELECT name FROM migrations"))}


def migrate(engine: Engine, steps: tuple[Migration, ...] = MIGRATIONS) -> list[str]:
    """Apply the missing steps in order; returns their names. A failed step leaves no trace."""
    done: list[str] = []
    for step in steps:
        with engine.begin() as connection:
            queue_writer(connection)
            if step.__name__ in applied(connection):
                continue
            step(connection)
            connection.execute(
                text("INSERT INTO migrations VALUES (:name, :at)"),
                {"name": step.__name__, "at": datetime.now(UTC).isoformat()},
            )
            done.append(step.__name__)
    return done
