"""The access log: one JSON line a request, written away from the requests.

    {"time": "…", "id": "req_…", "key": "team-a", "method": "POST",
     "path": "/v1/chat/completions", "upstream": "gpu-1", "status": 200, "ms": 12.3}

Never a key, a query or a text. A reader of the log that stalls costs lines, which are counted, and
no request.
"""

import asyncio
import json
import sys
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple, TextIO

__all__ = ["AccessLog", "Seen"]

EVERY_S = 0.2
MOST_WAITING = 100_000
LONGEST_PATH = 200


class Seen(NamedTuple):
    """One request, as the log has it."""

    request_id: str
    key: str | None
    method: str
    path: str
    upstream: str | None
    status: int
    ms: float
    at: float


class AccessLog:
    """Lines wait here for a moment and are written together, in a thread."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._waiting: list[Seen] = []
        self._num_dropped = 0
        self._writing = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, seen: Seen) -> None:
        """Note a request; call it on the event loop."""
        if len(self._waiting) >= MOST_WAITING:
            self._num_dropped += 1
            return
        self._waiting.append(seen)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(EVERY_S, self._flush_soon, loop)

    def flush(self) -> None:
        """Write what waits, now."""
        with self._writing:  # one at a time, so that lines stay whole and in order
            waiting, self._waiting = self._waiting, []
            dropped, self._num_dropped = self._num_dropped, 0
            lines = [_line(one) for one in waiting]
            if dropped:
                lines.append(json.dumps({"time": _time(time.time()), "lines_dropped": dropped}))
            stream = self._stream or sys.stderr
            try:
                stream.write("".join(f"{line}\n" for line in lines))
                stream.flush()
            except (OSError, ValueError):  # a closed or full place to write is no request's trouble
                self._num_dropped += len(lines)

    def _flush_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if not self._writing.locked():
            loop.run_in_executor(None, self.flush)
        elif self._waiting:
            self._timer = loop.call_later(EVERY_S, self._flush_soon, loop)


def _line(seen: Seen) -> str:
    """As `json.dumps` would write it, at a quarter of its price: a thread that is busy with this
    holds the interpreter, and there are thousands a second. An id is letters and digits."""
    return (
        f'{{"time": "{_time(seen.at)}", "id": "{seen.request_id}", "key": {_quoted(seen.key)}, '
        f'"method": {_quoted(seen.method)}, "path": {_quoted(seen.path[:LONGEST_PATH])}, '
        f'"upstream": {_quoted(seen.upstream)}, "status": {seen.status}, "ms": {seen.ms:.2f}}}'
    )


_quoted = lru_cache(1024)(json.dumps)


def _time(at: float) -> str:
    ms = int(at * 1000)
    return f"{_second(ms // 1000)}.{ms % 1000:03d}+00:00"


@lru_cache(8)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")
