"""An upstream that answers at once: the yardstick that the gateway is measured with.

    python benchmarks/gateway_mock.py PORT [--bare]

Starlette on uvicorn with uvloop and httptools, reading the request's JSON and writing its own, as
the servers do that one puts a gateway in front of (vLLM's is FastAPI, which does more). With
`--bare` it is raw ASGI that reads and writes nothing but bytes: little else than HTTP is then in
its figures. Each answer has an id of its own; a stream has 20 events.
"""

import itertools
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

NUMBERS = itertools.count()
TEXT = "Hold the button for ten seconds, then let it go and wait for the light to turn green."
USAGE = {"prompt_tokens": 21, "completion_tokens": 19, "total_tokens": 40}
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


async def complete(request: Request) -> Response:
    """A chat completion."""
    asked = await request.json()
    answer_id = f"chatcmpl-{next(NUMBERS):032x}"
    if asked.get("stream"):
        return StreamingResponse(_events(answer_id), media_type="text/event-stream")
    return JSONResponse(ANSWER | {"id": answer_id})


async def _events(answer_id: str) -> AsyncIterator[bytes]:
    for event in STREAM:
        yield event.replace(b"ANSWER", answer_id.encode())


async def bare(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Any POST is a chat completion, anything else is `ok`."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer_id = b"chatcmpl-%032x" % next(NUMBERS)
    if scope["method"] == "POST" and b'"stream": true' in body:
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        for event in STREAM:
            part = event.replace(b"ANSWER", answer_id)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    whole = WHOLE.replace(b"ANSWER", answer_id)
    headers = [*JSON, (b"content-length", b"%d" % len(whole))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": whole})


def _event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {
        "id": "ANSWER",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "mock",
        "choices": [choice],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


WORDS = TEXT.split(" ")
STREAM = [
    _event({"role": "assistant", "content": ""}),
    *(_event({"content": word + " "}) for word in WORDS),
    _event({}, "stop"),
    b"data: [DONE]\n\n",
]
ANSWER = {
    "id": "ANSWER",
    "object": "chat.completion",
    "created": 1,
    "model": "mock",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
    ],
    "usage": USAGE,
}
WHOLE = json.dumps(ANSWER).encode()
APP = Starlette(
    routes=[
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/", lambda _: PlainTextResponse("ok")),
    ]
)


if __name__ == "__main__":
    uvicorn.run(
        bare if "--bare" in sys.argv else APP,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
