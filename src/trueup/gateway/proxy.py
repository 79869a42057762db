"""The gateway in front of somebody else's server: forwarded byte for byte, captured on the way.

Everything under `/v1/` goes through, fields and routes unknown to us included; status codes and
bodies come back as they are. Of chat completions a transcript is kept. An upstream that cannot
be reached is a 502, one that takes the request and falls silent a 504, each saying which.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import aiohttp
from starlette.requests import Request
from starlette.responses import Response
from yarl import URL

from trueup.capture import Recorder
from trueup.errors import UpstreamError
from trueup.gateway.body import as_object, read_body
from trueup.gateway.config import ServeConfig
from trueup.gateway.connection import ByteStream, or_gone
from trueup.gateway.errors import UpstreamTimeout, error_event
from trueup.gateway.transcript import Transcript

__all__ = ["Upstream"]

CONNECT_TIMEOUT_S = 10.0
HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""RFC 9110, 7.6.1: these speak of one connection, and ours are two."""


class Upstream:
    """Another OpenAI-compatible server. `open` it on the loop that will use it."""

    def __init__(self, serve: ServeConfig, recorder: Recorder) -> None:
        assert serve.upstream is not None
        self._base = _base(serve.upstream)
        self._timeout_s, self._recorder = serve.upstream_timeout_s, recorder
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the connection pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0
            ),  # the caller's concurrency is not ours to limit
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

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`: forwarded and captured."""
        body = await read_body(request)
        transcript = Transcript(as_object(body), self._recorder)
        headers = _request_headers(request)
        headers["accept-encoding"] = "identity"  # the transcript reads along
        answer = await or_gone(request, self._ask(request, headers, body))
        if answer.content_type == "text/event-stream":
            return _stream(answer, _captured(answer, transcript))
        whole = await or_gone(request, self._read(answer))
        if answer.status == 200:
            transcript.read(whole)
            transcript.record()
        return _with_headers(Response(whole, answer.status), answer)

    async def forward(self, request: Request) -> Response:
        """Any other route: forwarded in both directions as it comes, and not looked into."""
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        headers = _request_headers(request)
        if "content-length" in request.headers:
            headers["content-length"] = request.headers["content-length"]
        answer = await self._ask(request, headers, request.stream() if has_body else None)
        return _stream(answer, _passed(answer))

    async def _ask(
        self, request: Request, headers: dict[str, str], body: bytes | AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        assert self._session is not None
        try:
            return await self._session.request(
                request.method,
                self._url(request),
                data=body,
                headers=headers,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._failure(error) from error

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        try:
            return await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._failure(error) from error

    def _url(self, request: Request) -> URL:
        raw_path = request.scope.get("raw_path") or request.url.path.encode()
        path = raw_path.decode("latin-1").partition("?")[0].removeprefix("/v1")
        query = request.scope["query_string"].decode("latin-1")
        return URL(f"{self._base}{path}{'?' + query if query else ''}", encoded=True)

    def _failure(self, error: Exception) -> UpstreamError:
        if isinstance(error, TimeoutError) and not isinstance(
            error, aiohttp.ConnectionTimeoutError
        ):
            return UpstreamTimeout(
                "The upstream server did not answer in time",
                got=f"{self._base} silent",
                expected=f"an answer within {self._timeout_s:g} s",
                next="see whether it is overloaded, or raise serve.upstream_timeout_s",
            )
        return _broken(self._base, error)


def _base(upstream: str) -> str:
    """The upstream's own `/v1`, however the setting spells it."""
    base = upstream.rstrip("/")
    return base if URL(base).path.strip("/") else f"{base}/v1"


def _broken(where: str, error: Exception) -> UpstreamError:
    return UpstreamError(
        "The upstream server cannot be reached, or broke off",
        got=f"{where}: {error or type(error).__name__}",
        expected="an OpenAI-compatible server",
        next="see whether it runs, and check serve.upstream",
    )


async def _captured(
    answer: aiohttp.ClientResponse, transcript: Transcript
) -> AsyncGenerator[bytes]:
    """The stream as it comes, transcribed. What breaks it off is told in the stream's own form.

    Lines are passed whole: half of one, with the error behind it, no client could read.
    """
    if answer.status != 200:
        transcript.discard()
    half = b""
    try:
        async for data in answer.content.iter_any():
            transcript.feed(data)
            lines, newline, half = (half + data).rpartition(b"\n")
            if newline:
                yield lines + newline
        if half:
            yield half
    except (aiohttp.ClientError, TimeoutError) as error:
        transcript.record()  # before the client hears of it
        yield b"\n" + error_event(_broken(str(answer.url), error))
    finally:
        answer.close()
        transcript.record()


async def _passed(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    try:
        async for data in answer.content.iter_any():
            yield data
    finally:
        answer.close()


def _request_headers(request: Request) -> dict[str, str]:
    """The client's headers, credentials included, but for those that speak of its connection."""
    named = request.headers.get("connection", "")
    dropped = HOP_BY_HOP | {"host", "content-length", "expect"} | _names(named)
    return {name: value for name, value in request.headers.items() if name not in dropped}


def _stream(answer: aiohttp.ClientResponse, parts: AsyncGenerator[bytes]) -> Response:
    return _with_headers(ByteStream(parts, status_code=answer.status), answer)


def _with_headers(response: Response, answer: aiohttp.ClientResponse) -> Any:
    """Our response under the upstream's headers, repeated ones (cookies) included."""
    # our server writes its own date and name, and the length of a body that it holds
    dropped = HOP_BY_HOP | {"date", "server"} | _names(answer.headers.get("Connection", ""))
    response.raw_headers = [
        (name.lower(), value)
        for name, value in answer.raw_headers
        if name.lower().decode("latin-1") not in dropped
    ]
    return response


def _names(connection: str) -> set[str]:
    return {name.strip().lower() for name in connection.split(",")}
