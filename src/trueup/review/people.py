"""Who may log in: names, roles, passwords, sessions.

A password is kept as scrypt (N = 2^14, r = 8, p = 5, a salt each), a session as the hash of its
token. Roles contain each other: an annotator answers, a lead also sees the team, assigns and
settles what others disagree on, an admin also lets people in.
"""

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Literal, NamedTuple, get_args

from sqlalchemy import Connection, delete, insert, select, update

from trueup.errors import DataError
from trueup.privacy.trail import add_entry
from trueup.store import Store, storage_errors
from trueup.store.tables import REVIEW_SESSIONS, REVIEW_USERS

__all__ = ["ROLES", "People", "Person", "Role", "Session", "TooManyAttempts", "as_role"]

Role = Literal["annotator", "lead", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

SHORTEST_PASSWORD = 10
LONGEST_PASSWORD = 1024
COST = {"n": 2**14, "r": 8, "p": 5, "maxmem": 2**26}
WINDOW_S = 300.0
MOST_FAILURES = 10
"""Failed logins of one name, or from one address, in the window."""
MOST_KEYS = 10_000


class TooManyAttempts(DataError):
    """Too many failed logins; the password is not even looked at."""


class Person(NamedTuple):
    """Somebody who may log in, or once might."""

    name: str
    role: Role
    is_active: bool
    created_at: str

    def may(self, role: Role) -> bool:
        """True where this person's role contains that one."""
        return self.is_active and ROLES.index(self.role) >= ROLES.index(role)


class Session(NamedTuple):
    """A person who is logged in, and the token that their forms carry."""

    person: Person
    csrf: str


class People:
    """The table of people and that of sessions."""

    def __init__(self, store: Store, *, session_h: float = 12.0) -> None:
        self._store, self._session_s = store, session_h * 3600
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = threading.Lock()
        self._hashing = threading.BoundedSemaphore(2)  # 16 MB and a core each

    # --- people -------------------------------------------------------------------------------

    def add(self, name: str, password: str, role: Role, *, by: str = "") -> Person:
        """Let somebody in.

        Args:
            by: who does so, for the audit trail; by default the user of this machine.

        Raises:
            DataError: the name is taken or odd, or the password is short.
        """
        # a name is part of an address: not a step up, and not another's twin in JSON
        if not re.fullmatch(r"\w[\w.@+-]{0,63}", name) or name.endswith(".json"):
            raise DataError(
                "This name cannot be used",
                got=name,
                expected="1 to 64 letters, digits or any of . _ @ + -, the first a letter or a "
                "digit, the last not .json",
            )
        if self.get(name):
            raise DataError(
                "This name is taken",
                got=name,
                expected="a new one",
                next="'trueup review user list' shows who is there",
            )
        row = {
            "name": name,
            "role": role,
            "password": self._scrypt(_long_enough(password)),
            "is_active": True,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with storage_errors(self._store.folder), self._store.engine.begin() as connection:
            connection.execute(insert(REVIEW_USERS), [row])
            add_entry(connection, "role", {"name": name, "role": role, "is_new": True}, who=by)
        return Person(name, role, True, row["created_at"])

    def change(
        self,
        name: str,
        *,
        role: Role | None = None,
        password: str | None = None,
        is_active: bool | None = None,
        by: str = "",
    ) -> Person:
        """Change what is given. Whoever is logged in under that name has to log in again.

        Args:
            by: who does so, for the audit trail; by default the user of this machine.

        Raises:
            DataError: there is nobody of that name, the password is short, or no active admin
                would be left.
        """
        person = self.get(name)
        if person is None:
            raise DataError(
                "There is nobody of this name",
                got=name,
                expected="a name that was added",
                next="'trueup review user list' shows who is there",
            )
        new: dict[str, object] = {"role": role or person.role}
        new["is_active"] = person.is_active if is_active is None else is_active
        if password is not None:
            new["password"] = self._scrypt(_long_enough(password))
        admins = [one for one in self.all() if one.may("admin") and one.name != name]
        stays = new["role"] == "admin" and new["is_active"]
        if person.may("admin") and not stays and not admins:
            raise DataError(
                "Nobody could let people in any more",
                got=f"{name}, the only admin",
                expected="another admin first",
            )
        with storage_errors(self._store.folder), self._store.engine.begin() as connection:
            connection.execute(
                update(REVIEW_USERS).where(REVIEW_USERS.c.name == name).values(**new)
            )
            connection.execute(delete(REVIEW_SESSIONS).where(REVIEW_SESSIONS.c.name == name))
            told = {
                "name": name,
                "role": new["role"],
                "before": person.role,
                "is_active": new["is_active"],
                "has_new_password": password is not None,
            }
            add_entry(connection, "role", told, who=by)
        return person._replace(role=role or person.role, is_active=bool(new["is_active"]))

    def get(self, name: str) -> Person | None:
        """The person of this name."""
        return next((one for one in self.all() if one.name == name), None)

    def all(self) -> list[Person]:
        """Everybody, by name."""
        with self._reading() as connection:
            rows = connection.execute(select(REVIEW_USERS).order_by(REVIEW_USERS.c.name)).all()
        return [Person(r.name, r.role, bool(r.is_active), r.created_at) for r in rows]

    # --- logging in ---------------------------------------------------------------------------

    def log_in(self, name: str, password: str, *, address: str = "") -> str | None:
        """The token of a new session; None for a wrong name or password, which take equally long.

        Raises:
            TooManyAttempts: of this name or from this address, of late.
        """
        keys = (f"name {name[:64]}", f"address {address}")
        # counted before it is known, so that many at once are no way around
        at = self._count_attempt(keys)
        with self._reading() as connection:
            row = connection.execute(
                select(REVIEW_USERS).where(REVIEW_USERS.c.name == name)
            ).first()
        kept = row.password if row else NOBODY
        is_right = self._is(password, kept) and row is not None and bool(row.is_active)
        if not is_right:
            return None
        self._forget_attempt(keys, at)
        token = secrets.token_urlsafe(32)
        session = {
            "token": _hash(token),
            "name": name,
            "csrf": secrets.token_urlsafe(32),
            "until": time.time() + self._session_s,
        }
        with storage_errors(self._store.folder), self._store.engine.begin() as connection:
            connection.execute(delete(REVIEW_SESSIONS).where(REVIEW_SESSIONS.c.until < time.time()))
            connection.execute(insert(REVIEW_SESSIONS), [session])
        return token

    def session(self, token: str | None) -> Session | None:
        """Who holds this token, if it still counts."""
        if not token:
            return None
        joined = REVIEW_SESSIONS.join(REVIEW_USERS, REVIEW_USERS.c.name == REVIEW_SESSIONS.c.name)
        query = (
            select(REVIEW_USERS, REVIEW_SESSIONS.c.csrf)
            .select_from(joined)
            .where(REVIEW_SESSIONS.c.token == _hash(token), REVIEW_SESSIONS.c.until > time.time())
        )
        with self._reading() as connection:
            row = connection.execute(query).first()
        if row is None or not row.is_active:
            return None
        return Session(Person(row.name, row.role, True, row.created_at), row.csrf)

    def log_out(self, token: str | None) -> None:
        """End the session of this token."""
        with storage_errors(self._store.folder), self._store.engine.begin() as connection:
            gone = REVIEW_SESSIONS.c.token == _hash(token or "")
            connection.execute(delete(REVIEW_SESSIONS).where(gone))

    # --- inside -------------------------------------------------------------------------------

    def _reading(self) -> Connection:
        return self._store.engine.execution_options(read_only=True).connect()

    def _count_attempt(self, keys: tuple[str, ...]) -> float:
        now = time.monotonic()
        with self._lock:
            recent = {
                key: [at for at in self._failures.get(key, ()) if at > now - WINDOW_S]
                for key in keys
            }
            for key in keys:
                if len(recent[key]) >= MOST_FAILURES:
                    raise TooManyAttempts(
                        "Too many failed logins",
                        expected=f"fewer than {MOST_FAILURES} in {WINDOW_S / 60:.0f} minutes",
                        next=f"wait {WINDOW_S / 60:.0f} minutes, or ask an admin",
                    )
            for key in keys:
                self._failures.pop(key, None)
                self._failures[key] = [*recent[key], now]
            while len(self._failures) > MOST_KEYS:
                self._failures.popitem(last=False)
        return now

    def _forget_attempt(self, keys: tuple[str, ...], at: float) -> None:
        """The password was right: the name starts anew, the address loses this attempt alone."""
        name, address = keys
        with self._lock:
            self._failures.pop(name, None)
            if at in self._failures.get(address, ()):
                self._failures[address].remove(at)

    def _scrypt(self, password: str, salt: bytes | None = None) -> str:
        salt = salt or secrets.token_bytes(16)
        with self._hashing:
            digest = hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, **COST)
        return f"scrypt${salt.hex()}${digest.hex()}"

    def _is(self, password: str, kept: str) -> bool:
        salt = bytes.fromhex(kept.split("$")[1])
        found = self._scrypt(password[:LONGEST_PASSWORD], salt)
        return hmac.compare_digest(found, kept)


NOBODY = f"scrypt${'00' * 16}${'00' * 64}"
"""What a password is compared with where there is no such name."""


def as_role(word: str) -> Role:
    """The role of this name.

    Raises:
        DataError: there is none.
    """
    for role in ROLES:
        if word == role:
            return role
    raise DataError("There is no such role", got=word, expected=", ".join(ROLES))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _long_enough(password: str) -> str:
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise DataError(
            "This password cannot be used",
            got=f"{len(password)} characters",
            expected=f"{SHORTEST_PASSWORD} to {LONGEST_PASSWORD:,}",
        )
    return password
