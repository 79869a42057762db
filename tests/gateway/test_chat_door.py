"""Chat with the local model through the real OpenAI client: answers, log-probs, what is kept."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from trueup.gateway.errors import RequestError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.records import Interaction, Message

RESET = [{"role": "user", "content": "How do I reset it?"}]
HELLO = [{"role": "user", "content": "Wie geht es?"}]
GREEDY = {"model": "champion", "temperature": 0, "max_tokens": 60}


def recomputed(backbone: Backbone, interaction: Interaction) -> list[float]:
    ids = chat.prompt_ids(backbone.tokenizer, interaction.prompt)
    row = Branches(ids, [interaction.completion.token_ids])
    return completion_logprobs(backbone.model, [row])[0][0].tolist()


# --- answers ------------------------------------------------------------------------------------


def test_a_taught_question_gets_its_answer_and_the_figures_add_up(gateway) -> None:
    answer = gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.model == "champion" and answer.system_fingerprint.startswith("weights_")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "Hold the button for ten seconds."
    assert answer.choices[0].finish_reason == "stop"
    # one token a byte, and the end-of-turn token
    assert answer.usage.completion_tokens == len("Hold the button for ten seconds.") + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("messages", [RESET, HELLO])
def test_pieces_of_a_stream_join_to_the_whole_answer(gateway, messages) -> None:
    whole = gateway.client.chat.completions.create(messages=messages, **GREEDY)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(gateway.client.chat.completions.create(messages=messages, **GREEDY, **options))
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 5 and not any("\ufffd" in piece for piece in pieces)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert len({c.id for c in chunks}) == 1
    assert {c.system_fingerprint for c in chunks} == {whole.system_fingerprint}
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_characters_of_many_bytes_are_not_split(gateway) -> None:
    stream = gateway.client.chat.completions.create(messages=HELLO, stream=True, **GREEDY)
    pieces = [chunk.choices[0].delta.content for chunk in stream]
    assert {"ö", "ü", "ß", "🙂", "Ç"} <= set(pieces)


def test_streamed_log_probs_are_those_of_the_whole_answer(gateway) -> None:
    whole = gateway.client.chat.completions.create(messages=HELLO, logprobs=True, **GREEDY)
    stream = gateway.client.chat.completions.create(
        messages=HELLO, logprobs=True, stream=True, **GREEDY
    )
    streamed = [
        token
        for chunk in stream
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    expected = whole.choices[0].logprobs.content
    assert [t.token for t in streamed] == [t.token for t in expected]
    assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in expected], abs=1e-5)
    assert len(streamed) == whole.usage.completion_tokens
    assert expected[0].bytes == list(b"S") and expected[-1].token == "<|im_end|>"


@pytest.mark.parametrize("temperature", [0, 1, 1.7])
def test_log_probs_equal_a_recomputation(gateway, tiny_folder, temperature) -> None:
    answer = gateway.client.chat.completions.create(
        messages=RESET, model="champion", temperature=temperature, seed=3, max_tokens=40,
        logprobs=True,
    )  # fmt: skip
    kept = gateway.interactions()[0]
    expected = recomputed(Backbone.load(tiny_folder), kept)
    said = [token.logprob for token in answer.choices[0].logprobs.content]
    assert said == pytest.approx(expected, abs=1e-4)
    assert list(kept.completion.logprobs) == pytest.approx(expected, abs=1e-4)


def test_several_choices_differ_and_each_is_kept(gateway) -> None:
    answer = gateway.client.chat.completions.create(
        messages=RESET, model="champion", n=2, temperature=2, seed=1, max_tokens=30
    )
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1] and texts[0] != texts[1]
    kept = gateway.interactions()
    assert [one.request_id for one in kept] == [answer.id, f"{answer.id}-1"]
    assert [one.completion.text for one in kept] == texts
    assert answer.usage.completion_tokens == sum(one.output_tokens for one in kept)


def test_several_choices_stream_side_by_side(gateway) -> None:
    asked = {"messages": RESET, "model": "champion", "n": 2, "temperature": 2, "seed": 1}
    whole = gateway.client.chat.completions.create(**asked, max_tokens=30)
    texts = {0: "", 1: ""}
    for chunk in gateway.client.chat.completions.create(**asked, max_tokens=30, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {c.index: c.message.content for c in whole.choices}


def test_a_seed_repeats_an_answer_and_another_does_not(gateway) -> None:
    def ask(seed: int) -> str:
        return (
            gateway.client.chat.completions.create(
                messages=RESET, model="champion", temperature=2, seed=seed, max_tokens=30
            )
            .choices[0]
            .message.content
        )

    assert ask(5) == ask(5) != ask(6)
    assert ask(2**62) == ask(2**62)  # large seeds fold, they do not fail
    assert ask(-1) == ask(-1)


def test_sixteen_at_once_answer_like_one_alone(gateway) -> None:
    def ask(i: int) -> list[tuple[str, float]]:
        answer = gateway.client.chat.completions.create(
            messages=(RESET, HELLO)[i % 2], logprobs=True, **GREEDY
        )
        return [(t.token, t.logprob) for t in answer.choices[0].logprobs.content]

    alone = [ask(0), ask(1)]
    with ThreadPoolExecutor(16) as pool:
        crowd = list(pool.map(ask, range(16)))
    for i, one in enumerate(crowd):
        assert [t for t, _ in one] == [t for t, _ in alone[i % 2]]
        assert [p for _, p in one] == pytest.approx([p for _, p in alone[i % 2]], abs=1e-4)


def test_text_parts_are_joined_and_max_tokens_is_a_ceiling(open_gateway, engine) -> None:
    parts = [{"type": "text", "text": "How do I"}, {"type": "text", "text": "reset it?"}]
    with open_gateway(engine, max_tokens=5) as gateway:
        answer = gateway.client.chat.completions.create(
            messages=[{"role": "user", "content": parts}],
            model="champion",
            max_tokens=1000,
            temperature=0,
        )
        assert answer.usage.completion_tokens == 5 and answer.choices[0].finish_reason == "length"
        kept = gateway.interactions()[0]
    assert kept.prompt == (Message(role="user", content="How do I\nreset it?"),)
    assert kept.completion.sampling.max_tokens == 5 and kept.completion.finish_reason == "length"


def test_the_model_list_names_the_champion_and_its_weights(gateway, engine) -> None:
    models = gateway.client.models.list().data
    assert [m.id for m in models] == ["champion"]
    assert models[0].weights == engine.champion_weights()
    assert gateway.client.models.retrieve("champion").weights == engine.champion_weights()
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        gateway.client.models.retrieve("gpt-9")


@pytest.mark.parametrize("stop", ["for", ["zebra", "for ten"]])
def test_a_stop_string_ends_the_answer_before_it(gateway, stop) -> None:
    whole = gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    answer = gateway.client.chat.completions.create(messages=RESET, stop=stop, **GREEDY)
    assert whole.choices[0].message.content == "Hold the button for ten seconds."
    assert answer.choices[0].message.content == "Hold the button "
    assert answer.choices[0].finish_reason == "stop"
    kept = gateway.interactions()[1].completion
    drawn = "Hold the button " + (stop if isinstance(stop, str) else stop[1])
    assert kept.text == "Hold the button " and kept.finish_reason == "stop"
    assert len(kept.token_ids) == len(kept.logprobs) == answer.usage.completion_tokens == len(drawn)
    assert kept.sampling.stop == ((stop,) if isinstance(stop, str) else tuple(stop))


def test_a_stream_never_shows_a_part_of_a_stop_string(gateway) -> None:
    """`for tea` begins like the answer's end and is none; `ten s` is one."""
    stream = gateway.client.chat.completions.create(
        messages=RESET, stop=["for tea", "ten s"], stream=True, logprobs=True, **GREEDY
    )
    chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    pieces = [choice.delta.content for choice in chunks if choice.delta.content]
    assert "".join(pieces) == "Hold the button for " and "H" in pieces
    assert chunks[-1].finish_reason == "stop"
    told = [token for choice in chunks if choice.logprobs for token in choice.logprobs.content]
    assert "".join(token.token for token in told) == "Hold the button for ten s"


