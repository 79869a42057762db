"""Opening the database: SQLite in WAL mode, or Postgres; on both, writers queue."""

import os
import socket
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url

from trueup.errors import ConfigError
from trueup.store.config import URL_ENV, StoreConfig, postgres_url

__all__ = ["LOCK_TIMEOUT_S", "address", "open_engine", "queue_writer", "shown"]

LOCK_TIMEOUT_S = 30
"""How long a writer waits for its turn."""


def address(config: StoreConfig) -> URL | None:
    """The database to open, the environment's first; None is the SQLite file.

    Raises:
        ConfigError: the environment's is no Postgres URL. Its text is not repeated.
    """
    asked = os.environ.get(URL_ENV, "").strip() or config.url
    try:
        return postgres_url(asked) if asked else None
    except ValueError as error:
        raise ConfigError(
            f"The environment variable {URL_ENV} cannot be used",
            expected=str(error),
            next="mend it, or unset it",
        ) from None


def shown(url: URL | str) -> str:
    """The URL for people: where, and as whom, without a password."""
    url = make_url(url)._replace(drivername="postgresql", password=None)
    return url.difference_update_query(["password", "passfile"]).render_as_string()


def open_engine(url: URL | str) -> Engine:
    """The database behind a URL, configured. A connection with the option `read_only` does not
    queue."""
    address = make_url(url)
    return _sqlite(address) if address.get_backend_name() == "sqlite" else _postgres(address)


def queue_writer(connection: Connection) -> None:
    """On Postgres: wait for the other writers of these tables. Held until the transaction ends.

    So numbers (`seq`) come in the order of commits, equal records from two sides cannot block each
    other, and opening a new store from two machines migrates it once.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            "SELECT pg_advisory_xact_lock(hashtext('trueup write ' || current_schema()))"
        )


def _sqlite(url: URL) -> Engine:
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


def _postgres(url: URL) -> Engine:
    options = f"-c lock_timeout={LOCK_TIMEOUT_S}s"
    if asked := url.query.get("options"):  # such as a search_path of the project's own
        options += f" {asked if isinstance(asked, str) else ' '.join(asked)}"
    engine = create_engine(
        url.set(drivername="postgresql+psycopg").difference_update_query(["options"]),
        pool_pre_ping=True,  # a server that was restarted is found again
        connect_args={
            "application_name": f"trueup {socket.gethostname()} process {os.getpid()}",
            "connect_timeout": 10,
            "options": options,
        },
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        if not connection.get_execution_options().get("read_only"):
            queue_writer(connection)

    return engine
