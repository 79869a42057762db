"""Answers that notice when the client hangs up.

A server that draws tokens for somebody who has left wastes the machine, and a stream that ends
early still said something. Both need to know at once, and ASGI tells it only to those who ask.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["CONNECTION", "ByteStream", "Leaving", "Telling", "or_gone"]

T = TypeVar("T")

CONNECTION = "trueup.connection"
"""Where a scope has a connection that tells when it is lost."""


class Telling(Protocol):
    """A connection that tells when it is lost."""

    is_lost: bool

    @property
    def is_whole(self) -> bool:
        """True once all of the request is here."""
        ...

    def tell(self, when_lost: Callable[[], None] | None) -> None:
        """Call this, in place of what it was to call before, once it is lost."""


async def or_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled if the client leaves first.

    Only after the request's body was read: until then its parts would be swallowed here.

    Raises:
        ClientDisconnect: the client left.
    """
    return await _race(request.receive, work)


class Leaving:
    """Inside `with Leaving(scope, receive)`, a client that leaves ends what is being done.

    Lighter than `or_gone`: no task for the work, and none that listens where the connection itself
    tells (see `trueup.gateway.protocol`). The same holds for when: only after the request's body
    was read.

    Raises:
        ClientDisconnect: the client left.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._connection: Telling | None = scope.get(CONNECTION)
        self._receive = receive
        self._listening: asyncio.Task[None] | None = None
        self._has_left = self._is_over = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        if self._connection and not self._connection.is_lost:
            self._connection.tell(self._leave)
        else:
            self._listening = asyncio.get_running_loop().create_task(_left(self._receive))
            self._listening.add_done_callback(self._heard)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_over = True
        if self._listening:
            self._listening.cancel()
        elif self._connection:
            self._connection.tell(None)
        if self._has_left and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientDisconnect from None

    def _heard(self, listening: "asyncio.Task[None]") -> None:
        if not self._is_over and not listening.cancelled() and not listening.exception():
            self._leave()

    def _leave(self) -> None:
        self._has_left = True
        self._task.cancel()


class ByteStream(Response):
    """Sends what a generator yields, as it comes.

    Whatever ends it (its own end, the client, a shutdown), the generator is closed before the
    response is over, so its `finally` is the place to clean up.
    """

    def __init__(
        self,
        parts: AsyncGenerator[bytes],
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = "text/event-stream",
    ) -> None:
        self._parts = parts
        self.status_code = status_code
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _race(receive, self._send(send))
        except ClientDisconnect:
            pass  # there is nobody left to tell
        finally:
            await self._parts.aclose()

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async with aclosing(self._parts) as parts:
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _race(receive: Receive, work: Awaitable[T]) -> T:
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
