"""What goes wrong at this door, as OpenAI's error JSON with a status an SDK understands.

RequestError                 400, or what it says: 401, 403, 404, 408, 413
RecordNotFound               404
other DataError              400    the prompt does not fit, the template refuses it
ModelError, StorageError     503    the champion cannot be served, the disk is full
UpstreamError, its timeout   502, 504
"""

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Send

from trueup.errors import (
    DataError,
    ModelError,
    RecordNotFound,
    StorageError,
    TrueupError,
    UpstreamError,
)

__all__ = [
    "HANDLERS",
    "RequestError",
    "UpstreamTimeout",
    "error_body",
    "error_event",
    "not_supported",
    "send_error",
    "send_json",
]


class RequestError(DataError):
    """A request that cannot be answered as asked."""

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: str = "",
        next: str = "",
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(what, got=_short(got), expected=expected, next=next)
        self.status, self.param, self.code = status, param, code

    def __reduce__(self) -> tuple:
        return _rebuild, (
            self.what,
            self.got,
            self.expected,
            self.next,
            self.status,
            self.param,
            self.code,
        )


class UpstreamTimeout(UpstreamError):
    """The upstream took the request and fell silent."""


def not_supported(param: str, got: object) -> RequestError:
    """For fields that would change the answer, if only we could honour them."""
    return RequestError(
        f"'{param}' is not supported by the local model",
        got=got,
        expected=f"no '{param}'",
        next="leave it out, or set serve.upstream to a server that supports it",
        param=param,
        code="unsupported_parameter",
    )


def error_body(error: Exception) -> dict[str, Any]:
    """The error as OpenAI writes it; what is not ours is named by its class alone."""
    status = _status(error)
    message = (
        str(error) if isinstance(error, TrueupError) else f"Internal error: {type(error).__name__}"
    )
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None),
        }
    }


def error_event(error: Exception) -> bytes:
    """The error inside a stream that has begun: SDKs raise it when they read it."""
    return b"data: " + json.dumps(error_body(error)).encode() + b"\n\n"


async def send_json(
    send: Send, status: int, content: Any, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """An answer in JSON, for those who speak plain ASGI."""
    body = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: Exception) -> None:
    """The error as `error_body` has it, with its status."""
    status = _status(error)
    headers = [(b"www-authenticate", b"Bearer")] if status == 401 else []
    if status in (408, 413):  # what is still coming of the request is not read
        headers.append((b"connection", b"close"))
    await send_json(send, status, error_body(error), headers)


async def _respond(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body(error), status_code=_status(error))


async def _respond_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    named = RequestError(
        f"There is nothing here: {error.detail}",
        status=error.status_code,
        expected="/v1/chat/completions, /v1/models, /v1/feedback or /health",
    )
    return JSONResponse(error_body(named), status_code=error.status_code, headers=error.headers)


async def _nobody_there(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nginx's number for a client that left; nobody reads it


HANDLERS: dict[Any, Any] = {
    TrueupError: _respond,
    SQLAlchemyError: _respond,
    HTTPException: _respond_http,
    ClientDisconnect: _nobody_there,
    Exception: _respond,
}


def _status(error: Exception) -> int:
    by_kind = {
        RecordNotFound: 404,
        DataError: 400,
        ModelError: 503,
        StorageError: 503,
        UpstreamTimeout: 504,
        UpstreamError: 502,
        SQLAlchemyError: 503,
    }
    if isinstance(error, RequestError):
        return error.status
    return next((status for kind, status in by_kind.items() if isinstance(error, kind)), 500)


def _short(got: object) -> object:
    """A message quotes what it got, but not ten megabytes of it."""
    text = repr(got)
    return got if len(text) <= 200 else text[:200] + "…"


def _rebuild(
    what: str, got: object, expected: str, next: str, status: int, param: Any, code: Any
) -> RequestError:
    return RequestError(
        what, got=got, expected=expected, next=next, status=status, param=param, code=code
    )
