"""The gateway in front of another server: same bytes, same status, and a transcript."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import openai
import pytest
from openai import OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from trueup.capture import CaptureConfig
from trueup.gateway.app import create_app
from trueup.gateway.config import ServeConfig
from trueup.gateway.upstreams import base_url as _base
from trueup.records import Interaction, Message

HELLO = [{"role": "user", "content": "Wie geht es?"}]
TEXT = "Schön, grüß dich! 🙂"
USAGE = {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13}


# --- a scripted upstream ------------------------------------------------------------------------


def events(choices: dict[int, str], *, newline: str = "\n") -> bytes:
    """A stream of one character an event, with fields nobody has heard of."""
    out = []
    for index, text in choices.items():
        for char in text:
            delta = {"content": char, "x_mood": "fine"}
            choice = {"index": index, "delta": delta, "finish_reason": None}
            out.append({"id": "up-1", "x_new": {"a": 1}, "choices": [choice]})
        out.append(
            {"id": "up-1", "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]}
        )
    out.append({"id": "up-1", "choices": [], "usage": USAGE})
    lines = [": a comment", *(f"data: {json.dumps(one, ensure_ascii=False)}" for one in out)]
    return (newline * 2).join([*lines, "data: [DONE]", ""]).encode()


async def scripted_chat(request: Request) -> Response:
    """Does what the request's `x_script` says."""
    body = await request.json()
    script = body.get("x_script")
    request.app.state.seen.append((dict(request.headers), body))
    if script == "refuse":
        return JSONResponse({"error": {"message": "slow down", "code": "rate"}}, 429)
    if script == "silent":
        await asyncio.sleep(3)
    if script == "garbage":
        return Response(b"<html>", media_type="text/html")
    if body.get("stream"):
        data = events({0: TEXT, 1: "Zwei"} if body.get("n") == 2 else {0: TEXT})
        if script in ("crlf", "cr"):
            data = events({0: TEXT}, newline="\r\n" if script == "crlf" else "\r")
        return StreamingResponse(trickle(data, script), media_type="text/event-stream")
    message = {"role": "assistant", "content": TEXT}
    if script == "tools":
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    answer = Response(
        json.dumps({
            "id": "up-2", "x_new": 1, "usage": USAGE,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }, indent=3),
        media_type="application/json", headers={"x-upstream": "yes"},
    )  # fmt: skip
    answer.set_cookie("a", "1")
    answer.set_cookie("b", "2")
    return answer


async def trickle(data: bytes, script: str | None) -> AsyncIterator[bytes]:
    """Cut without regard to lines and characters."""
    for at in range(0, len(data), 37):
        if script in ("break", "hang") and at > len(data) / 2:
            if script == "break":
                raise RuntimeError("the upstream falls over")
            await asyncio.sleep(3)
        yield data[at : at + 37]
        await asyncio.sleep(0.001)


async def echo(request: Request) -> Response:
    """Says what it was asked."""
    said = {"method": request.method, "query": request.url.query, "path": request.url.path}
    return JSONResponse({**said, "body": (await request.body()).decode()}, 207)


@pytest.fixture
def upstream(run_app) -> Iterator[tuple[str, list]]:
    methods = ["GET", "POST", "DELETE"]
    app = Starlette(routes=[
        Route("/v1/chat/completions", scripted_chat, methods=["POST"]),
        Route("/v1/{path:path}", echo, methods=methods),
    ])  # fmt: skip
    app.state.seen = []
    with run_app(app) as url:
        yield url, app.state.seen


@pytest.fixture
def proxy(open_gateway, upstream) -> Iterator:
    with open_gateway(None, upstream=upstream[0]) as gateway:
        yield gateway


@pytest.fixture
def impatient(open_gateway, upstream) -> Iterator:
    with open_gateway(None, upstream=upstream[0], upstream_timeout_s=1) as gateway:
        yield gateway