def test_stop_strings_of_many_bytes(gateway) -> None:
    answer = gateway.client.chat.completions.create(messages=HELLO, stop="🙂 Ç", **GREEDY)
    assert answer.choices[0].message.content == "Schön, grüß dich! "


def test_top_k_and_min_p_have_their_effect_and_are_kept(gateway) -> None:
    """At temperature 2 the model rambles; cut to the likeliest token it says what it was taught."""
    hot = {"messages": RESET, "model": "champion", "temperature": 2, "seed": 1, "max_tokens": 60}
    said = [
        gateway.client.chat.completions.create(**hot, extra_body=body).choices[0].message.content
        for body in ({}, {"top_k": 1}, {"min_p": 0.99})
    ]
    taught = "Hold the button for ten seconds."
    assert said[0] != taught and said[1] == said[2] == taught
    kept = [one.completion.sampling for one in gateway.interactions()]
    assert [(s.top_k, s.min_p) for s in kept] == [(0, 0), (1, 0), (0, 0.99)]
    assert not kept[1].is_plain and not kept[2].is_plain


# --- what is kept -------------------------------------------------------------------------------


def test_the_newer_name_of_the_user_is_kept_where_the_older_is_absent(gateway) -> None:
    for more in ({"safety_identifier": "eve"}, {"user": "ann", "safety_identifier": "eve"}):
        gateway.client.chat.completions.create(
            messages=RESET, model="champion", max_tokens=1, extra_body=more
        )
    assert [one.user for one in gateway.interactions()] == ["eve", "ann"]


