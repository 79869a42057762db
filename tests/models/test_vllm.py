"""The client of a vLLM server: against what a real one said, and against one that misbehaves."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trueup.errors import ConfigError, UpstreamError
from trueup.models.vllm import VLLMServer
from vllm_live.scenarios import NO_END, SCENARIOS, World, asked, make_world, save_model
from vllm_live.wire import Answer, replaying, serving

KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    return make_world(folder, save_model(folder / "model"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_against_what_a_real_server_said(world: World, name: str) -> None:
    with replaying(name) as url:
        SCENARIOS[name](world._replace(url=url))


def test_a_server_that_does_not_load_adapters_says_how_to_let_it() -> None:
    with (
        replaying("a_server_that_may_not_load") as url,
        pytest.raises(UpstreamError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    ):
        VLLMServer(url, max_retries=0).load_adapter("policy", Path("/nowhere/adapter"))


# --- servers that misbehave; these answers are made up --------------------------------------------


def choice(**other: Any) -> dict[str, Any]:
    """A choice as vLLM has them, or with something else in it."""
    return {
        "index": 0,
        "token_ids": [7, 8],
        "prompt_token_ids": [1, 2, 3],
        "logprobs": {"token_logprobs": [-1.5, -0.5]},
        "finish_reason": "length",
        "text": "",
    } | other


def answered(*choices: dict[str, Any]) -> Answer:
    return Answer(200, json.dumps({"choices": list(choices)}).encode())


class Scripted:
    """Says what it is told to, in order, and keeps what it was asked."""

    def __init__(self, *answers: Answer, slow_s: float = 0.0) -> None:
        self.answers, self.slow_s = list(answers), slow_s
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0

    def __call__(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.bodies.append(json.loads(body) if body else {})
        self.headers.append(headers)
        time.sleep(self.slow_s)
        self.at_once -= 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def draw(scripted: Scripted, num_prompts: int = 1, **settings: Any) -> list[list[Any]]:
    requests = [asked([1, 2, 3], max_tokens=2) for _ in range(num_prompts)]
    with serving(scripted) as url:
        server = VLLMServer(url, **{"max_retries": 0, "timeout_s": 5.0, **settings})
        return server.sample("policy", requests, eos_ids=NO_END, salt="weights_1")


def test_every_setting_is_in_the_request() -> None:
    """What is missing, a server fills from the model folder's generation_config.json."""
    scripted = Scripted(answered(choice()))
    ((drawn,),) = draw(scripted)
    assert (drawn.token_ids, drawn.logprobs, drawn.finish_reason) == (
        [7, 8],
        [-1.5, -0.5],
        "length",
    )
    (body,) = scripted.bodies
    assert body == {
        "model": "policy",
        "prompt": [1, 2, 3],
        "n": 1,
        "max_tokens": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "watermarking": False,
        "stop": [],
        "ignore_eos": True,
        "stop_token_ids": sorted(NO_END),
        "logprobs": 0,
        "return_token_ids": True,
        "cache_salt": "weights_1",
        "seed": 11,
    }


def test_a_failure_is_tried_again_and_tries_end() -> None:
    broken, full = Answer(500, b"oh"), Answer(429, b'{"error": {"message": "busy"}}')
    scripted = Scripted(broken, full, answered(choice()))
    assert draw(scripted, max_retries=2)[0][0].token_ids == [7, 8]
    scripted = Scripted(broken)
    with pytest.raises(UpstreamError, match=r"HTTP 500: oh.*HTTP 200.*base_url"):
        draw(scripted, max_retries=1)
    assert len(scripted.bodies) == 2


def test_a_refusal_is_not_asked_again() -> None:
    scripted = Scripted(Answer(400, b'{"error": {"message": "too long"}}'))
    with pytest.raises(UpstreamError, match=r"HTTP 400: too long.*max-model-len"):
        draw(scripted, max_retries=3)
    assert len(scripted.bodies) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200, b"not json"), "not json"),
        (Answer(200, b'{"choices": 3}'), "choices"),
        (answered(), "0 choices"),
        (answered(choice(), choice(index=1)), "2 choices"),
        (answered(choice(token_ids=None)), "token_ids"),
        (answered(choice(logprobs=None)), "logprobs"),
        (answered(choice(token_ids=[7])), "1 tokens with 2 log-probs"),
        (answered(choice(logprobs={"token_logprobs": [-1.0, float("nan")]})), "not finite"),
        (answered(choice(prompt_token_ids=[0, 1, 2, 3])), "another prompt"),
        (answered(choice(token_ids=[7], logprobs={"token_logprobs": [-1.0]})), "no end token"),
        (answered(choice(finish_reason="abort")), "abort"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(answer: Answer, said: str) -> None:
    with pytest.raises(UpstreamError, match=said):
        draw(Scripted(answer))


def test_patience_ends() -> None:
    with pytest.raises(UpstreamError, match=r"no answer within 0\.2 s"):
        draw(Scripted(answered(choice()), slow_s=1.0), timeout_s=0.2)


def test_requests_in_flight_are_bounded() -> None:
    scripted = Scripted(answered(choice()), slow_s=0.03)
    assert len(draw(scripted, 12, concurrency=3)) == 12
    assert 1 < scripted.most_at_once <= 3


def test_a_server_that_is_down_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = VLLMServer(f"http://127.0.0.1:{port}/v1", max_retries=1)
    with pytest.raises(UpstreamError, match=rf"127\.0\.0\.1:{port}/v1 .*is up"):
        server.models()
    with pytest.raises(UpstreamError, match="not a URL"):
        VLLMServer("nonsense").models()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TRUEUP_ENGINE_API_KEY", KEY)
    yield KEY


def test_the_key_goes_in_the_header_and_into_no_message(key: str) -> None:
    scripted = Scripted(Answer(401, json.dumps({"error": {"message": f"no {key}"}}).encode()))
    with pytest.raises(UpstreamError, match=r"\[key\].*TRUEUP_ENGINE_API_KEY") as caught:
        draw(scripted)
    assert key not in str(caught.value)
    assert scripted.headers[0]["Authorization"] == f"Bearer {key}"


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        VLLMServer("http://me:secret@127.0.0.1:1/v1")
    assert "secret" not in str(caught.value)