def raw(url: str, body: dict, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


# --- same bytes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [None, "crlf", "cr"])
def test_a_stream_passes_byte_for_byte_and_its_text_is_kept(proxy, upstream, script) -> None:
    body = {"model": "m", "messages": HELLO, "stream": True, "x_script": script, "x_odd": [1]}
    direct, through = raw(upstream[0], body), raw(proxy.url, body)
    assert through.content == direct.content and b"x_mood" in through.content
    assert through.headers["content-type"] == direct.headers["content-type"]
    assert upstream[1][0][1] == upstream[1][1][1] == body
    (kept,) = proxy.interactions()
    assert kept.completion.text == TEXT and kept.completion.finish_reason == "stop"
    assert kept.request_id == "up-1" and kept.model == "m" and kept.source == "gateway"
    assert (kept.input_tokens, kept.output_tokens) == (4, 9)
    assert kept.completion.logprobs is None and kept.completion.weights is None


@pytest.mark.parametrize(
    ("asked", "kept_as"),
    [
        ({"top_k": 5, "min_p": 0.1, "stop": "##"}, (5, 0.1, ("##",))),
        ({"top_k": -1, "stop": ["a", "b"]}, (0, 0.0, ("a", "b"))),
        ({"top_k": None, "stop": None}, (0, 0.0, ())),
    ],
)
def test_what_the_request_cut_from_the_distribution_is_kept(proxy, asked, kept_as) -> None:
    body = {"model": "m", "messages": HELLO, "temperature": 1, "max_tokens": 9}
    assert raw(proxy.url, {**body, **asked}).status_code == 200
    sampling = proxy.interactions()[0].completion.sampling
    assert (sampling.top_k, sampling.min_p, sampling.stop) == kept_as


def test_a_whole_answer_passes_byte_for_byte_with_its_headers(proxy, upstream) -> None:
    body = {"model": "m", "messages": HELLO, "temperature": 0.5, "max_tokens": 9, "user": "u"}
    direct = raw(upstream[0], body, authorization="Bearer s3", **{"x-team": "blue"})
    through = raw(proxy.url, body, authorization="Bearer s3", **{"x-team": "blue"})
    assert through.content == direct.content and through.headers["x-upstream"] == "yes"
    assert through.headers.get_list("set-cookie") == direct.headers.get_list("set-cookie")
    assert len(through.headers.get_list("date")) == 1
    for headers, _ in upstream[1]:
        assert headers["authorization"] == "Bearer s3" and headers["x-team"] == "blue"
    (kept,) = proxy.interactions()
    assert kept.prompt == (Message(**HELLO[0]),) and kept.completion.text == TEXT
    assert kept.completion.sampling.temperature == 0.5 and kept.user == "u"


def test_our_own_server_behind_it_looks_the_same_to_the_client(
    open_gateway, engine, run_app
) -> None:
    asked = {"model": "champion", "messages": HELLO, "temperature": 0, "max_tokens": 60}
    with open_gateway(engine) as origin:
        config = ServeConfig(upstream=f"{origin.url}/v1/")
        app = create_app(origin.store, config, CaptureConfig(), None)
        with run_app(app) as url, OpenAI(base_url=f"{url}/v1", api_key="k") as client:
            direct = origin.client.chat.completions.create(**asked)
            assert client.models.list().data[0].weights == engine.champion_weights()
            stream = list(client.chat.completions.create(**asked, stream=True))
            pieces = [c.choices[0].delta.content or "" for c in stream]
            assert "".join(pieces) == direct.choices[0].message.content
            with pytest.raises(openai.BadRequestError, match="not supported by the local model"):
                client.chat.completions.create(**asked, frequency_penalty=1)
            assert app.state.recorder.flush(60) and origin.recorder.flush(60)
            # captured at both, under one id, with the same text; only the origin knows the tokens
            twice = origin.store.all(Interaction, request_id=stream[0].id)
    assert len({one.completion.text for one in twice}) == 1
    assert sorted(one.completion.logprobs is None for one in twice) == [False, True]


def test_other_routes_pass_in_both_directions(proxy, upstream) -> None:
    for method, path, content in (
        ("GET", "/v1/files/a%2Fb?limit=2&x=%20", None),
        ("POST", "/v1/embeddings", b'{"input": "x"}'),
        ("DELETE", "/v1/files/1", None),
        ("GET", "/v1/models", None),
    ):
        direct = httpx.request(method, upstream[0] + path, content=content, timeout=60)
        through = proxy.http.request(method, path, content=content)
        assert (through.status_code, through.content) == (207, direct.content)
    parts = iter([b"a" * 1000, b"b"])  # a body of unknown length
    through = proxy.http.post("/v1/files", content=parts)
    assert through.json()["body"] == "a" * 1000 + "b"


def test_the_upstreams_refusal_is_passed_on_and_kept_as_an_error(proxy) -> None:
    with pytest.raises(openai.RateLimitError, match="slow down"):
        proxy.client.chat.completions.create(
            model="m", messages=HELLO, extra_body={"x_script": "refuse"}
        )
    (kept,) = proxy.interactions()
    assert kept.error == "upstream 429" and kept.completion.text == ""
    assert kept.prompt == (Message(**HELLO[0]),) and kept.request_id.startswith("req_")


def test_feedback_finds_the_upstreams_id_at_once(proxy) -> None:
    for stream, script in ((True, None), (True, "cr"), (False, None)):
        said = raw(proxy.url, {"messages": HELLO, "stream": stream, "x_script": script})
        request_id = "up-1" if stream else said.json()["id"]
        feedback = {"request_id": request_id, "rating": 1}
        assert proxy.http.post("/v1/feedback", json=feedback).status_code == 200


# --- what is kept -------------------------------------------------------------------------------


def test_the_newer_name_of_the_user_is_read_where_the_older_is_absent(proxy) -> None:
    for more in (
        {"safety_identifier": "eve"},
        {"user": "ann", "safety_identifier": "eve"},
        {"user": None, "safety_identifier": 7},
    ):
        raw(proxy.url, {"messages": HELLO, **more})
    assert [one.user for one in proxy.interactions()] == ["eve", "ann", None]


def test_a_temperature_without_bounds_leaves_a_record_that_can_be_read(proxy) -> None:
    body = json.dumps({"messages": HELLO, "max_tokens": 9, "temperature": 1}).replace(
        ": 1}", ": 1e999}"
    )
    assert proxy.http.post("/v1/chat/completions", content=body).status_code == 200
    (kept,) = proxy.interactions()
    assert kept.completion.text == TEXT and kept.completion.sampling is None


def test_every_choice_of_a_stream_is_kept(proxy) -> None:
    raw(proxy.url, {"messages": HELLO, "stream": True, "n": 2})
    kept = proxy.interactions()
    assert [(one.request_id, one.completion.text) for one in kept] == [
        ("up-1", TEXT),
        ("up-1-1", "Zwei"),
    ]
    assert {one.output_tokens for one in kept} == {None}  # the usage is of both together


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": "nonsense"},
    ],
)
def test_what_is_not_text_passes_and_is_counted(proxy, more) -> None:
    assert raw(proxy.url, {"messages": HELLO, **more}).status_code == 200
    assert proxy.interactions() == []
    assert proxy.recorder.counters["skipped_not_text"] == 1


