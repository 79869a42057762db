"""Request bodies: read whole, within a limit, as a JSON object."""

import json
from typing import Any

from starlette.requests import Request

from trueup.gateway.errors import RequestError

__all__ = ["MAX_BODY_BYTES", "as_object", "read_body"]

MAX_BODY_BYTES = 10 * 1024 * 1024


async def read_body(request: Request) -> bytes:
    """The request's body.

    What is too large is read to its end before it is refused, up to ten times the limit: a client
    still sending would see a broken connection instead of the reason.

    Raises:
        RequestError: over MAX_BODY_BYTES; status 413.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > 10 * MAX_BODY_BYTES:
            break
        if size > MAX_BODY_BYTES:
            parts.clear()
        else:
            parts.append(part)
    if size > MAX_BODY_BYTES:
        raise RequestError(
            "The request body is too large",
            got=f"{size} bytes",
            status=413,
            expected=f"at most {MAX_BODY_BYTES} bytes",
            next="shorten the conversation",
        )
    return b"".join(parts)


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
