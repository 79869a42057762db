"""Several servers behind one gateway: by model, the next one when nobody is there."""

import json
import socket

import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

HELLO = [{"role": "user", "content": "Hello?"}]


def named(name: str, *models: str) -> Starlette:
    """An upstream that says its name."""

    async def answer(request: Request) -> JSONResponse:
        model = (await request.json())["model"]
        message = {"role": "assistant", "content": f"{name} {model}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": f"{name}-1", "object": "chat.completion", "choices": [choice]})

    async def listed(_: Request) -> JSONResponse:
        data = [{"id": one, "object": "model", "owned_by": name} for one in models]
        return JSONResponse({"object": "list", "data": data})

    async def where(request: Request) -> JSONResponse:
        return JSONResponse({"name": name, "key": request.headers.get("authorization")})

    return Starlette(routes=[
        Route("/v1/chat/completions", answer, methods=["POST"]),
        Route("/v1/embeddings", answer, methods=["POST"]),
        Route("/v1/models", listed),
        Route("/v1/where", where),
    ])  # fmt: skip


def nobody() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def ask(gateway, model: str) -> str:
    said = gateway.client.chat.completions.create(model=model, messages=HELLO)
    return said.choices[0].message.content


def test_a_model_goes_to_the_first_that_fits(open_gateway, run_app, monkeypatch) -> None:
    monkeypatch.setenv("TRUEUP_TEST_A", "key-of-a")
    with run_app(named("a", "a-1", "a-2", "b-1")) as a, run_app(named("b", "b-1", "x")) as b:
        upstreams = (
            {"url": a, "name": "left", "models": ["a-*"], "key_env": "TRUEUP_TEST_A"},
            {"url": b, "models": ["b-?"]},
        )
        with open_gateway(None, upstreams=upstreams) as gateway:
            assert [ask(gateway, m) for m in ("a-1", "b-1", "a-x")] == ["a a-1", "b b-1", "a a-x"]
            body = {"model": "b-2", "input": "x"}
            assert gateway.http.post("/v1/embeddings", json=body).json()["id"] == "b-1"
            with pytest.raises(openai.NotFoundError) as caught:
                ask(gateway, "c-1")
            assert caught.value.code == "model_not_found"
            # each is asked for its models and answers for those that its patterns name
            assert [one.id for one in gateway.client.models.list()] == ["a-1", "a-2", "b-1"]
            where = gateway.http.get("/v1/where", headers={"authorization": "Bearer mine"}).json()
            assert where == {"name": "a", "key": "Bearer key-of-a"}
            told = gateway.http.get("/health").json()["upstreams"]
            assert [one["name"] for one in told] == ["left", b.removeprefix("http://")]
            assert [one["is_up"] for one in told] == [True, True]
            assert "key-of-a" not in json.dumps(told)
            kept = gateway.interactions()
            assert [one.model for one in kept] == ["a-1", "b-1", "a-x"]


def test_who_refuses_the_connection_is_passed_over(open_gateway, run_app) -> None:
    gone = nobody()
    with run_app(named("b", "m")) as b:
        upstreams = ({"url": gone, "name": "gone"}, {"url": b, "name": "there"})
        with open_gateway(None, upstreams=upstreams) as gateway:
            assert ask(gateway, "m") == "b m"
            assert [one.id for one in gateway.client.models.list()] == ["m"]
            gone_told, there = gateway.http.get("/health").json()["upstreams"]
            assert gone_told["is_up"] is False and gone_told["failures"] == 2
            assert there["is_up"] is True and there["failures"] == 0
            assert [one.error for one in gateway.interactions()] == [""]


def test_who_took_the_request_is_not_passed_over(open_gateway, run_app, raw_server) -> None:
    """It may be answering: asked twice, a customer pays twice."""
    num_asked = []

    def take_and_drop(caller: socket.socket, _: bytes) -> None:
        num_asked.append(1)
        caller.close()

    with (
        run_app(named("b", "m")) as b,
        raw_server(take_and_drop) as a,
        open_gateway(None, upstreams=({"url": a}, {"url": b})) as gateway,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(gateway, "m")
        assert caught.value.status_code == 502 and len(num_asked) == 1
        assert [one.error for one in gateway.interactions()] == ["upstream unreachable"]


def test_the_single_upstream_answers_for_what_the_list_does_not(open_gateway, run_app) -> None:
    with run_app(named("a")) as a, run_app(named("rest")) as rest:
        upstreams = ({"url": a, "models": ["a"]},)
        with open_gateway(None, upstream=rest, upstreams=upstreams) as gateway:
            assert [ask(gateway, m) for m in ("a", "anything")] == ["a a", "rest anything"]


@pytest.mark.parametrize("status", [401, 404, 200, 500])
def test_who_does_not_list_its_models_is_not_down_for_it(open_gateway, run_app, status) -> None:
    """Many servers have no such route, or keep it from their callers; one that fails is down."""

    async def refuses(_: Request) -> JSONResponse:
        return JSONResponse({"error": {"message": "no"}}, status)

    with (
        run_app(Starlette(routes=[Route("/v1/models", refuses)])) as a,
        run_app(named("b", "b-1")) as b,
    ):
        upstreams = ({"url": a, "name": "quiet", "models": ["a-*"]}, {"url": b})
        with open_gateway(None, upstreams=upstreams) as gateway:
            assert [one.id for one in gateway.client.models.list()] == ["b-1"]
            quiet, _ = gateway.http.get("/health").json()["upstreams"]
            assert (quiet["is_up"], quiet["failures"]) == (
                (False, 1) if status == 500 else (True, 0)
            )
        with open_gateway(None, upstreams=upstreams[:1]) as gateway:
            said = gateway.http.get("/v1/models")
            assert said.status_code == 502 and a not in said.text


def test_patterns_of_models_are_stars_and_question_marks_alone(open_gateway, run_app) -> None:
    with run_app(named("a")) as a, run_app(named("rest")) as rest:
        upstreams = ({"url": a, "models": ["m[12]*"]},)
        with open_gateway(None, upstream=rest, upstreams=upstreams) as gateway:
            assert [ask(gateway, m) for m in ("m[12]-x", "m1")] == ["a m[12]-x", "rest m1"]