def test_half_of_a_character_does_not_cost_its_neighbours(proxy) -> None:
    # passes as JSON, fits no database
    body = json.dumps({"model": "\ud800", "messages": HELLO})
    assert proxy.http.post("/v1/chat/completions", content=body).status_code == 200
    raw(proxy.url, {"messages": HELLO})
    assert len(proxy.interactions()) == 1 and proxy.recorder.counters["failed"] == 1


# --- when it breaks -----------------------------------------------------------------------------


def test_an_upstream_that_is_down_is_a_502_that_says_so(open_gateway, caplog) -> None:
    with open_gateway(None, upstream="http://127.0.0.1:9") as gateway:
        with pytest.raises(openai.InternalServerError) as caught:
            gateway.client.chat.completions.create(model="m", messages=HELLO)
        assert isinstance(caught.value, openai.APIStatusError) and caught.value.status_code == 502
        for part in ("cannot be reached", "Expected", "serve.upstream"):
            assert part in str(caught.value)
        assert "127.0.0.1" not in str(caught.value)  # where it is, is nothing to those who ask
        assert gateway.http.get("/v1/models").status_code == 502
        assert caplog.text.count("The upstream http://127.0.0.1:9/v1 failed") == 1
        (told,) = gateway.http.get("/health").raise_for_status().json()["upstreams"]
        assert told["is_up"] is False and told["failures"] == 2 and told["last_error"]
        assert [one.error for one in gateway.interactions()] == ["upstream unreachable"]


def test_an_upstream_that_falls_silent_is_a_504(impatient) -> None:
    answer = raw(impatient.url, {"messages": HELLO, "x_script": "silent"})
    assert answer.status_code == 504 and "in time" in answer.json()["error"]["message"]
    assert "127.0.0.1" not in answer.text
    assert [one.error for one in impatient.interactions()] == ["timeout"]


@pytest.mark.parametrize("script", ["break", "hang"])
def test_a_stream_that_breaks_off_says_so_and_keeps_its_half(impatient, script) -> None:
    said = ""
    with pytest.raises(openai.APIError, match="upstream"):
        for chunk in impatient.client.chat.completions.create(
            model="m", messages=HELLO, stream=True, extra_body={"x_script": script}
        ):
            said += chunk.choices[0].delta.content or ""
    (kept,) = impatient.interactions()
    assert kept.completion.text.startswith(said) and TEXT.startswith(kept.completion.text)
    assert 0 < len(kept.completion.text) < len(TEXT)
    assert kept.completion.finish_reason == "unknown"
    assert kept.error == {"break": "upstream broke off", "hang": "timeout"}[script]


def test_a_client_that_leaves_keeps_its_half(proxy) -> None:
    body = {"messages": HELLO, "stream": True, "x_script": "hang"}
    with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        while "content" not in next(lines):
            pass
    deadline = time.monotonic() + 60
    while not (kept := proxy.interactions()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert TEXT.startswith(kept[0].completion.text)
    assert kept[0].completion.finish_reason == "unknown" and kept[0].error == "client left"


def test_requests_that_are_no_json_do_not_reach_the_upstream(proxy, upstream) -> None:
    url = f"{proxy.url}/v1/chat/completions"
    assert proxy.http.post(url, content=b"{").status_code == 400
    assert proxy.http.post(url, content=b"x" * (11 * 1024 * 1024)).status_code == 413
    assert upstream[1] == []


def test_the_base_url_may_be_spelled_as_one_likes() -> None:
    for spelled in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"):
        assert _base(spelled) == "http://h:1/v1"
    assert _base("https://h/v1beta/openai/") == "https://h/v1beta/openai"
