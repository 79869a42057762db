"""The gateway in front of somebody else's servers: forwarded byte for byte, captured on the way.

Everything under `/v1/` goes through, fields and routes unknown to us included; status codes and
bodies come back as they are. Of both kinds of completions a transcript is kept. An upstream that
cannot be reached is a 502, one that takes the request and falls silent a 504, each saying which.

This is the hot path: plain ASGI, one pass over the headers, one parse of the request's JSON.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import aiohttp
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from trueup.capture import Recorder
from trueup.errors import UpstreamError
from trueup.gateway.body import Arriving, as_object, read_parts
from trueup.gateway.config import ServeConfig
from trueup.gateway.connection import Leaving
from trueup.gateway.errors import RequestError, UpstreamTimeout, error_event, send_json
from trueup.gateway.keys import tenant_of
from trueup.gateway.transcript import BROKEN_OFF, Transcript, inflated
from trueup.gateway.upstreams import Headers, Upstreams, UpstreamServer

__all__ = ["Proxy"]

HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
"""RFC 9110, 7.6.1: these speak of one connection, and ours are two."""
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
NOT_RETURNED = HOP_BY_HOP | {b"date", b"server"}  # our server writes its own
LONGEST_WHOLE = 64 * 1024 * 1024
"""Bytes of an answer in one piece; longer ones pass through part by part."""
LONGEST_LINE = 1024 * 1024
"""Bytes of a stream that wait for the end of their line."""
NO_CLIENT = "client left"


class Proxy:
    """The routes that upstreams answer, as one ASGI app. `open` it on the loop that will use it."""

    def __init__(self, serve: ServeConfig, recorder: Recorder) -> None:
        self.upstreams = Upstreams(serve)
        self._recorder = recorder
        self._max_body_bytes = int(serve.max_body_mb * 1024 * 1024)
        self._client_timeout_s = serve.client_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any route under `/v1/`."""
        method, path = scope["method"], scope["path"]
        if method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
            await self._complete(scope, receive, send)
        elif method == "POST" and path == "/v1/embeddings":
            await self._embed(scope, receive, send)
        elif method == "GET" and path == "/v1/models" and self.upstreams.are_many:
            await self._models(scope, receive, send)
        else:
            await self._forward(scope, receive, send)

    # --- the routes -------------------------------------------------------------------------------

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Completions of both kinds: forwarded and captured."""
        body = await self._body(scope, receive)
        readable = self._readable(scope, body)
        servers = self.upstreams.for_model(as_object(readable).get("model"))
        transcript = Transcript(
            readable,
            self._recorder,
            route=scope["path"],
            request_id=scope.get("trueup.request_id", ""),
            tenant=tenant_of(scope),
        )
        headers = _request_headers(scope["headers"], b"accept-encoding")
        headers.append((b"accept-encoding", b"identity"))  # the transcript is to be readable
        why = "gateway error"
        try:
            with Leaving(scope, receive):
                server, answer = await self._ask(scope, servers, headers, body)
                try:
                    await self._answer(server, answer, transcript, send)
                finally:
                    answer.close()
        except ClientDisconnect:
            why = NO_CLIENT
            raise
        except UpstreamTimeout:
            why = "timeout"
            raise
        except UpstreamError:
            why = "upstream unreachable"
            raise
        except asyncio.CancelledError:
            why = "gateway stopped"
            raise
        finally:
            transcript.record(why)  # unless it was before

    async def _embed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Embeddings: to the server that has the model, and not captured."""
        body = await self._body(scope, receive)
        servers = self.upstreams.servers
        if self.upstreams.are_many:
            servers = self.upstreams.for_model(as_object(self._readable(scope, body)).get("model"))
        with Leaving(scope, receive):
            server, answer = await self._ask(
                scope, servers, _request_headers(scope["headers"]), body
            )
            await self._pass(server, answer, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any other route: forwarded in both directions as it comes, and not looked into."""
        headers = _request_headers(scope["headers"])
        given = {name: value for name, value in scope["headers"] if name in BODY_HEADERS}
        if b"content-length" in given:
            headers.append((b"content-length", given[b"content-length"]))
        servers = self.upstreams.servers[:1]
        if given:  # its parts are read as they are sent, so nobody can listen for its end as well
            arriving = Arriving(receive, self._client_timeout_s)
            server, answer = await self._ask(scope, servers, headers, arriving)
            if not arriving.is_over:  # an answer before the end of the question
                await self._pass(server, answer, send, arriving)
                return
        else:
            with Leaving(scope, receive):
                server, answer = await self._ask(scope, servers, headers, None)
        with Leaving(scope, receive):
            await self._pass(server, answer, send)

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/models`: those of all upstreams, each as far as it is asked for them."""
        headers = _request_headers(scope["headers"], b"accept-encoding")
        headers.append((b"accept-encoding", b"identity"))
        with Leaving(scope, receive):
            found = await asyncio.gather(
                *(self._models_of(scope, one, headers) for one in self.upstreams.servers),
                return_exceptions=True,
            )
        lists = [one for one in found if isinstance(one, list)]
        if not lists:
            raise next(one for one in found if isinstance(one, BaseException))
        merged: dict[str, Any] = {}
        for one in lists:
            for model in one:
                merged.setdefault(model["id"], model)
        await send_json(send, 200, {"object": "list", "data": list(merged.values())})

    async def _models_of(
        self, scope: Scope, server: UpstreamServer, headers: Headers
    ) -> list[dict[str, Any]]:
        _, answer = await self._ask(scope, [server], headers, None)
        try:
            body = as_object(await answer.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.upstreams.failure(server, error) from error
        except RequestError:
            body = {}
        finally:
            answer.close()
        if answer.status >= 500:
            raise self.upstreams.failure(server, ValueError(f"status {answer.status}"))
        data = body.get("data")
        if answer.status != 200 or not isinstance(data, list):
            raise UpstreamError(  # it answers, and that is no failure of its
                "The upstream server does not list its models",
                got=f"status {answer.status}",
                expected="a list of models",
                next="ask for one by its name",
            )
        models = [one for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)]
        return [one for one in models if server.answers_for(one["id"])]

    # --- the answer -------------------------------------------------------------------------------

    async def _answer(
        self,
        server: UpstreamServer,
        answer: aiohttp.ClientResponse,
        transcript: Transcript,
        send: Send,
    ) -> None:
        is_stream = answer.content_type == "text/event-stream"
        error = f"upstream {answer.status}" if answer.status >= 400 else ""
        encoding = answer.headers.get("Content-Encoding", "")
        transcript.begin(is_stream=is_stream and not error, encoding=encoding.strip().lower())
        length = answer.content_length
        if not is_stream and length is not None and length <= LONGEST_WHOLE:
            whole = await self._read(server, answer)
            transcript.feed(whole)
            transcript.record(error)  # before the client hears of it: feedback may be quick
            await send(_start(answer))
            await send({"type": "http.response.body", "body": whole})
            return
        await send(_start(answer))
        parts = _lines(answer) if is_stream else answer.content.iter_any()
        try:
            async for data in parts:
                transcript.feed(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except (aiohttp.ClientError, TimeoutError) as broken:
            failure = self.upstreams.failure(server, broken)
            transcript.record("timeout" if isinstance(failure, UpstreamTimeout) else BROKEN_OFF)
            if not is_stream:
                return  # without an end, so that the client sees that there is none
            event = b"\n\n" + error_event(failure)  # whatever ends a line there, a line is over
            await send({"type": "http.response.body", "body": event, "more_body": True})
        transcript.record(error)
        await send({"type": "http.response.body", "body": b""})

    async def _pass(
        self,
        server: UpstreamServer,
        answer: aiohttp.ClientResponse,
        send: Send,
        asking: Arriving | None = None,
    ) -> None:
        """The answer as it comes, whether or not the request has come to its end."""
        try:
            await send(_start(answer))
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (aiohttp.ClientError, TimeoutError) as error:
            if not (asking and asking.fault):
                self.upstreams.failure(server, error)
            # the connection ends without an end of the body
        finally:
            answer.close()

    async def _ask(
        self, scope: Scope, servers: list[UpstreamServer], headers: Headers, body: Any
    ) -> tuple[UpstreamServer, aiohttp.ClientResponse]:
        raw_path = scope.get("raw_path") or scope["path"].encode()
        server, answer = await self.upstreams.ask(
            servers, scope["method"], raw_path, scope["query_string"], headers, body
        )
        scope["trueup.upstream"] = server.name
        return server, answer

    async def _read(self, server: UpstreamServer, answer: aiohttp.ClientResponse) -> bytes:
        try:
            return await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.upstreams.failure(server, error) from error

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        return await read_parts(scope, receive, self._max_body_bytes, self._client_timeout_s)

    def _readable(self, scope: Scope, body: bytes) -> bytes:
        """The body for our own eyes; what is forwarded is the packed one."""
        packed = next((v for n, v in scope["headers"] if n == b"content-encoding"), b"identity")
        encoding = packed.decode("latin-1").strip().lower()
        if encoding == "identity":
            return body
        found = inflated(body, encoding, self._max_body_bytes)
        if found is None:
            raise RequestError(
                "The request body cannot be unpacked",
                got=encoding,
                expected="whole gzip or deflate",
                next="send it without Content-Encoding",
                status=415,
            )
        if len(found) > self._max_body_bytes:
            raise RequestError(
                "The request body is too large when unpacked",
                got=f"more than {self._max_body_bytes} bytes",
                expected=f"at most {self._max_body_bytes} bytes",
                next="shorten the conversation, or raise serve.max_body_mb",
                status=413,
                code="request_too_large",
            )
        return found


BODY_HEADERS = (b"content-length", b"transfer-encoding")


def _start(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """Our response under the upstream's headers, repeated ones (cookies) included."""
    dropped = NOT_RETURNED
    if named := answer.headers.get("Connection"):
        dropped = dropped | _names(named.encode("latin-1", "replace"))
    headers = [(name.lower(), value) for name, value in answer.raw_headers]
    headers = [one for one in headers if one[0] not in dropped]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


async def _lines(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """The stream as it comes, in whole lines: half of one, with an error behind it, no client
    could read."""
    held: list[bytes] = []
    num_held = 0
    async for data in answer.content.iter_any():
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if cut or num_held > LONGEST_LINE:
            yield b"".join((*held, data[:cut] if cut else data))
            held = [data[cut:]] if cut and cut < len(data) else []
        else:
            held.append(data)
        num_held = sum(map(len, held))
    if held:
        yield b"".join(held)


def _request_headers(
    headers: Iterable[tuple[bytes, bytes]], *dropped: bytes
) -> list[tuple[bytes, bytes]]:
    """The client's headers, but for those that speak of its connection."""
    headers = list(headers)
    unwanted = NOT_FORWARDED.union(dropped)
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            unwanted = unwanted | _names(value)
    return [one for one in headers if one[0] not in unwanted]


def _names(connection: bytes) -> set[bytes]:
    return {name.strip().lower() for name in connection.split(b",")}
