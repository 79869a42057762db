"""What the disk or the database complains of, as one error a person can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from trueup.errors import StorageError, TrueupError

__all__ = ["storage_errors"]


@contextmanager
def storage_errors(place: Path | str, doing: str = "written") -> Iterator[None]:
    """Turn the database's and the disk's complaints into a StorageError.

    Args:
        place: a folder, or a database as `engine.shown` prints it.
        doing: `written` or `read`.
    """
    try:
        yield
    except TrueupError:
        raise
    except Exception as error:
        # UnicodeDecodeError: SQLite quotes damaged text when it complains of it
        is_ours = isinstance(error, DBAPIError | PoolTimeout | OSError | UnicodeDecodeError)
        # safetensors has no import here; its errors are told by name
        if not is_ours and type(error).__name__ != "SafetensorError":
            raise
        reason = str(getattr(error, "orig", error)).strip()
        is_full = "full" in reason or "No space" in reason
        if isinstance(place, str):
            expected = "a Postgres server that is up, and lets us in"
            hint = "check the server, PGPASSWORD and its disk"
        elif doing == "read":
            expected = "a whole, readable store"
            hint = "check the disk, restore the folder from a backup"
        else:
            expected = "a writable folder with free space"
            hint = "free some space" if is_full else "check the folder"
        raise StorageError(
            f"The store in {place} could not be {doing}"
            + ("; what was written before is safe" if doing == "written" else ""),
            got=reason,
            expected=expected,
            next=f"{hint} and run it again",
        ) from error
