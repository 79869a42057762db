"""`POST /v1/capture`: traffic that others answered, on disk when the answer comes."""

import json
import random

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from trueup.capture import CaptureConfig
from trueup.errors import StorageError
from trueup.gateway.app import create_app
from trueup.gateway.config import ServeConfig
from trueup.privacy import PrivacyConfig, Scrubber, erase_user
from trueup.records import Feedback, Interaction
from trueup.store import Store

ASKED = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hello?"}],
    "temperature": 0.5,
    "max_tokens": 9,
    "user": "ann",
}
SAID = {
    "id": "chatcmpl-1",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}


@pytest.fixture
def open_mirror(open_gateway, run_app):
    """A gateway whose upstream nobody asks."""
    nobody = Starlette(routes=[Route("/v1/{path:path}", lambda _: JSONResponse({"up": True}))])

    def opened(upstream: str, **settings):
        return open_gateway(None, upstream=upstream, **settings)

    with run_app(nobody) as up:
        yield lambda **settings: opened(up, **settings)


@pytest.fixture
def mirror(open_mirror):
    with open_mirror() as gateway:
        yield gateway


def send(gateway, body, **headers):
    return gateway.http.post("/v1/capture", json=body, headers=headers)


def on_disk(gateway) -> list[Interaction]:
    own = Store(gateway.store.folder)  # another connection sees what is committed
    found = own.all(Interaction)
    own.close()
    return found


def test_one_interaction_is_on_disk_when_answered_and_twice_is_once(mirror) -> None:
    for _ in range(2):
        answer = send(mirror, {"request": ASKED, "response": SAID, "latency_ms": 12.5})
        assert answer.status_code == 200
        assert answer.json()["captured"] == 1
        [kept] = on_disk(mirror)
        assert answer.json()["results"] == [{"ids": [kept.id]}]
    assert (kept.source, kept.request_id, kept.user, kept.model) == (
        "mirror", "chatcmpl-1", "ann", "m",
    )  # fmt: skip
    assert (kept.input_tokens, kept.output_tokens, kept.latency_ms) == (7, 3, 12.5)
    assert kept.completion.text == "Hi." and kept.completion.finish_reason == "stop"
    assert kept.completion.sampling and kept.completion.sampling.temperature == 0.5
    counts = mirror.recorder.counters
    assert (counts["sent"], counts["captured"], counts["skipped_known"]) == (2, 1, 1)
    assert counts["waiting"] == 0


def test_a_list_and_lines_are_answered_for_entry_by_entry(mirror) -> None:
    entries = [
        {"request": ASKED, "response": SAID | {"id": f"r{i}"}} if i % 3 else {"request": ASKED}
        for i in range(30)
    ]
    answer = send(mirror, entries).json()
    assert (answer["captured"], answer["rejected"]) == (20, 10)
    assert [("ids" in one) for one in answer["results"]] == [bool(i % 3) for i in range(30)]
    assert answer["results"][0] == {"error": "no choices"}
    assert len(on_disk(mirror)) == 20
    lines = "\n".join([json.dumps(entries[1] | {"user": "bob"}), "", "{half", "7"])
    answer = mirror.http.post(
        "/v1/capture", content=lines, headers={"content-type": "application/x-ndjson"}
    ).json()
    assert [sorted(one) for one in answer["results"]] == [["ids"], ["error"], ["error"]]
    assert {one.user for one in on_disk(mirror)} == {"ann", "bob"}


