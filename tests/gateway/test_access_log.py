"""The access log: lines any reader of JSON takes, whatever is in a path; none that waits."""

import asyncio
import io
import json
import time
from datetime import datetime

from trueup.gateway.access import AccessLog, Seen

ODD = ['/v1/"x"\n', "/v1/\x1b[31m\u2028", "/v1/" + "é" * 500, "/v1/\ud800", "/v1/a\\b"]


def write(log: AccessLog, *seen: Seen) -> None:
    async def add() -> None:
        for one in seen:
            log.add(one)

    asyncio.run(add())
    log.flush()


def test_a_line_is_what_json_would_write() -> None:
    out = io.StringIO()
    at = time.time()
    seen = [Seen("req_1", None, "GET", path, "gpu-1", 200, 1.23456, at) for path in ODD]
    write(AccessLog(out), *seen)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [one["path"] for one in lines] == [path[:200] for path in ODD]
    assert out.getvalue().isascii() and "\x1b" not in out.getvalue()
    told = lines[0]
    assert abs(_seconds(told.pop("time")) - at) < 0.002
    del told["path"]
    assert told == {
        "id": "req_1",
        "key": None,
        "method": "GET",
        "upstream": "gpu-1",
        "status": 200,
        "ms": 1.23,
    }


def test_a_place_that_takes_no_lines_costs_lines_and_says_how_many() -> None:
    out, closed = io.StringIO(), io.StringIO()
    closed.close()
    log = AccessLog(closed)
    seen = Seen("req_1", "a", "GET", "/", None, 200, 1.0, time.time())
    write(log, seen, seen)
    log._stream = out
    write(log, seen)
    *_, last = [json.loads(line) for line in out.getvalue().splitlines()]
    assert last["lines_dropped"] == 2


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
