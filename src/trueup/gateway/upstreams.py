"""The servers behind the gateway: which one answers for a model, its key, and how it is doing.

A model goes to the first upstream of the list whose patterns fit. Where that one refuses the
connection, so that it has not seen a byte of the request, the next that fits is asked; an upstream
that has taken a request is never passed over, because it may be answering it.
"""

import logging
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from trueup.capture.rules import fits
from trueup.errors import UpstreamError
from trueup.gateway.body import Arriving
from trueup.gateway.config import ServeConfig, UpstreamConfig
from trueup.gateway.errors import RequestError, UpstreamTimeout
from trueup.gateway.keys import secret_of

__all__ = ["UpstreamServer", "Upstreams", "base_url", "upstreams_of"]

CONNECT_TIMEOUT_S = 10.0
IDLE_S = 4.0
"""How long a connection is kept for the next request: less than servers do (uvicorn: 5 s), for one
that is closed while a request is on its way costs that request."""
CREDENTIALS = (b"authorization", b"api-key", b"x-api-key")

Headers = Sequence[tuple[bytes, bytes]]

_log = logging.getLogger(__name__)


class UpstreamServer:
    """One upstream, and what became of the requests that went to it."""

    def __init__(self, config: UpstreamConfig) -> None:
        """
        Raises:
            ConfigError: the variable that should hold its key is not set.
        """
        self.base = base_url(config.url)
        self.name = config.name or urlsplit(config.url).netloc
        self.models = config.models
        self.key = secret_of(config.key_env) if config.key_env else None
        self.num_requests = self.num_failures = 0
        self.is_up: bool | None = None
        """Whether the last request reached it; None before the first."""
        self.last_error = ""
        self.was_told_of = False
        """True where the log has it that it does not answer."""
        self._urls: dict[bytes, URL] = {}

    def answers_for(self, model: str) -> bool:
        """True where one of its patterns fits."""
        return any(fits(model, pattern) for pattern in self.models)

    def url(self, raw_path: bytes, query: bytes) -> URL:
        """Where a request to `/v1/…` goes, spelled as the client spelled it."""
        if not query and (known := self._urls.get(raw_path)):
            return known
        path = raw_path.decode("latin-1").partition("?")[0].removeprefix("/v1")
        tail = "?" + query.decode("latin-1") if query else ""
        url = URL(f"{self.base}{path}{tail}", encoded=True)
        if not query and len(self._urls) < 64:
            self._urls[raw_path] = url
        return url

    def told(self) -> dict[str, Any]:
        """What `/health` says of it."""
        return {
            "name": self.name,
            "url": self.base,
            "models": list(self.models),
            "is_up": self.is_up,
            "requests": self.num_requests,
            "failures": self.num_failures,
            "last_error": self.last_error,
        }


def upstreams_of(serve: ServeConfig) -> tuple[UpstreamConfig, ...]:
    """Who is asked, in this order; empty where the local model answers."""
    if serve.upstream is None:
        return serve.upstreams
    return (*serve.upstreams, UpstreamConfig(url=serve.upstream, key_env=serve.upstream_key_env))


class Upstreams:
    """All of them, over one pool of connections. `open` it on the loop that will use it."""

    def __init__(self, serve: ServeConfig) -> None:
        self.servers = [UpstreamServer(one) for one in upstreams_of(serve)]
        self._timeout_s = serve.upstream_timeout_s
        self._has_own_keys = bool(serve.keys)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the connection pool."""
        self._session = aiohttp.ClientSession(
            # limit: the caller's concurrency is not ours to limit
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self._timeout_s
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    async def close(self) -> None:
        """Close the connection pool."""
        if self._session:
            await self._session.close()

    @property
    def are_many(self) -> bool:
        """True where a request must be looked into to know whose it is."""
        return len(self.servers) > 1 or self.servers[0].models != ("*",)

    def for_model(self, model: Any) -> list[UpstreamServer]:
        """Who answers for a model, in the order to ask them.

        Raises:
            RequestError: nobody; status 404.
        """
        found = [one for one in self.servers if one.answers_for(str(model or ""))]
        if not found:
            raise RequestError(
                "No upstream has such a model",
                got=model,
                expected=", ".join(p for one in self.servers for p in one.models),
                next="list what there is with GET /v1/models",
                status=404,
                param="model",
                code="model_not_found",
            )
        return found

    async def ask(
        self,
        servers: Sequence[UpstreamServer],
        method: str,
        raw_path: bytes,
        query: bytes,
        headers: Headers,
        body: bytes | Arriving | None,
    ) -> tuple[UpstreamServer, aiohttp.ClientResponse]:
        """The answer of the first server that takes the request; its body is still to be read.

        Raises:
            UpstreamError: none can be reached, or the one that took it broke off or fell silent.
            RequestError, ClientDisconnect: the client did not send all of it.
        """
        assert self._session is not None, "not opened"
        for at, server in enumerate(servers):
            server.num_requests += 1
            try:
                answer = await self._session.request(
                    method,
                    server.url(raw_path, query),
                    data=body,
                    headers=self._headers(server, headers),
                    allow_redirects=False,
                )
            except (aiohttp.ClientError, TimeoutError) as error:
                if isinstance(body, Arriving) and body.fault:
                    raise body.fault from None
                is_last = at == len(servers) - 1
                was_seen = not isinstance(
                    error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
                )
                failure = self.failure(server, error)
                if is_last or was_seen or not isinstance(body, bytes | None):
                    raise failure from error
            else:
                server.is_up, server.was_told_of = True, False
                return server, answer
        raise AssertionError("there is one at least")

    def failure(self, server: UpstreamServer, error: Exception) -> UpstreamError:
        """What went wrong, as our client is told; counted. Where the server is stands in the log
        alone, and in `/health`: it is nothing to those who ask."""
        server.num_failures += 1
        is_new, server.was_told_of = not server.was_told_of, True
        if isinstance(error, TimeoutError) and not isinstance(
            error, aiohttp.ConnectionTimeoutError
        ):
            server.last_error = "silent"
            if is_new:
                _log.warning("The upstream %s does not answer in time", server.base)
            return UpstreamTimeout(
                "The upstream server did not answer in time",
                got="silence",
                expected=f"an answer within {self._timeout_s:g} s",
                next="see whether it is overloaded, or raise serve.upstream_timeout_s",
            )
        server.is_up, server.last_error = False, str(error) or type(error).__name__
        if is_new:
            _log.warning("The upstream %s failed: %s", server.base, server.last_error)
        return UpstreamError(
            "The upstream server cannot be reached, or broke off",
            got="no whole answer",
            expected="an OpenAI-compatible server",
            next="see the gateway's log and /health, and check serve.upstream",
        )

    def _headers(self, server: UpstreamServer, headers: Headers) -> CIMultiDict[str]:
        """The client's, with the upstream's own key in place of its credentials. A key of ours is
        nobody else's business."""
        hides = server.key is not None or self._has_own_keys
        found = CIMultiDict[str]()
        for name, value in headers:
            if not (hides and name in CREDENTIALS):
                found.add(name.decode("latin-1"), value.decode("latin-1"))
        if server.key is not None:
            found["authorization"] = f"Bearer {server.key}"
        return found


def base_url(upstream: str) -> str:
    """The upstream's own `/v1`, however the setting spells it."""
    base = upstream.rstrip("/")
    return base if URL(base).path.strip("/") else f"{base}/v1"
