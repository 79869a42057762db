"""Users' ids as keyed hashes: the same user stays the same, and nobody reads who it is.

The key is random, one a tenant, and kept in the store: HMAC-SHA-256, so that ids cannot be guessed
from the hashes without it. The same id under two tenants gives two pseudonyms.
"""

import hashlib
import hmac
import re
import secrets

from sqlalchemy import select

from trueup.store import Store
from trueup.store.tables import SALTS

__all__ = ["Pseudonyms"]

PREFIX, REQUEST = "user_", "request_"
FORM = re.compile(rf"{PREFIX}[0-9a-f]{{32}}")


class Pseudonyms:
    """The pseudonyms of a store's users. Safe to call from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[str, bytes] = {}

    def of(self, user: str, tenant: str | None = None) -> str:
        """`user_` and 32 hex digits; a pseudonym stays as it is.

        Raises:
            StorageError: the tenant is new, and its key could not be written.
        """
        return user if FORM.fullmatch(user) else _hashed(self._key(tenant or ""), user)

    def of_request(self, request_id: str) -> str:
        """`request_` and 32 hex digits, under a key that is nobody's in particular."""
        return REQUEST + _hashed(self._key(""), request_id).removeprefix(PREFIX)

    def all_of(self, user: str) -> list[str]:
        """The pseudonyms of an id under every tenant that the store has seen."""
        with self._store.reading() as connection:
            rows = connection.execute(select(SALTS)).all()
        return [_hashed(bytes.fromhex(row.salt), user) for row in rows]

    def _key(self, tenant: str) -> bytes:
        if tenant not in self._keys:
            self._keys[tenant] = self._stored_key(tenant)
        return self._keys[tenant]

    def _stored_key(self, tenant: str) -> bytes:
        """The tenant's key; made at first use, once even where two processes ask at once."""
        query = select(SALTS.c.salt).where(SALTS.c.tenant == self._store.column(tenant))
        with self._store.reading() as connection:
            found = connection.execute(query).scalar()
        if found is None:
            row = {"tenant": self._store.column(tenant), "salt": secrets.token_hex(32)}
            with self._store.writing() as connection:
                connection.execute(self._store.insert_or_ignore(SALTS), row)
                found = connection.execute(query).scalar_one()
        return bytes.fromhex(found)


def _hashed(key: bytes, user: str) -> str:
    digest = hmac.new(key, user.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return PREFIX + digest.hexdigest()[:32]
