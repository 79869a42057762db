"""Request bodies: read whole, within a limit, as a JSON object."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from trueup.gateway.connection import CONNECTION, Telling
from trueup.gateway.errors import RequestError

__all__ = [
    "MAX_BODY_BYTES",
    "Arriving",
    "Limits",
    "as_object",
    "is_text",
    "read_body",
    "read_parts",
]

MAX_BODY_BYTES = 10 * 1024 * 1024


class Limits(NamedTuple):
    """What a client may send, and how slowly."""

    max_body_bytes: int = MAX_BODY_BYTES
    client_timeout_s: float = 30.0


async def read_body(
    request: Request, *, max_bytes: int | None = None, timeout_s: float | None = None
) -> bytes:
    """The request's body; the limits are those of the server it came to, unless they are given.

    Raises:
        as `read_parts`.
    """
    limits = request.scope.get("trueup.limits") or Limits()
    return await read_parts(
        request.scope,
        request.receive,
        max_bytes or limits.max_body_bytes,
        timeout_s or limits.client_timeout_s,
    )


async def read_parts(scope: Scope, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """A request's body, as ASGI hands it over.

    What is too large is read to its end before it is refused, up to ten times the limit: a client
    still sending would see a broken connection instead of the reason.

    Raises:
        RequestError: over `max_bytes`, status 413; slower than `timeout_s`, status 408.
        ClientDisconnect: the client left.
    """
    connection: Telling | None = scope.get(CONNECTION)
    is_here = connection is not None and connection.is_whole  # and needs no timer
    try:
        async with asyncio.timeout(None if is_here else timeout_s):
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                parts, size = [message["body"]], len(message["body"])  # most come in one piece
            else:
                parts, size = await _read_on(receive, message, max_bytes)
    except TimeoutError:
        raise _too_slow(f"all of it within {timeout_s:g} s") from None
    if size > max_bytes:
        raise RequestError(
            "The request body is too large",
            got=f"{size} bytes",
            status=413,
            expected=f"at most {max_bytes} bytes",
            next="shorten the conversation, or raise serve.max_body_mb",
            code="request_too_large",
        )
    return b"".join(parts)


async def _read_on(receive: Receive, message: Message, max_bytes: int) -> tuple[list[bytes], int]:
    parts: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            parts.clear()
        else:
            parts.append(part)
        if not message.get("more_body") or size > 10 * max_bytes:
            return parts, size
        message = await receive()
    raise ClientDisconnect


class Arriving:
    """A request's body, part by part as it comes, for those who send it on.

    What reads it (a connection to somebody else's server) takes a client's fault for its own, so
    it is kept here.
    """

    def __init__(self, receive: Receive, timeout_s: float) -> None:
        """
        Args:
            timeout_s: how long a part may be in coming.
        """
        self._receive, self._timeout_s = receive, timeout_s
        self.is_over = False
        """True once all of it was read."""
        self.fault: RequestError | ClientDisconnect | None = None
        """What the client did wrong: too slow, or gone."""

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        while not self.is_over:
            message = await self._next()
            self.is_over = not message.get("more_body")
            if message.get("body"):
                yield message["body"]

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await self._receive()
        except TimeoutError:
            self.fault = _too_slow(f"a part of it every {self._timeout_s:g} s")
            raise self.fault from None
        if message["type"] != "http.request":
            self.fault = ClientDisconnect()
            raise self.fault
        return message


def _too_slow(expected: str) -> RequestError:
    return RequestError(
        "The request's body did not arrive in time",
        expected=expected,
        next="send it faster, or raise serve.client_timeout_s",
        status=408,
        code="request_timeout",
    )


def as_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        RequestError: it is not JSON, or not an object.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            "The request body is not JSON",
            got=str(error),
            expected="a JSON object",
            next="send application/json",
        ) from None
    if not isinstance(value, dict):
        raise RequestError("The request body is not a JSON object", got=value, expected="{…}")
    return value


def is_text(raw: str) -> bool:
    """False for half of a character, which JSON may hold: it could not be written down."""
    try:
        raw.encode()
    except UnicodeEncodeError:
        return False
    return True