def test_choices_tools_errors_and_text_completions(mirror) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    two = [{"message": {"content": text}} for text in ("A", "B")]
    turns = [
        {"role": "developer", "content": "Be kind"},
        {"role": "user", "content": [{"type": "text", "text": "Go"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    called = {"choices": [{"message": {"content": None, "tool_calls": [call]}}]}
    sent = [
        {"request": ASKED, "response": {"id": "n", "choices": two}},
        {"request": {"messages": turns, "tools": tools}, "response": called},
        {"request": ASKED, "response": {"error": {"message": "overloaded"}}},
        {"request": ASKED, "response": None, "error": "timeout"},
        {"request": {"prompt": "Once"}, "response": {"choices": [{"text": " upon"}]}},
    ]
    assert send(mirror, sent).json()["captured"] == 5
    first, second, tool, broken, silent, text = on_disk(mirror)
    assert (first.request_id, second.request_id) == ("n", "n-1")
    assert [turn.role for turn in tool.prompt] == ["system", "user", "assistant", "tool"]
    assert tool.prompt[2].tool_calls[0].arguments == '{"a": 1}'
    assert tool.prompt[3].tool_call_id == "c1" and tool.completion.tool_calls[0].name == "f"
    assert tool.tools == tuple(tools)
    assert (broken.error, broken.completion.text) == ("upstream: overloaded", "")
    assert silent.error == "timeout"
    assert (text.prompt[0].content, text.completion.text) == ("Once", " upon")


def test_a_mirrored_stream_is_put_together(mirror) -> None:
    deltas = [{"content": "Hel"}, {"content": "lo"}, {}]
    chunks = [{"id": "s", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    calls = [
        {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a'}},
        {"index": 0, "function": {"arguments": '": 1}'}},
    ]
    called = [{"choices": [{"index": 0, "delta": {"tool_calls": [one]}}]} for one in calls]
    text = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"
    sent = [{"request": ASKED, "response": one} for one in (chunks, text, called)]
    assert send(mirror, sent).json()["captured"] == 3
    hello, call = on_disk(mirror)  # the first two say the same
    assert (hello.completion.text, hello.completion.finish_reason) == ("Hello", "stop")
    assert call.completion.tool_calls[0].arguments == '{"a": 1}'


def test_feedback_comes_along_and_a_complaint_goes_before_the_rate(open_mirror) -> None:
    with open_mirror(rate=0.0) as gateway:
        entry = {"request": ASKED, "response": SAID}
        sent = [
            entry | {"request_id": "a"},
            entry | {"request_id": "b", "feedback": {"rating": 1}},
            entry | {"request_id": "c", "feedback": {"rating": -1, "comment": "No."}},
        ]
        plain, praised, blamed = send(gateway, sent).json()["results"]
        assert plain == praised == {"skipped": "rate"}
        [kept] = on_disk(gateway)
        assert blamed["ids"] == [kept.id] and kept.request_id == "c"
        thumb = gateway.store.get(Feedback, blamed["feedback_id"])
        assert (thumb.rating, thumb.comment, thumb.interaction_id) == (-1, "No.", kept.id)


def test_a_thumb_down_brings_in_what_the_rate_left_out(open_mirror) -> None:
    with open_mirror(rate=0.0) as gateway:
        for name in ("praised", "blamed", "mended"):
            send(gateway, {"request": ASKED, "response": SAID, "request_id": name})
        assert on_disk(gateway) == []

        def say(name, **said):
            return gateway.http.post("/v1/feedback", json={"request_id": name} | said).status_code

        assert say("praised", rating=1) == 404  # what is praised is left to the draw
        assert say("blamed", rating=-1) == 200
        assert say("mended", edit="Hello!") == 200
        assert [one.request_id for one in on_disk(gateway)] == ["blamed", "mended"]
        assert gateway.store.count(Feedback) == 2


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (7, "entry is not an object"),
        ({"request": ASKED, "response": SAID, "odd": 1}, "unknown field 'odd'"),
        ({"request": 7, "response": SAID}, "request is not an object"),
        ({"request": ASKED, "response": 7}, "response is not an object"),
        ({"request": ASKED, "response": "what"}, "no choices"),
        ({"request": {"messages": 3}, "response": SAID}, "messages are no list"),
        ({"request": {"messages": []}, "response": SAID}, "empty prompt"),
        ({"request": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
          "response": SAID}, "content is not text"),
        ({"request": ASKED | {"tools": [3]}, "response": SAID}, "tools are no list of objects"),
        ({"request": ASKED, "response": {"choices": [{"message": {"content": ""}}]}},
         "empty completion"),
        ({"request": ASKED, "response": {"choices": [{"text": "\ud800"}]}},
         "text is not valid Unicode"),
        ({"request": ASKED, "response": SAID, "feedback": {"rating": True}},
         "rating is neither 1 nor -1"),
        ({"request": ASKED, "response": SAID, "feedback": {"edit": " "}},
         "edit is empty: leave it out, or say what is better"),
        ({"request": ASKED, "response": SAID, "feedback": {"comment": "half \ud83d"}},
         "text is not valid Unicode"),
        ({"request": ASKED | {"messages": [{"role": "\ud800", "content": "Hello?"}]},
          "response": SAID}, "text is not valid Unicode"),
        ({"request": ASKED, "response": SAID, "feedback": {"stars": 5}},
         "feedback is not a rating, an edit or a comment"),
        ({"request": ASKED, "response": SAID, "latency_ms": -1},
         "latency_ms is no number of milliseconds"),
        ({"request": ASKED, "response": SAID, "user": 3}, "user is not text"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_reason(mirror, entry, why) -> None:
    answer = mirror.http.post("/v1/capture", content=json.dumps([entry]))
    assert answer.status_code == 400 and why in answer.json()["error"]["message"]
    both = [entry, {"request": ASKED, "response": SAID}]
    answer = mirror.http.post("/v1/capture", content=json.dumps(both)).json()
    assert answer["results"][0]["error"] == why and answer["captured"] == 1


def test_a_store_that_cannot_be_written_is_a_503_and_nothing_is_half_kept(mirror) -> None:
    with mirror.store._engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON interaction WHEN NEW.request_id = 'last' BEGIN "
            "SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    entries = [{"request": ASKED, "response": SAID, "request_id": n} for n in ("first", "last")]
    assert send(mirror, entries).status_code == 503
    assert on_disk(mirror) == [] and mirror.recorder.counters["failed"] == 2


def test_what_was_erased_is_not_acknowledged_as_captured(mirror) -> None:
    bob = ASKED | {"user": "bob"}
    entries = [
        {"request": ASKED, "response": SAID, "feedback": {"rating": -1}},
        {"request": bob, "response": SAID, "feedback": {"rating": -1}},
    ]
    assert send(mirror, entries).json()["captured"] == 2
    erase_user(mirror.store, "ann")
    answer = send(mirror, entries).json()
    assert (answer["captured"], answer["skipped"], answer["rejected"]) == (1, 1, 0)
    [kept] = on_disk(mirror)
    [said] = mirror.store.all(Feedback)
    assert answer["results"] == [
        {"skipped": "erased"}, {"ids": [kept.id], "feedback_id": said.id},
    ]  # fmt: skip
    counts = mirror.recorder.counters
    assert (counts["captured"], counts["skipped_known"], counts["skipped_erased"]) == (2, 1, 1)


def test_feedback_that_fails_is_told_of_in_its_own_entry(mirror) -> None:
    with mirror.store._engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON feedback WHEN NEW.body LIKE '%too much%' BEGIN "
            "SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    entries = [
        {"request": ASKED, "response": SAID, "request_id": name, "feedback": said}
        for name, said in (
            ("a", {"rating": 1}),
            ("b", {"rating": 1, "comment": "too much"}),
            ("c", {"comment": "fine"}),
        )
    ]
    answer = send(mirror, entries)
    assert answer.status_code == 200 and answer.json()["captured"] == 3
    assert [one.request_id for one in on_disk(mirror)] == ["a", "b", "c"]
    first, second, third = answer.json()["results"]
    assert first["feedback_id"] and third["feedback_id"]
    assert second["ids"] and "could not be written" in second["feedback_error"]
    with mirror.store._engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    again = send(mirror, entries).json()["results"]
    assert all(one["feedback_id"] for one in again) and mirror.store.count(Feedback) == 3


def test_a_recall_that_fails_costs_its_own_entry_alone(open_mirror, monkeypatch) -> None:
    with open_mirror(rate=0.0) as gateway:
        whole = gateway.store.add_late

        def add_late(records):
            if records[0].request_id == "b":
                raise StorageError("The disk is full", got="full", expected="room", next="")
            return whole(records)

        monkeypatch.setattr(gateway.store, "add_late", add_late)
        said = {"request": ASKED, "response": SAID, "feedback": {"rating": -1}}
        answer = send(gateway, [said | {"request_id": name} for name in "abc"])
        first, second, third = answer.json()["results"]
        assert answer.status_code == 200 and second == {"error": "The disk is full"}
        assert first["feedback_id"] and third["feedback_id"] and len(on_disk(gateway)) == 2


def test_the_newer_name_of_the_user_is_read(mirror) -> None:
    asked = {name: value for name, value in ASKED.items() if name != "user"}
    new = {"request": asked | {"safety_identifier": "eve"}, "response": SAID}
    both = {"request": ASKED | {"safety_identifier": "eve"}, "response": SAID}
    assert send(mirror, [new, both]).json()["captured"] == 2
    assert [one.user for one in on_disk(mirror)] == ["eve", "ann"]


def test_a_mirrored_stream_may_end_its_lines_in_any_way(mirror) -> None:
    said = {"id": "s", "choices": [{"index": 0, "delta": {"content": "Hi\u2028\x85there"}}]}
    lines = [": a comment", f"data: {json.dumps(said, ensure_ascii=False)}", "", "data: [DONE]", ""]
    for end in ("\n", "\r\n", "\r"):
        sent = {"request": ASKED, "response": end.join(lines), "request_id": repr(end)}
        assert send(mirror, sent).json()["captured"] == 1
    assert {one.completion.text for one in on_disk(mirror)} == {"Hi\u2028\x85there"}


def test_no_json_at_all_crashes_it(mirror) -> None:
    """Valid entries with any part replaced by any value: an answer of 200 or 400, always."""
    generator = random.Random(7)
    values = [None, True, 0, -1, 1e400, 10**30, "", "x", "\ud800", [], [[]], {}, {"a": {}}, ["x"]]

    def spoilt(value, depth):
        if generator.random() < 0.15 or depth > 5:
            return generator.choice(values)
        if isinstance(value, dict):
            return {key: spoilt(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [spoilt(inner, depth + 1) for inner in value]
        return value

    tool = {"function": {"name": "f", "arguments": "{}"}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [tool]}]
    whole = {
        "request": ASKED | {"messages": turns, "tools": [tool]},
        "response": SAID,
        "feedback": {"rating": 1},
    }
    for _ in range(20):
        entries = [spoilt(whole, 0) for _ in range(40)]
        answer = mirror.http.post("/v1/capture", content=json.dumps(entries))
        assert answer.status_code in (200, 400), answer.text
    assert on_disk(mirror)  # and all of it can be read again


def test_a_request_id_with_an_address_is_kept_as_a_pseudonym_and_feedback_finds_it(
    tmp_path, run_app
) -> None:
    store = Store(tmp_path)
    scrub = Scrubber(PrivacyConfig(), store)
    config = ServeConfig(port=0, upstream="http://127.0.0.1:9/v1")
    app = create_app(store, config, CaptureConfig(), None, scrub=scrub)
    with run_app(app) as url, httpx.Client(base_url=url, timeout=30) as http:
        for name in ("of ann@example.com", "of bob@example.com"):
            entry = {"request": ASKED | {"stop": [name]}, "response": SAID, "request_id": name}
            assert http.post("/v1/capture", json=entry).json()["captured"] == 1
        said = {"request_id": "of bob@example.com", "rating": -1}
        assert http.post("/v1/feedback", json=said).status_code == 200
        assert http.post("/v1/feedback", json=said | {"request_id": "x@y.zz"}).status_code == 404
    ann, bob = store.all(Interaction)
    assert ann.request_id != bob.request_id and bob.request_id.startswith("request_")
    assert "example.com" not in ann.model_dump_json() + bob.model_dump_json()
    assert [one.interaction_id for one in store.all(Feedback)] == [bob.id]
    store.close()
