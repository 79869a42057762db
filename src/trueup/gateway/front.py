"""What every request passes first: its id, whose key it came with, what is logged of it.

Plain ASGI, in front of the routes. The routes that upstreams answer are called from here, without
the detour over the framework's routing.
"""

import random
import re
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from trueup.errors import TrueupError
from trueup.gateway.access import AccessLog, Seen
from trueup.gateway.body import Limits
from trueup.gateway.config import Scope, ServeConfig
from trueup.gateway.errors import RequestError, send_error
from trueup.gateway.keys import Keys, presented

__all__ = ["Front", "scope_of"]

OPEN = {"/health", "/openapi.json"}
"""Routes that need no key. `/health` says little to those who have none."""
NEEDS: dict[tuple[str, str], Scope] = {
    ("POST", "/v1/chat/completions"): "chat",
    ("POST", "/v1/completions"): "chat",
    ("GET", "/v1/models"): "chat",
    ("POST", "/v1/embeddings"): "embeddings",
    ("POST", "/v1/feedback"): "feedback",
    ("POST", "/v1/capture"): "capture",
    ("POST", "/v1/traces"): "capture",
    ("POST", "/v1/logs"): "capture",
    ("GET", "/metrics"): "read",
}
OURS = {"/v1/feedback", "/v1/capture", "/v1/traces", "/v1/logs"}
"""Answered here and by nobody behind us, whatever the method."""
FAST = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}
GOOD_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
LEFT = 499  # nginx's number for a client that left


class Front:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        serve: ServeConfig,
        keys: Keys,
        *,
        proxy: ASGIApp | None = None,
        log: AccessLog | None = None,
    ) -> None:
        self._app, self._keys, self._proxy, self._log = app, keys, proxy, log
        self._limits = Limits(int(serve.max_body_mb * 1024 * 1024), serve.client_timeout_s)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        path: str = scope["path"]
        request_id = _request_id(scope)
        scope["trueup.request_id"], scope["trueup.limits"] = request_id, self._limits

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                if not any(name == b"x-request-id" for name, _ in headers):
                    message["headers"] = [*headers, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if self._keys:
                scope["trueup.caller"] = caller = self._keys.caller(scope["headers"])
                if path not in OPEN:
                    self._keys.check(caller, scope_of(scope["method"], path))
            _refuse_detours(scope["method"], path)
            if self._proxy and path in FAST and scope["method"] == "POST":
                await self._proxy(scope, receive, noting)
            else:
                await self._app(scope, receive, noting)
        except ClientDisconnect:
            status = LEFT
        except TrueupError as error:
            if status:
                raise
            await send_error(noting, error)
        finally:
            if self._log:
                ms = (time.perf_counter() - started) * 1000
                caller = scope.get("trueup.caller")
                self._log.add(
                    Seen(
                        request_id,
                        caller.name if caller else None,
                        scope["method"],
                        path,
                        scope.get("trueup.upstream"),
                        status or 500,
                        ms,
                        time.time(),
                    )
                )


def scope_of(method: str, path: str) -> Scope:
    """What a key must cover for a route; what is not named here takes `admin`: behind the same path
    another method may list what other tenants asked, or delete a model."""
    method = "GET" if method == "HEAD" else method
    if method == "GET" and path.startswith("/v1/models/"):
        return "chat"
    return NEEDS.get((method, path), "admin")


def _refuse_detours(method: str, path: str) -> None:
    """No path that an upstream could read as another one, and none of ours sent there.

    Raises:
        RequestError: it is one; status 400, 404 or 405.
    """
    if any(part in (".", "..") for part in path.replace("\\", "/").split("/")):
        raise RequestError("The path has dots for segments", got=path, expected="a plain path")
    plain = path.rstrip("/")
    if plain in OURS and (path != plain or method != "POST"):
        raise RequestError(
            "There is no such route" if path != plain else "This route takes POST alone",
            got=f"{method} {path}",
            expected=f"POST {plain}",
            status=404 if path != plain else 405,
        )


def _request_id(scope: AsgiScope) -> str:
    """The client's own, if it is one that can stand in a log, and not its key; else a new one."""
    headers = scope["headers"]
    for name, value in headers:
        if name == b"x-request-id" and GOOD_ID.fullmatch(value) and value != presented(headers):
            return value.decode()
    return f"req_{random.getrandbits(96):024x}"  # no secret, and no call into the kernel