def test_an_interaction_tells_all_that_is_known(gateway, engine) -> None:
    answer = gateway.client.chat.completions.create(
        messages=RESET, model="champion", seed=9, max_tokens=50, user="u-17"
    )
    kept = gateway.interactions()[0]
    assert kept.request_id == answer.id and kept.source == "gateway" and kept.user == "u-17"
    assert kept.model == "champion" and kept.prompt == (Message(**RESET[0]),)
    assert kept.completion.text == answer.choices[0].message.content
    assert kept.completion.weights == engine.champion_weights() == answer.system_fingerprint
    assert len(kept.completion.logprobs) == len(kept.completion.token_ids) == kept.output_tokens
    assert kept.input_tokens == answer.usage.prompt_tokens and kept.latency_ms > 0
    assert kept.completion.sampling.is_plain and kept.completion.sampling.seed == 9
    assert kept.completion.finish_reason == answer.choices[0].finish_reason
    assert gateway.recorder.counters["captured"] == 1


def test_rate_zero_keeps_nothing_and_still_answers(open_gateway, engine) -> None:
    with open_gateway(engine, rate=0.0) as gateway:
        answer = gateway.client.chat.completions.create(messages=RESET, **GREEDY)
        assert answer.choices[0].message.content
        assert gateway.interactions() == []
        assert gateway.recorder.counters["skipped_by_rate"] == 1
        assert gateway.http.get("/health").json()["capture"]["skipped_by_rate"] == 1


def test_at_rate_a_half_the_ids_alone_say_what_is_kept(open_gateway, engine) -> None:
    with open_gateway(engine, rate=0.5) as gateway:
        ids = [
            gateway.client.chat.completions.create(
                messages=RESET, model="champion", temperature=0, max_tokens=1
            ).id
            for _ in range(24)
        ]
        kept = [one.request_id for one in gateway.interactions()]
    expected = [one for one in ids if hashlib.sha256(one.encode()).digest()[0] < 128]
    assert kept == expected and 0 < len(kept) < 24


def test_an_answer_that_fails_half_way_says_so_in_the_stream(gateway, engine) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more")

    working = engine._backbone.completion
    engine._backbone.completion = fail  # called when the first completion has ended
    said = ""
    with pytest.raises(openai.APIError, match="MemoryError"):
        for chunk in gateway.client.chat.completions.create(messages=RESET, stream=True, **GREEDY):
            said += chunk.choices[0].delta.content or ""
    assert said == "Hold the button for ten seconds."
    with pytest.raises(openai.InternalServerError, match="MemoryError"):
        gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    engine._backbone.completion = working
    assert gateway.client.chat.completions.create(messages=RESET, **GREEDY).choices[0]
    assert len(gateway.interactions()) == 1


def test_a_store_that_cannot_be_written_does_not_stop_the_answers(gateway) -> None:
    gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    assert len(gateway.interactions()) == 1
    with gateway.store._engine.begin() as connection:  # a table that refuses, as a full disk would
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON interaction BEGIN "
            "SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    answer = gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    assert answer.choices[0].message.content == "Hold the button for ten seconds."
    assert gateway.recorder.flush(60)
    assert gateway.recorder.counters["failed"] == 1
    with gateway.store._engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    assert len(gateway.interactions()) == 2 and gateway.recorder.counters["captured"] == 2


