"""Feedback over HTTP: on disk when answered, however quick the user is."""

import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from trueup.records import Feedback, Interaction
from trueup.store import Store

RESET = [{"role": "user", "content": "How do I reset it?"}]


def ask(gateway, **more: object) -> str:
    body = {"messages": RESET, "max_tokens": 3, **more}
    return gateway.http.post("/v1/chat/completions", json=body).json()["id"]


def say(gateway, **said: object) -> httpx.Response:
    return gateway.http.post("/v1/feedback", content=json.dumps(said))


def test_feedback_right_after_the_answer_hangs_on_it_and_is_on_disk(gateway) -> None:
    for rating in (1, -1, 1, -1):
        request_id = ask(gateway)
        answer = say(gateway, request_id=request_id, rating=rating, edit="Better.", comment="Hm.")
        assert answer.status_code == 200
        with_own_eyes = Store(gateway.store.folder)  # another connection sees what is committed
        kept = with_own_eyes.get(Feedback, answer.json()["id"])
        interaction = with_own_eyes.get(Interaction, kept.interaction_id)
        with_own_eyes.close()
        assert (kept.rating, kept.edit, kept.comment) == (rating, "Better.", "Hm.")
        assert interaction.request_id == request_id


def test_the_same_feedback_twice_is_kept_once(gateway) -> None:
    request_id = ask(gateway)
    first, second = (say(gateway, request_id=request_id, rating=1) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert gateway.store.count(Feedback) == 1


def test_feedback_by_interaction_id_and_on_a_later_choice(gateway) -> None:
    request_id = ask(gateway, n=2)
    second = gateway.interactions()[1]
    assert second.request_id == f"{request_id}-1"
    for name, value in (("interaction_id", second.id), ("request_id", second.request_id)):
        answer = say(gateway, rating=-1, **{name: value})
        assert answer.json()["interaction_id"] == second.id


def test_feedback_on_nothing_we_know_is_a_404(open_gateway, engine) -> None:
    with open_gateway(engine, rate=0.0) as gateway:
        for said in (
            {"request_id": "chatcmpl-unheard"},
            {"interaction_id": "interaction_00"},
            {"request_id": ask(gateway)},  # answered, but not kept
        ):
            answer = say(gateway, rating=1, **said)
            assert answer.status_code == 404
            assert "No such answer was captured" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "said",
    [
        {"rating": 2},
        {"rating": "1"},
        {"rating": True},
        {},
        {"rating": 1, "stars": 5},
        {"edit": 3},
        {"edit": ""},
        {"edit": "half \ud83d"},
        {"comment": "half \ud83d"},
        {"rating": 1, "edit": " \n"},
        {"rating": 1, "interaction_id": "interaction_00"},
    ],
)
def test_feedback_that_makes_no_sense_is_a_400(gateway, said) -> None:
    answer = say(gateway, request_id="chatcmpl-x", **said)
    assert answer.status_code == 400 and "rating" in answer.json()["error"]["message"]
    assert say(gateway, rating=1).status_code == 400


def test_an_edit_without_text_is_refused_by_name(gateway) -> None:
    error = say(gateway, request_id=ask(gateway), edit="").json()["error"]
    assert error["param"] == "edit" and "an edit without text is none" in error["message"]
    assert gateway.store.count(Feedback) == 0


def test_feedback_that_cannot_be_written_is_not_acknowledged(gateway) -> None:
    request_id = ask(gateway)
    with gateway.store._engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON feedback BEGIN "
            "SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    answer = say(gateway, request_id=request_id, rating=1)
    assert answer.status_code == 503 and "free some space" in answer.json()["error"]["message"]


def test_feedback_ahead_of_a_store_that_is_behind_is_to_be_sent_again(gateway, monkeypatch) -> None:
    monkeypatch.setattr(gateway.recorder, "flush", lambda: False)
    answer = say(gateway, request_id="chatcmpl-x", rating=-1)
    assert answer.status_code == 503 and "send it again" in answer.json()["error"]["message"]


def test_feedback_that_waits_for_a_locked_store_holds_up_nobody_else(gateway) -> None:
    request_id = ask(gateway)
    assert gateway.recorder.flush()
    database = sqlite3.connect(gateway.store.folder / "store.sqlite", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(40) as users:
        thumbs = [users.submit(say, gateway, request_id=request_id, rating=1) for _ in range(40)]
        time.sleep(0.5)
        began = time.monotonic()
        try:
            assert ask(gateway)
            assert gateway.http.get("/health").status_code == 200
            took = time.monotonic() - began
        finally:
            database.execute("ROLLBACK")
            database.close()
        assert took < 10 and {one.result().status_code for one in thumbs} == {200}
