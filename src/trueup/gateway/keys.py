"""API keys: who asks, and what they may.

Compared are SHA-256 digests, in constant time, every key each time, so the time that an answer
takes says nothing about how near a guess came. A key is never logged, kept or forwarded.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from typing import NamedTuple

from starlette.types import Scope as AsgiScope

from trueup.errors import ConfigError
from trueup.gateway.config import KeyConfig, Scope
from trueup.gateway.errors import RequestError

__all__ = ["Caller", "Keys", "digest", "new_secret", "presented", "secret_of", "tenant_of"]

SHORTEST = 16
"""Characters of a key from the environment; shorter ones can be guessed."""


class Caller(NamedTuple):
    """Whose key a request came with."""

    name: str
    tenant: str | None
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """True where its scopes cover this one."""
        return scope in self.scopes or "admin" in self.scopes


class Keys:
    """The keys of the settings, with their secrets' digests."""

    def __init__(self, configs: Iterable[KeyConfig]) -> None:
        """
        Raises:
            ConfigError: an environment variable is not set, or holds no good key.
        """
        self._known = [
            (_digest_of(one), Caller(one.name, one.tenant, frozenset(one.scopes)))
            for one in configs
        ]

    def __bool__(self) -> bool:
        return bool(self._known)

    def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller | None:
        """Whose key these headers carry; None where it is missing or unknown."""
        given = presented(headers)
        if given is None:
            return None
        hashed, found = hashlib.sha256(given).digest(), None
        for known, caller in self._known:
            if hmac.compare_digest(hashed, known):
                found = caller
        return found

    def check(self, caller: Caller | None, scope: Scope) -> None:
        """
        Raises:
            RequestError: 401 for nobody, 403 for somebody who may not.
        """
        if caller is None:
            raise RequestError(
                "No such API key",
                expected="a key of this gateway, as 'Authorization: Bearer …'",
                next="ask whoever runs it for one",
                status=401,
                code="invalid_api_key",
            )
        if not caller.may(scope):
            raise RequestError(
                "This API key may not do that",
                got=f"the key '{caller.name}'",
                expected=f"the scope '{scope}'",
                next="use another key, or have the scope added to serve.keys",
                status=403,
                code="insufficient_permissions",
            )


def new_secret() -> str:
    """A key with 256 bits that nobody knows."""
    return f"trueup-{secrets.token_urlsafe(32)}"


def digest(secret: str) -> str:
    """SHA-256 of a key, 64 hex digits. Of a random key that is as good as a slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_of(variable: str, *, min_length: int = 1) -> str:
    """What an environment variable holds.

    Raises:
        ConfigError: nothing, or too little.
    """
    secret = os.environ.get(variable, "").strip()
    if len(secret) < min_length:
        raise ConfigError(
            f"The environment variable {variable} holds no key",
            got="nothing" if not secret else f"{len(secret)} characters",
            expected=f"a key of at least {min_length} characters" if min_length > 1 else "a key",
            next=f"export {variable}=…, or name another variable in trueup.toml",
        )
    return secret


def _digest_of(config: KeyConfig) -> bytes:
    if config.sha256:
        return bytes.fromhex(config.sha256)
    return bytes.fromhex(digest(secret_of(config.key_env or "", min_length=SHORTEST)))


def tenant_of(scope: AsgiScope) -> str | None:
    """The tenant whose key a request came with, where there is one."""
    caller = scope.get("trueup.caller")
    return caller.tenant if caller else None


def presented(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """OpenAI's header, or the one that Azure's and Anthropic's clients send."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, given = value.partition(b" ")
            return given.strip() if scheme.lower() == b"bearer" else None
        if name in (b"api-key", b"x-api-key"):
            return value.strip()
    return None