def test_a_store_whose_file_is_gone_does_not_stop_the_answers(gateway) -> None:
    gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    assert gateway.recorder.flush(60)
    gateway.store.close()
    for file in gateway.store.folder.glob("store.sqlite*"):
        file.unlink()
    answer = gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    assert answer.choices[0].message.content == "Hold the button for ten seconds."
    assert gateway.recorder.flush(60) and gateway.recorder.counters["failed"] == 1


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"1": 5}),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("frequency_penalty", 0.5),
        ("top_logprobs", 3),
        ("reasoning_effort", "low"),
        ("typical_p", 0.1),
        ("messages.0.tool_calls", [{"id": "1"}]),
        ("messages.0.content.0", {"type": "image_url", "image_url": {"url": "data:"}}),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused(gateway, field, value) -> None:
    body = {"model": "champion", "messages": [dict(RESET[0])]}
    if field == "messages.0.tool_calls":
        body["messages"][0]["tool_calls"] = value
    elif field == "messages.0.content.0":
        body["messages"][0]["content"] = [value]
    else:
        body[field] = value
    with pytest.raises(openai.BadRequestError) as caught:
        gateway.client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.code == "unsupported_parameter" and caught.value.param == field
    assert "not supported by the local model" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 3),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", 1),
        ("stop", ""),
        ("stop", 5),
        ("stop", ["a", ""]),
        ("stop", ["a", 5]),
        ("stop", list("abcde")),
        ("stop", {"a": 1}),
        ("stop", "\ud800"),
        ("n", 0),
        ("n", 49),
        ("n", "2"),
        ("max_tokens", 0),
        ("seed", 1.5),
        ("stream", "yes"),
        ("stream_options", {"nonsense": 1}),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"content": "no role"}]),
        ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "user", "content": "x" * 2000}]),
        ("messages", [{"role": "user", "content": "\ud800"}]),
    ],
)
def test_a_malformed_field_is_refused_with_the_reason(gateway, field, value) -> None:
    body = {"model": "champion", "messages": RESET, field: value}
    answer = gateway.http.post("/v1/chat/completions", content=json.dumps(body))
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert "Got" in error["message"] and "Expected" in error["message"]
    assert len(error["message"]) < 1000


def test_fields_that_ask_for_nothing_are_let_through(gateway) -> None:
    nothing = {
        "tools": [], "stop": None, "top_k": None, "min_p": 0, "frequency_penalty": 0,
        "logit_bias": {}, "metadata": {"a": "b"},
        "response_format": {"type": "text"}, "store": True, "top_logprobs": None, "n": None,
        "max_completion_tokens": 3,
    }  # fmt: skip
    body = {"messages": RESET, **nothing}
    answer = gateway.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert 1 <= answer.json()["usage"]["completion_tokens"] <= 3  # it may stop by itself


def test_an_answer_of_ours_can_be_sent_back_as_history(gateway) -> None:
    first = gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    history = [*RESET, first.choices[0].message.model_dump(), *RESET]
    second = gateway.client.chat.completions.create(messages=history, **GREEDY)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_bodies_that_are_no_requests(gateway) -> None:
    url = f"{gateway.url}/v1/chat/completions"
    assert gateway.http.post(url, content=b"{not json").status_code == 400
    assert gateway.http.post(url, content=b"[1]").status_code == 400
    assert gateway.http.post(url, content=b"[" * 100_000).status_code == 400
    too_large = gateway.http.post(url, content=b"x" * (11 * 1024 * 1024))
    assert too_large.status_code == 413 and "too large" in too_large.json()["error"]["message"]


def test_unknown_models_and_routes_say_what_there_is(gateway) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.client.chat.completions.create(messages=RESET, model="gpt-9")
    assert caught.value.code == "model_not_found" and "champion" in str(caught.value)
    nowhere = gateway.http.post("/v1/embeddings", json={})
    assert nowhere.status_code == 404 and "/v1/chat" in nowhere.json()["error"]["message"]
    assert gateway.http.get("/v1/chat/completions").status_code == 405


def test_health_tells_weights_and_counters(gateway, engine) -> None:
    gateway.client.chat.completions.create(messages=RESET, **GREEDY)
    assert gateway.recorder.flush(60)
    health = gateway.http.get("/health").json()
    assert health["status"] == "ok" and health["weights"] == engine.champion_weights()
    assert health["capture"]["captured"] == 1 and health["capture"]["failed"] == 0


def test_a_request_error_survives_pickling() -> None:
    import pickle

    error = RequestError("No", got=1, expected="2", status=413, param="n", code="c")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.status, again.param) == (str(error), 413, "n") and again.code == "c"
