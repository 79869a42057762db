"""The two official clients, Python and npm, through the gateway as if it were not there."""

import base64
import json
import shutil
import struct
import subprocess
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trueup.gateway.keys import digest

KEY = "sk-client-0123456789"
KEYS = ({"name": "c", "scopes": ["chat", "embeddings"], "sha256": digest(KEY)},)
TEXT = "Grüezi, es regnet. 🙂"
CALL = {"name": "weather", "arguments": '{"town": "Zürich"}'}
MESSAGES = [{"role": "user", "content": "Weather in Zürich?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
VECTORS = [[0.5, -0.25, 1.0], [0.125, 2.0, -4.0]]
BASE = {"created": 1, "model": "m"}


def event(delta: dict, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    one = {"id": "c1", "object": "chat.completion.chunk", **BASE, "choices": [choice]}
    return b"data: %s\n\n" % json.dumps(one).encode()


async def chat(request: Request) -> Response:
    body = await request.json()
    if body["model"] == "refuse":
        return JSONResponse({"error": {"message": "no more", "type": "x", "code": "y"}}, 429)
    has_tools = bool(body.get("tools"))
    if body.get("stream"):
        call = {"index": 0, "id": "call_1", "type": "function"}
        deltas = [{"content": one} for one in TEXT]
        if has_tools:
            first = {**call, "function": {"name": "weather", "arguments": ""}}
            more = [{"index": 0, "function": {"arguments": one}} for one in CALL["arguments"]]
            deltas = [{"tool_calls": [one]} for one in (first, *more)]
        finish = "tool_calls" if has_tools else "stop"
        data = b"".join([*map(event, deltas), event({}, finish), b"data: [DONE]\n\n"])
        return Response(data, media_type="text/event-stream")
    message = {"role": "assistant", "content": TEXT}
    if has_tools:
        calls = [{"id": "call_1", "type": "function", "function": CALL}]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
    token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    logprobs = {"content": [token] * 3, "refusal": None} if body.get("logprobs") else None
    choice = {"message": message, "logprobs": logprobs, "finish_reason": "stop"}
    choices = [{"index": at, **choice} for at in range(body.get("n") or 1)]
    return JSONResponse({"id": "c1", "object": "chat.completion", **BASE, "choices": choices})


async def completions(_: Request) -> Response:
    choice = {"index": 0, "text": " upon a time", "logprobs": None, "finish_reason": "stop"}
    return JSONResponse({"id": "c2", "object": "text_completion", **BASE, "choices": [choice]})


async def embeddings(request: Request) -> Response:
    is_packed = (await request.json()).get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": at,
            "embedding": base64.b64encode(struct.pack("<3f", *one)).decode() if is_packed else one,
        }
        for at, one in enumerate(VECTORS)
    ]
    usage = {"prompt_tokens": 2, "total_tokens": 2}
    return JSONResponse({"object": "list", "data": data, "model": "e", "usage": usage})


async def models(_: Request) -> Response:
    data = [{"id": one, "object": "model", "created": 1, "owned_by": "up"} for one in ("m", "e")]
    return JSONResponse({"object": "list", "data": data})


@pytest.fixture
def door(open_gateway, run_app):
    """The upstream's address, and a gateway with keys in front of it."""
    upstream = Starlette(routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/models", models),
    ])  # fmt: skip
    with (
        run_app(upstream) as up,
        open_gateway(None, api_key=KEY, upstream=up, keys=KEYS) as gateway,
    ):
        yield up, gateway


def everything(client: OpenAI) -> dict:
    """What the Python client makes of each kind of request."""
    ask = client.chat.completions.create
    streams = [
        [one.model_dump() for one in ask(model="m", messages=MESSAGES, stream=True, **more)]
        for more in ({}, {"tools": TOOLS})
    ]
    with pytest.raises(openai.RateLimitError) as refused:
        ask(model="refuse", messages=MESSAGES)
    return {
        "chat": ask(model="m", messages=MESSAGES, logprobs=True, n=2).model_dump(),
        "tools": ask(model="m", messages=MESSAGES, tools=TOOLS).model_dump(),
        "streams": streams,
        "completion": client.completions.create(model="m", prompt="Once").model_dump(),
        "embeddings": client.embeddings.create(model="e", input=["a", "b"]).model_dump(),
        "models": [one.model_dump() for one in client.models.list()],
        "refused": (str(refused.value), refused.value.body),
    }


def check_kept(gateway) -> None:
    """All of it but the embeddings and the list was captured, and as what it was."""
    kept = gateway.interactions()
    assert len(kept) == 7
    whole = [one for one in kept if one.is_plain]
    assert sorted(one.completion.text for one in whole) == sorted([TEXT] * 3 + [" upon a time"])
    assert sorted(len(one.completion.logprobs or ()) for one in whole) == [0, 0, 3, 3]
    called = [one.completion.tool_calls[0] for one in kept if one.completion.tool_calls]
    assert [(one.id, one.name, one.arguments) for one in called] == [("call_1", *CALL.values())] * 2
    assert [one.error for one in kept if one.error] == ["upstream 429"]


def test_the_python_client_sees_no_difference(door) -> None:
    up, gateway = door
    with OpenAI(base_url=f"{up}/v1", api_key="x", max_retries=0) as direct:
        assert everything(gateway.client) == everything(direct)
    check_kept(gateway)


@pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")), reason="needs node and npm on the PATH"
)
def test_the_npm_client_sees_no_difference(door) -> None:
    up, gateway = door
    folder = Path(__file__).parent / "npm"
    if not (folder / "node_modules" / "openai").is_dir():
        command = ["npm", "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm could not install the openai client: {done.stderr[-300:]}")
    told = []
    for url, key in ((up, "x"), (gateway.url, KEY)):
        command = ["node", "clients.mjs", f"{url}/v1", key]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    direct, through = told
    assert through == direct
    assert through["stream"] == TEXT and through["chat"] == [[TEXT, 3]] * 2
    assert through["tools"] == through["streamed"] == CALL
    assert through["embeddings"] == VECTORS and through["models"] == ["m", "e"]
    assert through["refusal"][:2] == ["RateLimitError", 429]
    check_kept(gateway)
