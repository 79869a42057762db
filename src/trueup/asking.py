"""How trueup asks servers: posts that are bounded in time, size and tries, and coroutines run from
anywhere.

No redirect is followed, and a key goes as a bearer token and is in no message.
"""

import asyncio
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["PostFailed", "post", "run_coroutine", "without_key"]

T = TypeVar("T")


class PostFailed(Exception):
    """No answer after every try; the last problem, with the server's words if it had any."""


def post(
    url: str, body: bytes, *, key: str, timeout_s: float, max_retries: int, max_bytes: int
) -> bytes:
    """The answer to JSON posted to a server.

    Errors of the server (5xx), of the line, and 429 are tried again; other refusals are not.

    Args:
        key: bearer token; empty for none.
        timeout_s: for one try, the whole answer included.
        max_bytes: of an answer.

    Raises:
        PostFailed: no answer after `max_retries` further tries.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, body, headers)
    opener = urllib.request.build_opener(_NoRedirect)
    problem = ""
    for _ in range(max_retries + 1):
        try:
            deadline = time.monotonic() + timeout_s
            with opener.open(request, timeout=timeout_s) as response:
                return _read(response, deadline, max_bytes)
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}"
            if error.code < 500 and error.code != 429:
                break
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = f"{type(error).__name__}: {error}"
    raise PostFailed(problem)


def without_key(said: str, key: str) -> str:
    """A server's words without the key that it may echo. Shorten them afterwards, or half of the
    key could stay."""
    return said.replace(key, "[key]") if key else said


def run_coroutine(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, also from inside a running loop, then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


def _read(response: Any, deadline: float, max_bytes: int) -> bytes:
    """The body, in bounded time and size: a socket's own time limit begins anew with every byte."""
    parts: list[bytes] = []
    while part := response.read1(65_536):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError("the answer did not end in time")
        if sum(map(len, parts)) > max_bytes:
            raise ValueError(f"an answer of more than {max_bytes:,} bytes")
    return b"".join(parts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST turns into a GET without its question."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
