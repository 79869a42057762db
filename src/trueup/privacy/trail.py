"""Who did what with people's data, as lines that hold on to each other.

Each line's hash covers the line before it, so one that was changed or taken out of the middle
shows. Lines cut off at the end do not, unless the last hash was noted elsewhere: print it with
`trueup audit-trail` and keep it where this store's owner cannot write.
"""

import getpass
import hashlib
import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select

from trueup.store import Store
from trueup.store.tables import AUDIT_TRAIL

__all__ = ["Entry", "add_entry", "entries", "first_broken", "note"]


class Entry(NamedTuple):
    """One line of the trail."""

    number: int
    at: str
    who: str
    action: str
    """`erase`, `retention`, `export`, `role`, …"""
    details: dict[str, Any]
    """Counts and ids; never a text or a user's own id."""
    hash: str


def note(store: Store, action: str, details: dict[str, Any], *, who: str = "") -> None:
    """Write down that something was done.

    Args:
        who: the name behind a key or a login; by default the user of this machine.
    """
    with store.writing() as connection:
        add_entry(connection, action, details, who=who)


def add_entry(
    connection: Connection, action: str, details: dict[str, Any], *, who: str = ""
) -> None:
    """As `note`, in the transaction that does what is noted: both happen, or neither."""
    query = select(AUDIT_TRAIL).order_by(AUDIT_TRAIL.c.number.desc()).limit(1)
    last = connection.execute(query).first()
    row = {
        "number": last.number + 1 if last else 1,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": who or _user(),
        "action": action,
        "details": json.dumps(details, sort_keys=True),
    }
    row["hash"] = _hash(row, last.hash if last else "")
    connection.execute(insert(AUDIT_TRAIL), row)


def entries(store: Store) -> list[Entry]:
    """Every line, the first first."""
    with store.reading() as connection:
        rows = connection.execute(select(AUDIT_TRAIL).order_by(AUDIT_TRAIL.c.number)).all()
    return [Entry(r.number, r.at, r.who, r.action, json.loads(r.details), r.hash) for r in rows]


def first_broken(store: Store) -> int | None:
    """The number of the first line that is missing or not what it was; None where all hold."""
    before = ""
    with store.reading() as connection:
        rows = connection.execute(select(AUDIT_TRAIL).order_by(AUDIT_TRAIL.c.number)).all()
    for expected, row in enumerate(rows, start=1):
        if row.number != expected or row.hash != _hash(row._asdict(), before):
            return expected
        before = row.hash
    return None


def _hash(row: dict[str, Any], before: str) -> str:
    said = [before, *(row[name] for name in ("number", "at", "who", "action", "details"))]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
