"""Clients that hang up: the drawing stops, and what was said is kept."""

import json
import socket
import threading
import time

import httpx
import pytest

from trueup.models.engine import Engine
from trueup.records import Interaction, Message, Sampling

RESET = [{"role": "user", "content": "How do I reset it?"}]
LONG = {"messages": RESET, "temperature": 2, "seed": 0, "n": 8, "max_tokens": 900}


@pytest.fixture
def endless(open_gateway, engine: Engine):
    """A model that never ends its turn: it talks for seconds unless somebody stops it."""
    engine._eos_ids = frozenset()
    with open_gateway(engine, max_tokens=900) as gateway:
        yield gateway


def test_a_stream_that_is_left_keeps_what_was_said(endless) -> None:
    url = f"{endless.url}/v1/chat/completions"
    with httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=60) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        for _ in range(100):
            next(lines)
    for one in wait_for_interactions(endless, 8):
        assert one.completion.finish_reason == "unknown" and 0 < one.output_tokens < 900
        assert len(one.completion.logprobs) == one.output_tokens and one.completion.text
        assert one.completion.weights == endless.engine.champion_weights()


def test_a_whole_answer_that_nobody_waits_for_is_given_up(endless) -> None:
    url = f"{endless.url}/v1/chat/completions"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=LONG, timeout=httpx.Timeout(60, read=0.5))
    kept = wait_for_interactions(endless, 8)
    assert {one.completion.finish_reason for one in kept} == {"unknown"}
    short = {"messages": RESET, "temperature": 0, "max_tokens": 32}
    after = endless.http.post("/v1/chat/completions", json=short)
    assert after.json()["choices"][0]["message"]["content"] == "Hold the button for ten seconds."


def test_who_leaves_the_queue_is_not_answered(open_gateway, engine: Engine) -> None:
    is_held, is_free = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        is_held.set()
        is_free.wait(60)

    prompt = (Message(role="user", content="How do I reset it?"),)
    with open_gateway(engine) as gateway:
        body = {"messages": RESET, "user": "impatient"}
        busy = engine.submit(prompt, Sampling(max_tokens=3), on_piece=hold)
        assert is_held.wait(60)  # in the middle of a batch
        callers = [send(gateway.url, {**body, **more}) for more in ({}, {"stream": True})]
        wait_until(lambda: len(engine._waiting) == 2)
        for caller in callers:
            caller.close()
        wait_until(lambda: all(p.is_cancelled for p in engine._waiting))
        is_free.set()
        assert busy.answer.result(60)
        patient = gateway.http.post("/v1/chat/completions", json={**body, "user": "patient"})
        assert patient.status_code == 200
        assert [one.user for one in gateway.interactions()] == ["patient"]


def send(url: str, body: dict) -> socket.socket:
    """A request whose sender may hang up whenever it likes."""
    content = json.dumps(body).encode()
    caller = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    caller.sendall(head.encode() + b"\r\n" + content)
    return caller


def wait_for_interactions(gateway, number: int) -> list[Interaction]:
    wait_until(lambda: len(gateway.interactions()) >= number)
    kept = gateway.interactions()
    assert len(kept) == number
    return kept


def wait_until(is_so) -> None:
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_so()
