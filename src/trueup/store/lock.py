"""One turn at a time: a file lock beside SQLite, an advisory lock of the server on Postgres.

Neither can be left behind: the kernel, or the server, gives it back when the process is gone.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from trueup.errors import ProjectBusy, StorageError
from trueup.store.errors import storage_errors

__all__ = ["hold_advisory", "hold_file"]

_KEY = "hashtext('trueup turn ' || current_schema())"
TAKE = text(f"SELECT pg_try_advisory_lock({_KEY})")
STILL_HELD = text(f"SELECT pg_advisory_unlock({_KEY})")
HOLDER = text(
    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
    "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    f"AND ((l.classid::bigint << 32) | l.objid::bigint) = {_KEY}::bigint"
)


@contextmanager
def hold_file(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder.

    Raises:
        ProjectBusy: another process holds it. StorageError: the folder cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # unbuffered: closing must not try again what the disk has refused
        lock = open(folder / "turn.lock", "a+b", buffering=0)  # noqa: SIM115  closed below
    with lock:
        with storage_errors(folder):
            _take_file(lock, folder)
        yield


def _take_file(lock: Any, folder: Path) -> None:
    """Lock the file and write down whose it is."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise _busy(folder, f"process {lock.read().decode().strip() or 'unknown'}") from None
    lock.truncate(0)
    lock.write(str(os.getpid()).encode())


@contextmanager
def hold_advisory(engine: Engine, place: Path | str) -> Iterator[None]:
    """Hold the lock on the tables of a Postgres database, for as long as one connection lives.

    Raises:
        ProjectBusy: another process holds it, on this machine or another. StorageError: the server
            cannot be reached, or the connection was lost meanwhile, and with it the lock.
    """
    with storage_errors(place):
        connection = engine.connect().execution_options(
            isolation_level="AUTOCOMMIT", read_only=True
        )
    try:
        with storage_errors(place):
            if not connection.execute(TAKE).scalar_one():
                raise _busy(place, connection.execute(HOLDER).scalar() or "unknown")
        yield
        with storage_errors(place):
            if not connection.execute(STILL_HELD).scalar_one():
                raise StorageError(
                    f"The turn lock in {place} was lost",
                    expected="one connection that lasts as long as the turn",
                    next="connect without a pooler that lends sessions, and see 'trueup status'",
                )
    finally:
        connection.invalidate()  # the session ends, and with it whatever lock it still holds
        connection.close()


def _busy(place: Path | str, holder: str) -> ProjectBusy:
    return ProjectBusy(
        f"Another process is turning the loop in {place}",
        got=holder,
        expected="one turn at a time",
        next="wait for it, or stop that process; nothing was changed",
    )
