"""Best of N at inference, over HTTP: the best draw is answered, captured, and marked."""

import inspect
from collections.abc import Callable, Iterator

import pytest

from loop_scorers import padded
from trueup.config import validate
from trueup.errors import ConfigError
from trueup.gateway.config import ServeConfig
from trueup.models.engine import Engine
from trueup.project import Config
from trueup.records import Message, Sampling

QUESTION = "How do I reset it?"
ASKED = [{"role": "user", "content": QUESTION}]
PROMPT = (Message(role="user", content=QUESTION),)


@pytest.fixture
def best(open_gateway: Callable, engine: Engine) -> Iterator:
    """It answers with the longest of six."""
    with open_gateway(
        engine, max_tokens=16, best_of=6, best_of_judge="loop_scorers:padded"
    ) as gateway:
        yield gateway


def ask(gateway, **more: object):
    return gateway.client.chat.completions.create(
        model="champion", messages=ASKED, temperature=1.0, seed=3, **more
    )


def test_the_answer_is_the_best_of_the_draws(best, engine: Engine) -> None:
    said = ask(best).choices[0].message.content
    # the same seed draws the same six side by side
    sampling = Sampling(max_tokens=16, seed=3)
    drawn = engine.submit(PROMPT, sampling, num_samples=6).answer.result(60)
    texts = [one.text for one in drawn]
    assert len(set(texts)) > 1, "draws that are all alike show nothing"
    assert said == max(texts, key=lambda text: padded(PROMPT, text))
    (kept,) = best.interactions()
    assert kept.completion.text == said
    assert kept.completion.sampling is not None and kept.completion.sampling.best_of == 6
    assert not kept.completion.sampling.is_plain
    assert kept.completion.logprobs is not None


def test_every_choice_is_the_best_of_its_own_draws(best, engine: Engine) -> None:
    answer = ask(best, n=2)
    sampling = Sampling(max_tokens=16, seed=3)
    drawn = engine.submit(PROMPT, sampling, num_samples=12).answer.result(60)
    wanted = [max((d.text for d in part), key=len) for part in (drawn[:6], drawn[6:])]
    assert [choice.message.content for choice in answer.choices] == wanted
    assert sorted(one.completion.text for one in best.interactions()) == sorted(wanted)


def test_a_stream_comes_in_one_piece_and_says_the_same(best) -> None:
    whole = ask(best).choices[0].message.content
    chunks = list(ask(best, stream=True))
    said = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert said == [whole]
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_a_judge_that_fails_costs_the_choice_and_not_the_answer(
    open_gateway: Callable, engine: Engine
) -> None:
    settings = {"max_tokens": 16, "best_of": 3, "best_of_judge": "loop_scorers:broken"}
    with open_gateway(engine, **settings) as gateway:
        said = ask(gateway).choices[0].message.content
        drawn = engine.submit(PROMPT, Sampling(max_tokens=16, seed=3), num_samples=3)
        assert said == drawn.answer.result(60)[0].text
        assert len(gateway.interactions()) == 1


@pytest.mark.parametrize("judge", ["hangs", "nan", "too_few", "quits", "cancelled"])
def test_a_judge_that_hangs_or_talks_nonsense_costs_the_choice_too(
    open_gateway: Callable, engine: Engine, judge: str
) -> None:
    settings = {"best_of": 3, "best_of_judge": f"loop_scorers:{judge}", "best_of_timeout_s": 0.5}
    with open_gateway(engine, max_tokens=16, **settings) as gateway:
        said = [ask(gateway).choices[0].message.content for _ in range(3)]
        drawn = engine.submit(PROMPT, Sampling(max_tokens=16, seed=3), num_samples=3)
        assert said == [drawn.answer.result(60)[0].text] * 3
        kept = gateway.interactions()
        assert [one.completion.sampling.best_of for one in kept] == [1] * 3


def test_more_draws_than_fit_side_by_side_are_refused_in_words(
    open_gateway: Callable, engine: Engine
) -> None:
    with open_gateway(engine, best_of=40, best_of_judge="loop_scorers:padded") as gateway:
        said = gateway.http.post("/v1/chat/completions", json={"messages": ASKED, "n": 2})
        assert said.status_code == 400
        assert "cannot be drawn" in said.json()["error"]["message"]
        assert gateway.interactions() == []


def test_a_request_may_have_as_many_draws_as_the_engine_has_rows() -> None:
    most = inspect.signature(Engine).parameters["max_batch_rows"].default
    assert ServeConfig(best_of=most, best_of_judge="x:y").best_of == most


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        ({"best_of": 4}, "best_of_judge"),
        ({"best_of": 49, "best_of_judge": "x:y"}, "48"),
        ({"best_of": 4, "best_of_judge": "x:y", "upstream": "http://127.0.0.1:1"}, "local model"),
    ],
)
def test_settings_that_cannot_work_are_refused(serve: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        validate(Config, {"serve": serve}, source="trueup.toml")
