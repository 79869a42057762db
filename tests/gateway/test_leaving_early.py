"""Clients that hang up: the drawing stops, and what was said is kept."""

import time

import httpx

RESET = [{"role": "user", "content": "How do I reset it?"}]
LONG = {"messages": RESET, "temperature": 2, "seed": 0, "n": 16, "max_tokens": 900}


def test_a_stream_that_is_left_keeps_what_was_said(open_gateway, engine) -> None:
    with open_gateway(engine, max_tokens=900) as gateway:
        url = f"{gateway.url}/v1/chat/completions"
        with httpx.stream("POST", url, json={**LONG, "stream": True}) as stream:
            assert stream.status_code == 200
            lines = stream.iter_lines()
            for _ in range(100):
                next(lines)
        kept = wait_for_interactions(gateway, 16)
    broken_off = [one for one in kept if one.completion.finish_reason == "unknown"]
    assert broken_off and all(0 < one.output_tokens < 900 for one in broken_off)
    for one in broken_off:
        assert len(one.completion.logprobs) == one.output_tokens and one.completion.text
        assert one.completion.weights == engine.champion_weights()


def test_a_whole_answer_that_nobody_waits_for_is_given_up(open_gateway, engine) -> None:
    with open_gateway(engine, max_tokens=900) as gateway:
        url = f"{gateway.url}/v1/chat/completions"
        try:
            httpx.post(url, json=LONG, timeout=0.3)
            raise AssertionError("the answer came too soon for this test")
        except httpx.ReadTimeout:
            pass
        kept = wait_for_interactions(gateway, 16)
        assert any(one.completion.finish_reason == "unknown" for one in kept)
        after = httpx.post(url, json={"messages": RESET, "temperature": 0, "max_tokens": 60})
        assert after.json()["choices"][0]["message"]["content"].startswith("Hold the button")


def test_who_leaves_the_queue_is_not_answered(open_gateway, engine) -> None:
    with open_gateway(engine, max_tokens=900) as gateway:
        url = f"{gateway.url}/v1/chat/completions"
        with httpx.stream("POST", url, json={**LONG, "stream": True}) as stream:
            next(stream.iter_lines())
            try:
                httpx.post(url, json={"messages": RESET, "user": "impatient"}, timeout=0.2)
                raise AssertionError("the answer came too soon for this test")
            except httpx.ReadTimeout:
                pass
        kept = wait_for_interactions(gateway, 16)
    assert not any(one.user == "impatient" for one in kept)


def wait_for_interactions(gateway, number: int) -> list:
    deadline = time.monotonic() + 20
    while len(kept := gateway.interactions()) < number and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(kept) == number
    return kept
