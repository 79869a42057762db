"""What of an upstream's answer becomes a record: tools, log-probs, plain completions, errors."""

import gzip
import json
import random

import pytest

from trueup.gateway.transcript import Transcript
from trueup.records import Interaction

HELLO = {"model": "m", "messages": [{"role": "user", "content": "Weather?"}]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


class Kept:
    """Stands where the recorder stands, and reads what it is handed at once."""

    def __init__(self) -> None:
        self.interactions: list[Interaction] = []
        self.num_calls = 0

    def record_later(self, build, *, size: int, route: str = "") -> None:
        self.num_calls += 1
        self.interactions += build()


def transcribe(
    asked: dict, answer: bytes, *, stream: bool = False, error: str = "", encoding: str = ""
) -> list[Interaction]:
    """The answer, fed in random pieces; always the same whatever the pieces."""
    found = []
    for seed in range(5):
        kept, draw, at = Kept(), random.Random(seed), 0
        transcript = Transcript(json.dumps(asked).encode(), kept, request_id="req_1", tenant="t")  # type: ignore[arg-type]
        transcript.begin(is_stream=stream, encoding=encoding)
        while at < len(answer):
            size = draw.choice((1, 3, 50, 4000))
            transcript.feed(answer[at : at + size])
            at += size
        transcript.record(error)
        transcript.record("too late")
        assert kept.num_calls == 1
        found.append([(i.id, i.model_copy(update={"latency_ms": 0})) for i in kept.interactions])
    told = [[one.model_dump(exclude={"id", "created_at"}) for _, one in f] for f in found]
    assert all(one == told[0] for one in told)
    return [one for _, one in found[0]]


def whole(message: dict, finish: str = "stop", **more: object) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish, **more}
    return json.dumps({"id": "c1", "choices": [choice]}).encode()


def stream(*deltas: dict, done: bool = True, finish: str | None = "stop") -> bytes:
    choices = [{"index": 0, "delta": one} for one in deltas]
    if finish:
        choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    lines = [f"data: {json.dumps({'id': 'c1', 'choices': [one]})}\n\n" for one in choices]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}}


def test_tools_and_their_calls_are_kept_from_a_whole_answer() -> None:
    asked = {**HELLO, "tools": [TOOL]}
    answer = whole({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls")
    (kept,) = transcribe(asked, answer)
    (call,) = kept.completion.tool_calls
    assert (call.id, call.name, call.arguments) == ("call_1", "weather", '{"a":1}')
    assert kept.tools == (TOOL,) and kept.completion.finish_reason == "tool_calls"
    assert kept.completion.text == "" and kept.error == "" and not kept.is_plain
    assert kept.tenant == "t"


def test_streamed_pieces_of_calls_are_put_together() -> None:
    pieces = [
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"to'}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "time", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'wn": "Ü"}'}}]},
    ]
    (kept,) = transcribe(HELLO, stream(*pieces, finish="tool_calls"), stream=True)
    calls = [(one.id, one.name, one.arguments) for one in kept.completion.tool_calls]
    assert calls == [("a", "weather", '{"town": "Ü"}'), ("b", "time", "{}")]


def test_a_conversation_with_tools_keeps_its_turns() -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]
    (kept,) = transcribe({"messages": messages}, whole({"content": "It rains."}))
    assert kept.prompt[1].tool_calls[0].name == "weather"
    assert kept.prompt[2].tool_call_id == "call_1" and not kept.is_plain


def test_functions_of_the_old_kind_are_kept_likewise() -> None:
    asked = {**HELLO, "functions": [TOOL["function"]]}
    called = {"content": None, "function_call": {"name": "weather", "arguments": "{}"}}
    (kept,) = transcribe(asked, whole(called, "function_call"))
    assert kept.tools == (TOOL,) and kept.completion.tool_calls[0].name == "weather"
    assert kept.completion.finish_reason == "tool_calls"


def test_logprobs_are_kept_as_told_and_never_some_of_them() -> None:
    told = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -9999.0}]}
    (kept,) = transcribe(HELLO, whole({"content": "ab"}, logprobs=told))
    assert kept.completion.logprobs == (-0.5, -9999.0)
    assert kept.completion.token_ids is None and kept.completion.weights is None
    for bad in ({"content": [{"logprob": None}]}, {"content": [{"logprob": float("-inf")}]}):
        (kept,) = transcribe(HELLO, whole({"content": "ab"}, logprobs=bad))
        assert kept.completion.logprobs is None and kept.completion.text == "ab"
    half = [
        {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"logprob": -1.0}]}},
        {"index": 0, "delta": {"content": "b"}},
    ]
    data = b"".join(b"data: %s\n\n" % json.dumps({"choices": [one]}).encode() for one in half)
    (kept,) = transcribe(HELLO, data + b"data: [DONE]\n\n", stream=True)
    assert kept.completion.text == "ab" and kept.completion.logprobs is None


