"""What stands in front of every page: headers, the size of a body, and the JSON twin.

The policy lets a page load our own script and style and nothing else, and run nothing that stands
in the page itself. A path that ends in `.json` is the same page as JSON.
"""

from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard"]

MOST_BYTES = 2_500_000
"""Of a form: it holds both answers, mended or not, each a field of 1 MB at most, and a comment."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _TooLarge(Exception):
    pass


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path.endswith(".json") and not path.startswith("/static/"):
            stem = path.removesuffix(".json")
            path = "/" if stem == "/index" else stem
            scope = {**scope, "path": path, "raw_path": path.encode("utf-8", "replace")}
            scope["state"] = {**scope.get("state", {}), "as_json": True}
        size, started = _announced(scope), False
        if size > MOST_BYTES:
            await _refuse(scope, receive, send, path)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MOST_BYTES:
                raise _TooLarge
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": _headers(message.get("headers", ()), path)}
            await send(message)

        try:
            await self._app(scope, counted, guarded)
        except _TooLarge:
            if started:
                raise
            await _refuse(scope, receive, send, path)


def _announced(scope: Scope) -> int:
    """The length a request says its body has."""
    said = dict(scope["headers"]).get(b"content-length", b"0")
    return int(said) if said.isdigit() else 0


async def _refuse(scope: Scope, receive: Receive, send: Send, path: str) -> None:
    answer = PlainTextResponse("This form is too large.", status_code=413)
    answer.raw_headers = _headers(answer.raw_headers, path)
    await answer(scope, receive, send)


def _headers(given: Any, path: str) -> list[tuple[bytes, bytes]]:
    ours = dict(HEADERS)
    if path.startswith("/static/"):
        ours["Cache-Control"] = "no-cache"  # asked for again, and answered with 304
    names = {name.lower().encode() for name in ours}
    kept = [(name, value) for name, value in given if name.lower() not in names]
    return kept + [(name.lower().encode(), value.encode()) for name, value in ours.items()]
