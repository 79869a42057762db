"""HTTP/1.1 for clients that take their time on purpose.

uvicorn waits for ever for the rest of a request's headers, and for a client that does not read
its answer. A few thousand such clients are a server that answers nobody else, so here both have a
limit. And what an answer writes in one go, head and body, leaves in one packet.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trueup.gateway.connection import CONNECTION

__all__ = ["protocol"]

MAX_HEADER_BYTES = 64 * 1024


class _Corked:
    """A transport whose writes of one moment go out together: one call into the kernel, not two.
    The end of an answer waits for nothing, see `flush`."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Send what was written, now."""
        if self._parts:
            data, self._parts = b"".join(self._parts), []
            self._transport.write(data)


class _Patient(HttpToolsProtocol):
    """uvicorn's, with an end to its patience."""

    timeout_s = 30.0
    _waiting: asyncio.TimerHandle | None = None
    _num_header_bytes = 0
    _is_in_headers = True
    is_lost = False
    _when_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._corked = _Corked(self.transport, self.loop)
        self.transport = self._corked  # type: ignore[assignment]
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        super().connection_lost(exc)
        self.is_lost = True
        if self._when_lost:
            self._when_lost()

    def tell(self, when_lost: Callable[[], None] | None) -> None:
        self._when_lost = when_lost
        if when_lost:
            self.flow.resume_reading()  # a long body paused it, and who does not read hears no end

    @property
    def is_whole(self) -> bool:
        return not self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        if self._is_in_headers:
            self._num_header_bytes += len(data)
        super().data_received(data)
        if self._is_in_headers and self._num_header_bytes > MAX_HEADER_BYTES:
            self.transport.abort()
        elif self._is_in_headers and self._waiting is None:  # most come in one piece
            self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]
        self._is_in_headers, self._num_header_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._heard()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._corked.flush()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._wait()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._heard()
        super().resume_writing()

    def _wait(self) -> None:
        self._heard()
        self._waiting = self.loop.call_later(self.timeout_s, self.transport.abort)

    def _heard(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def protocol(timeout_s: float) -> type[Any]:
    """The protocol class for uvicorn, with this limit in seconds for each wait."""
    return type("Patient", (_Patient,), {"timeout_s": timeout_s})