def test_a_plain_completion_is_a_conversation_of_one_message() -> None:
    asked = {"model": "m", "prompt": ["Once", "Twice"], "n": 2, "echo": True}
    choices = [
        {"index": i, "text": f"{t} x{i}"} for i, t in enumerate(["Once"] * 2 + ["Twice"] * 2)
    ]
    kept = transcribe(asked, json.dumps({"id": "c", "choices": choices}).encode())
    assert [(one.prompt[0].role, one.prompt[0].content) for one in kept] == [
        ("user", "Once"),
        ("user", "Once"),
        ("user", "Twice"),
        ("user", "Twice"),
    ]
    assert [one.completion.text for one in kept] == [" x0", " x1", " x2", " x3"]
    assert len({one.request_id for one in kept}) == 4
    for prompt in ([1, 2, 3], [], None, [["a"]]):  # token ids, and nonsense
        assert transcribe({"prompt": prompt}, b"{}") == []


@pytest.mark.parametrize(
    ("answer", "is_stream", "text", "error"),
    [
        (b"<html>", False, "", "unreadable answer"),
        (b"", False, "", "unreadable answer"),
        (b'{"choices": []}', False, "", "unreadable answer"),
        (stream({"content": "Half"}, done=False, finish=None), True, "Half", "upstream broke off"),
        (stream({"content": "All"}, done=False), True, "All", ""),
        (b"data: {]\n\n" + stream({"content": "Rest"}), True, "Rest", "unreadable answer"),
        (b'data: {"error": {"code": 500}}\n\ndata: [DONE]\n\n', True, "", "upstream error"),
        (stream({"content": "a\r\nb"}).replace(b"\n\n", b"\r\n\r\n"), True, "a\r\nb", ""),
        (b"event: x\nid: 1\n: hm\n" + stream({"content": "x"}), True, "x", ""),
        (b"data: [[[" + b"[" * 5000 + b"\n\ndata: [DONE]\n\n", True, "", "unreadable answer"),
        (b"data: 3\n\ndata: [DONE]\n\n", True, "", "unreadable answer"),
    ],
)
def test_what_is_no_proper_answer_is_kept_as_an_error(answer, is_stream, text, error) -> None:
    (kept,) = transcribe(HELLO, answer, stream=is_stream)
    assert (kept.completion.text, kept.error) == (text, error)
    assert kept.is_plain == (not error)


def test_bytes_that_are_no_utf8_cost_their_character_alone() -> None:
    answer = stream({"content": "one two"}).replace(b"one", b"\xff\xfe")
    (kept,) = transcribe(HELLO, answer, stream=True)
    assert kept.completion.text == "\ufffd\ufffd two" and kept.error == ""


def test_halves_of_characters_are_put_together_and_one_alone_costs_itself() -> None:
    asked = {**HELLO, "messages": [{"role": "user", "content": "cut off \ud83d"}]}
    said = stream({"content": "so \ud83d"}, {"content": "\ude00 and \ude00."})
    (kept,) = transcribe(asked, said, stream=True)
    assert kept.prompt[0].content == "cut off \ufffd"
    assert kept.completion.text == "so \U0001f600 and \ufffd." and not kept.error
    kept.model_dump_json().encode()


def test_a_packed_answer_is_unpacked_for_the_record_and_a_bomb_is_not(monkeypatch) -> None:
    packed = gzip.compress(whole({"content": "Hi."}))
    assert transcribe(HELLO, packed, encoding="gzip")[0].completion.text == "Hi."
    monkeypatch.setattr("trueup.gateway.transcript.MAX_HEARD_BYTES", 100_000)
    bomb = gzip.compress(whole({"content": "x" * 1_000_000}))
    assert transcribe(HELLO, bomb, encoding="gzip")[0].error == "unreadable answer"
    assert transcribe(HELLO, packed, encoding="br")[0].error == "unreadable answer"


def test_the_text_of_an_answer_that_quotes_the_end_mark_is_not_the_end() -> None:
    answer = stream({"content": "\ndata: [DONE]\n"}, {"content": " and on"})
    (kept,) = transcribe(HELLO, answer, stream=True)
    assert kept.completion.text == "\ndata: [DONE]\n and on"


def test_pictures_and_sound_are_no_text() -> None:
    picture = [{"type": "image_url", "image_url": {"url": "data:"}}]
    assert transcribe({"messages": [{"role": "user", "content": picture}]}, b"{}") == []
    assert transcribe(HELLO, whole({"content": None, "audio": {"data": ""}})) == []
