"""Votes, undo, who gets which task: the page over HTTP."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from review_parts import PASSWORD, Client, hidden_order, make_task

from trueup.label.config import LabelConfig
from trueup.label.settle import settle
from trueup.label.votes import EDIT, SECOND_LOOK, choice_of, vote
from trueup.pair import PairConfig
from trueup.pair import run as pair_run
from trueup.pair.decontaminate import HeldOut
from trueup.privacy import PrivacyConfig, Scrubber, erase_user
from trueup.privacy.trail import entries
from trueup.records import Completion, Interaction, Label, Message, PreferencePair, ReviewTask
from trueup.review.agreement import disagreements
from trueup.review.app import create_app
from trueup.review.config import ReviewConfig
from trueup.review.desk import Desk, Said
from trueup.store import Store


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Everything below holds in both."""
    in_postgres = request.param == "postgres"
    url = request.getfixturevalue("postgres_url") if in_postgres else None
    opened = Store(tmp_path / "store", url=url)
    yield opened
    opened.close()


@pytest.fixture
def same_store(store: Store) -> Iterator[Store]:
    """What another process has open."""
    in_postgres = store.engine.dialect.name == "postgresql"
    url = store.engine.url.render_as_string(hide_password=False) if in_postgres else None
    opened = Store(store.folder, url=url)
    yield opened
    opened.close()


def standing(store: Store, name: str = "ann") -> dict[str, str | None]:
    """What a person's newest vote on each task says."""
    votes = [one for one in store.all(Label, annotator=name) if one.is_vote]
    replaced = {one.replaces for one in votes}
    return {one.task_id: choice_of(one) for one in votes if one.id not in replaced}


# --- votes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pick", "scores"), [("tie", (0.5, 0.5)), ("bad", (0.0, 0.0)), ("1", None), ("2", None)]
)
def test_a_vote_is_a_label_in_the_tasks_own_order(open_review, store, pick, scores) -> None:
    store.add_all([make_task(n) for n in range(12)])
    ann = open_review().enter("ann")
    seen = set()
    for _ in range(12):
        page = ann.http.get("/").text
        order = hidden_order(page)
        task_id = ann.answer(pick, reasons_1="Wrong", comment="so so")
        (label,) = store.all(Label, task_id=task_id)
        chosen = {"1": order[0], "2": order[1]}.get(pick)
        wanted = scores or ((1.0, 0.0) if chosen == "first" else (0.0, 1.0))
        assert label.scores == wanted
        assert label.is_vote and label.annotator == "ann" and label.annotator_kind == "human"
        assert label.source == "review" and label.comment == "so so"
        place = 0 if order[0] == "first" else 1
        assert "Wrong" in label.reasons[place] and "Wrong" not in label.reasons[1 - place]
        assert label.candidates == store.get(ReviewTask, task_id).candidates
        seen.add(tuple(order))
    assert seen == {("first", "second"), ("second", "first")}, "the order is not drawn"
    assert ann.card() is None


def test_the_order_is_the_same_when_a_person_returns_and_another_for_others(
    open_review, store
) -> None:
    tasks = [make_task(n) for n in range(12)]
    store.add_all(tasks)
    review = open_review(overlap=2)
    orders: dict[str, list[tuple[str, ...]]] = {}
    for name in ("ann", "bob"):
        client = review.enter(name)
        orders[name] = []
        for _ in tasks:
            first = hidden_order(client.http.get("/").text)
            assert hidden_order(client.http.get("/").text) == first
            orders[name].append(tuple(first))
            client.answer("tie")
    assert orders["ann"] != orders["bob"]


def test_a_changed_vote_replaces_the_first_and_may_change_back(open_review, store) -> None:
    store.add(make_task(1))
    ann = open_review().enter("ann")
    task_id = ann.answer("1")
    first = standing(store)[task_id]
    assert ann.post(f"/task/{task_id}", choice="2").status_code == 303
    assert standing(store)[task_id] not in (first, None)
    assert ann.post(f"/task/{task_id}", choice="1").status_code == 303
    assert standing(store) == {task_id: first}
    assert ann.json("/mine.json")["deeds"][0]["choice"] == "1"
    assert ann.json("/index.json")["progress"]["mine"] == 1
    number = store.count(Label)
    assert ann.post(f"/task/{task_id}", choice="1").status_code == 303
    assert store.count(Label) == number, "the same vote again writes nothing"


def test_undo_takes_the_vote_back_and_shows_the_task_again(open_review, store) -> None:
    store.add_all([make_task(1), make_task(2)])
    ann = open_review().enter("ann")
    first = ann.answer("1", comment="hasty")
    second = ann.answer("skip")
    assert ann.card() is None
    assert ann.post("/undo").headers["location"] == f"/task/{second}"
    assert ann.card()["task"] == second
    assert ann.post("/undo").headers["location"] == f"/task/{first}"
    assert ann.card()["task"] == first
    assert standing(store) == {first: "withdrawn"}
    assert ann.json("/index.json")["progress"] == {
        "mine": 0,
        "mine_today": 0,
        "all": 0,
        "wanted": 2,
    }
    assert ann.json("/mine.json")["deeds"] == []
    assert ann.post("/undo").status_code == 409
    ann.answer("1", comment="hasty")  # the very same words count again
    assert standing(store)[first] in ("first", "second")


def test_an_edit_becomes_chosen_and_undo_takes_it_back_too(open_review, store) -> None:
    store.add_all([make_task(1), make_task(2)])
    ann = open_review().enter("ann")
    card = ann.card()
    original = card["answers"][0]["original"]
    better = "Four hours.\r\nIn the cold: six.\r\n<b>"
    ann.answer("1", edit_1=better, edit_2=card["answers"][1]["original"])
    (edit,) = store.all(Label, source=EDIT)
    assert edit.candidates[0].text == "Four hours.\nIn the cold: six.\n<b>"
    assert edit.candidates[1].text == original
    assert edit.scores == (1.0, 0.0) and not edit.is_vote and edit.annotator == "ann"
    pair_run(store, PairConfig(), HeldOut([]))
    (pair,) = store.all(PreferencePair)
    assert pair.chosen.text.startswith("Four hours.") and pair.rejected.text == original
    assert ann.json(f"/task/{card['task']}.json")["card"]["answers"][0]["edited"].startswith("Four")
    ann.post("/undo")
    withdrawn = [one for one in store.all(Label, source=EDIT) if one.replaces]
    assert [one.replaces for one in withdrawn] == [edit.id]
    assert choice_of(withdrawn[0]) == "withdrawn"
    ann.post(f"/task/{card['task']}", choice="1", edit_1=better)
    newest = store.all(Label, source=EDIT)[-1]
    assert newest.scores == (1.0, 0.0) and newest.replaces == withdrawn[0].id


def test_an_edit_that_changes_nothing_is_none(open_review, store) -> None:
    odd = "line one\r\nline two \n\n end"
    store.add(make_task(1, first=odd))
    ann = open_review().enter("ann")
    edits = {
        f"edit_{one['number']}": one["original"].replace("\r\n", "\n").replace("\n", "\r\n")
        for one in ann.card()["answers"]
    }
    ann.answer("tie", **edits)
    assert store.all(Label, source=EDIT) == []


def test_what_was_ticked_and_said_is_there_again(open_review, store) -> None:
    store.add(make_task(1))
    ann = open_review(rubric=("Wrong", "Rude")).enter("ann")
    task_id = ann.answer("bad", reasons_1="Rude", reasons_2="Nonsense", comment="both rude")
    card = ann.json(f"/task/{task_id}.json")["card"]
    assert card["choice"] == "bad" and card["comment"] == "both rude"
    assert [one["ticked"] for one in card["answers"]] == [["Rude"], []]
    assert choice_of(store.all(Label)[0]) == "both bad"


def test_a_task_of_somebody_else_is_none_of_mine(open_review, store) -> None:
    store.add_all([make_task(n) for n in range(4)])
    review = open_review()
    task_id = review.enter("ann").answer("1")
    bob = review.enter("bob")
    assert bob.http.get(f"/task/{task_id}").status_code == 404
    assert bob.post(f"/task/{task_id}", choice="1").status_code == 404
    assert bob.post("/task/task_none", choice="1").status_code == 404
    assert bob.post(f"/task/{bob.card()['task']}", choice="nonsense").status_code == 422
    assert store.count(Label) == 1


def test_tasks_that_cannot_be_compared_are_never_shown(open_review, store) -> None:
    one = make_task(1)
    store.add_all(
        [
            ReviewTask(prompt=one.prompt, candidates=one.candidates[:1]),
            ReviewTask(prompt=one.prompt, candidates=(*one.candidates, Completion(text="third"))),
        ]
    )
    assert open_review().enter("ann").card() is None


# --- who gets what --------------------------------------------------------------------------------


def test_two_people_at_once_never_share_a_slot(open_review, store) -> None:
    store.add_all([make_task(n) for n in range(16)])
    review = open_review()
    failures: list[BaseException] = []

    def work(client: Client) -> None:
        try:
            while client.card():
                client.answer("1")
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(review.enter(n),)) for n in ("ann", "bob", "lea")
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not failures
    votes = review.votes()
    assert len(votes) == len({one.task_id for one in votes}) == 16
    assert len({one.annotator for one in votes}) > 1


def test_overlap_asks_that_many_people(open_review, store) -> None:
    store.add_all([make_task(n) for n in range(6)])
    review = open_review(overlap=2)
    for name in ("ann", "bob", "lea"):
        client = review.enter(name)
        while client.card():
            client.answer("tie")
    by_task: dict[str, set[str]] = {}
    for one in review.votes():
        by_task.setdefault(one.task_id, set()).add(one.annotator)
    assert len(by_task) == 6 and all(len(names) == 2 for names in by_task.values())


def test_a_lease_runs_out(store) -> None:
    store.add(make_task(1))
    desk = Desk(store, ReviewConfig(lease_s=1.0))
    held = desk.next_for("ann")
    assert held and desk.next_for("bob") is None
    time.sleep(1.05)
    assert desk.next_for("bob") == held


def test_two_desks_on_one_store_see_each_others_votes(store, same_store) -> None:
    store.add_all([make_task(1), make_task(2)])
    here, there = Desk(store, ReviewConfig()), Desk(same_store, ReviewConfig())
    mine = here.next_for("ann")
    theirs = there.next_for("bob")
    assert mine and theirs and mine.id != theirs.id
    here.answer("ann", mine, Said("first"))
    there.answer("bob", theirs, Said("second"))
    assert here.next_for("bob") is None and there.next_for("ann") is None
    assert here.progress("ann") == there.progress("ann")


def test_what_was_erased_is_gone_from_an_open_desk(store, same_store) -> None:
    """SQLite gives the row of what was erased last to what comes next."""
    asked = Interaction(
        prompt=make_task(1).prompt,
        completion=Completion(text="4 hours"),
        source="gateway",
        user="u",
    )
    old, kept = make_task(1, interaction_id=asked.id), make_task(2)
    store.add_all([asked, kept, old])
    desk = Desk(store, ReviewConfig(), LabelConfig(overlap=2))
    for task in (kept, old):
        desk.answer("ann", task, Said("first"))
    assert desk.progress("ann").mine == 2
    erase_user(same_store, "u", who="test")
    new = make_task(3)
    same_store.add_all([new, vote(new, "second", "ann")])
    assert desk.progress("ann").mine == 2
    assert desk.read(lambda known: set(known.tasks)) == {kept.id, new.id}
    assert desk.read(lambda known: known.votes[new.id]["ann"].choice) == "second"


def test_undo_and_my_answers_pass_over_what_was_erased(store) -> None:
    asked = Interaction(
        prompt=make_task(1).prompt,
        completion=Completion(text="4 hours"),
        source="gateway",
        user="u",
    )
    kept, *gone = make_task(2), *(make_task(n, interaction_id=asked.id) for n in (1, 3))
    store.add_all([asked, kept, *gone])
    desk = Desk(store, ReviewConfig())
    desk.answer("ann", kept, Said("first"))
    desk.answer("ann", gone[0], Said("tie"))
    desk.assign([gone[1].id], ["bob"], "lea")
    erase_user(store, "u", who="test")
    assert [one.task_id for one in desk.history("ann")] == [kept.id]
    assert desk.open_assignments() == {}
    undone = desk.undo("ann")
    assert undone and undone[0] == kept
    assert desk.undo("ann") is None


def test_of_two_deeds_at_once_the_second_finds_the_first_whole(store, monkeypatch) -> None:
    """Two tabs of one person: half a deed would leave an edit that nothing replaces any more."""
    store.add(make_task(1))
    desk, note, half = Desk(store, ReviewConfig()), Desk._note, threading.Event()

    def slowly(*words: Any) -> None:
        half.set()
        time.sleep(0.3)
        note(*words)

    monkeypatch.setattr(Desk, "_note", slowly)
    saying = (Said("first", edits=("one", None)),)
    first = threading.Thread(target=desk.answer, args=("ann", make_task(1), *saying))
    first.start()
    half.wait(10)
    desk.answer("ann", make_task(1), Said("first", edits=("two", None)))
    first.join()
    edits = store.all(Label, source=EDIT)
    replaced = {one.replaces for one in edits}
    assert [one.candidates[0].text for one in edits if one.id not in replaced] == ["two"]
    assert desk.said("ann", make_task(1)).edits == ("two", None)


def test_a_skipped_task_goes_to_others(open_review, store) -> None:
    store.add(make_task(1))
    review = open_review()
    ann, bob = review.enter("ann"), review.enter("bob")
    task_id = ann.answer("skip")
    assert ann.card() is None
    assert bob.card()["task"] == task_id and store.count(Label) == 0
    assert ann.http.get(f"/task/{task_id}").status_code == 200, "and can be answered after all"


def test_assigned_tasks_go_to_whom_they_were_given(open_review, store) -> None:
    store.add_all([make_task(n) for n in range(6)])
    review = open_review()
    lea, ann, bob = review.enter("lea"), review.enter("ann"), review.enter("bob")
    assert lea.post("/team/assign", names=["ann", "bob"], num=2).status_code == 303
    team = {one["name"]: one for one in lea.json("/team")["team"]}
    assert team["ann"]["num_assigned"] == team["bob"]["num_assigned"] == 2
    first = [ann.answer("1"), ann.answer("1")]
    assert [bob.answer("2"), bob.answer("2")] == first, "both of them, and before the pool"
    rest = set()
    while ann.card():
        rest.add(ann.answer("1"))
    assert len(rest) == 3 and not rest & set(first), "all but the one that bob holds"
    assert lea.post("/team/assign", names="nobody", num=2).status_code == 422


def test_what_was_assigned_can_be_taken_back(open_review, store) -> None:
    store.add_all([make_task(n) for n in range(3)])
    review = open_review()
    lea, bob = review.enter("lea"), review.enter("bob")
    lea.post("/team/assign", names="ann", num=3)
    assert bob.card() is None
    lea.post("/team/assign", release="ann")
    assert bob.card()


# --- gold -----------------------------------------------------------------------------------------


def test_given_tasks_are_ones_they_have_not_done(open_review, store) -> None:
    """A task that somebody was given and had done before would wait for nobody for ever."""
    store.add_all([make_task(n) for n in range(6)])
    review = open_review(overlap=2)
    ann, bob, lea = (review.enter(name) for name in ("ann", "bob", "lea"))
    first = {ann.answer("tie") for _ in range(3)}
    assert lea.post("/team/assign.json", names="ann", num=5).json()["assigned"] == 2, (
        "one is before her"
    )
    given = {ann.answer("1") for _ in range(3)}
    assert not given & first
    assert {bob.answer("2") for _ in range(6)} == first | given
    assert bob.card() is None


def test_a_given_task_that_is_skipped_or_has_too_few_votes_goes_back_to_the_pool(
    open_review, store
) -> None:
    store.add_all([make_task(n) for n in range(2)])
    review = open_review(overlap=2)
    ann, bob, lea, ada = (review.enter(name) for name in ("ann", "bob", "lea", "ada"))
    lea.post("/team/assign", names="ann", num=2)
    assert bob.card() is None, "it is for ann to do first"
    skipped, done = ann.answer("skip"), ann.answer("1")
    assert {bob.answer("1") for _ in range(2)} == {skipped, done}
    assert ada.answer("1") == skipped
    assert ada.card() is None


def test_what_was_given_to_somebody_who_was_locked_out_can_be_taken_back(
    open_review, store
) -> None:
    store.add(make_task(1))
    review = open_review()
    bob, lea = review.enter("bob"), review.enter("lea")
    lea.post("/team/assign", names="ann", num=1)
    review.people.change("ann", is_active=False)
    assert bob.card() is None
    assert {"name": "ann", "num_assigned": 1}.items() <= next(
        one for one in lea.json("/team")["team"] if one["name"] == "ann"
    ).items()
    assert lea.post("/team/assign.json", release="ann").json()["released"] == 1
    assert bob.card()


def test_whoever_fails_gold_questions_fills_nobodys_place(open_review, store) -> None:
    """Else their tasks would wait for votes that nobody is asked for."""
    store.add_all([make_task(n) for n in range(3)])
    store.add_all([make_task(n, gold=(1.0, 0.0)) for n in range(100, 105)])
    review = open_review(gold_rate=0.9)
    desk = Desk(store, ReviewConfig(gold_rate=0.9))
    asked = set()
    while task := desk.next_for("ann"):
        asked.add(task.gold)
        desk.answer("ann", task, Said("second"))
    assert asked == {None, (1.0, 0.0)}
    assert len(settle(store, LabelConfig()).weighed.waiting) == 3
    bob = Client(review.url, "bob")
    plain = set()
    while card := bob.card():
        task = store.get(ReviewTask, card["task"])
        plain |= {task.id} if task.gold is None else set()
        Desk(store, ReviewConfig()).answer("bob", task, Said("first"))
    assert len(plain) == 3
    assert len(settle(store, LabelConfig()).written) == 3


def test_a_task_that_went_to_others_meanwhile_may_still_be_answered(open_review, store) -> None:
    """Whoever mends an answer for longer than a lease does not lose what they wrote."""
    store.add_all([make_task(n) for n in range(2)])
    review = open_review(lease_s=0.05)
    ann, bob = review.enter("ann"), review.enter("bob")
    card = ann.card()
    time.sleep(0.1)
    assert bob.answer("1") == card["task"]
    said = {"choice": "1", "edit_1": "It took me long to write this."}
    assert ann.post(f"/task/{card['task']}", **said).status_code == 303
    assert [one.candidates[0].text for one in store.each(Label, source=EDIT)] == [said["edit_1"]]


def test_an_edit_of_a_gold_question_looks_like_others_and_teaches_nothing(
    open_review, store
) -> None:
    store.add(make_task(1, gold=(1.0, 0.0)))
    ann = open_review().enter("ann")
    task = ann.answer("1", edit_1="A better text than both.")
    assert ann.json("/mine.json")["deeds"][0]["num_edits"] == 1
    edited = [one["edited"] for one in ann.json(f"/task/{task}.json")["card"]["answers"]]
    assert edited == ["A better text than both.", None]
    pair_run(store, PairConfig(), HeldOut(()))
    assert store.count(PreferencePair) == 0


def test_what_somebody_mended_who_fails_gold_questions_teaches_nothing_until_they_know_better(
    store: Store,
) -> None:
    tasks = [make_task(n) for n in range(2)]
    gold = [make_task(100 + n, gold=(1.0, 0.0)) for n in range(15)]
    store.add_all([*tasks, *gold])
    desk, config = Desk(store, ReviewConfig()), LabelConfig()
    for one in gold[:5]:
        desk.answer("bob", one, Said("second"))
    for one in tasks:
        desk.answer("bob", one, Said("first", edits=("SPAM", None)))

    def taught() -> list[str]:
        settle(store, config)
        assert not settle(store, config).written, "a second time says nothing new"
        pair_run(store, PairConfig(), HeldOut([]))
        replaced = {one.replaces for one in store.each(Label)}
        pairs = [one for one in store.each(PreferencePair) if one.label_ids[0] not in replaced]
        return [one.chosen.text for one in pairs if one.chosen.text in ("SPAM", "better")]

    assert taught() == []
    assert desk.said("bob", tasks[0]).edits == ("SPAM", None), "nothing tells him"
    desk.answer("bob", tasks[1], Said("first", edits=("better", None)))
    assert taught() == []
    for one in gold[5:]:
        desk.answer("bob", one, Said("first"))
    assert sorted(taught()) == ["SPAM", "better"]


def test_nobody_gets_a_task_while_its_vote_is_taken_back(store) -> None:
    """Two desks, and people who undo every other answer: no task gets more votes than it asks."""
    store.add_all([make_task(n) for n in range(12)])
    label = LabelConfig(overlap=2)
    desks = [Desk(store, ReviewConfig(gold_rate=0.0), label) for _ in range(2)]

    def work(name: str, desk: Desk) -> None:
        turn = 0
        while task := desk.next_for(name):
            desk.answer(name, task, Said("tie"))
            turn += 1
            if turn % 2:
                desk.undo(name)

    threads = [
        threading.Thread(target=work, args=(f"{name}{n}", desk))
        for n, desk in enumerate(desks)
        for name in ("a", "b", "c")
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    votes = Counter(
        key
        for n in range(2)
        for name in "abc"
        for key, said in standing(store, f"{name}{n}").items()
        if said != "withdrawn"
    )
    assert set(votes.values()) == {2} and len(votes) == 12


def test_gold_questions_are_mixed_in_and_nothing_tells_them(open_review, store) -> None:
    store.add_all([make_task(n) for n in range(12)])
    gold = [make_task(n, gold=(1.0, 0.0), source="file:gold.jsonl") for n in range(100, 106)]
    store.add_all(gold)
    review = open_review(gold_rate=0.3)
    ann = review.enter("ann")
    asked, shapes, jumps = [], set(), set()
    before = 0
    while ann.card():
        page = ann.http.get("/").text
        twin = ann.http.get("/index.json").text
        assert "gold" not in (page + twin).lower() and "weights_secret" not in page + twin
        shapes.add(
            re.sub(
                r"task_\w+|\d+|first|second|hours|days|value=\"\"", "", page.split("<template")[0]
            )
        )
        asked.append(ann.answer("tie"))
        given = ann.json("/mine.json") and ann.json("/index.json")["progress"]["all"]
        jumps.add(given - before)
        before = given
    places = [place for place, one in enumerate(asked) if one in {g.id for g in gold}]
    assert 2 <= len(places) <= 6 and places[-1] < len(asked) - 1, places
    assert set(asked) >= {one.id for one in store.all(ReviewTask, source="loop")}
    assert jumps == {1}, "the progress would tell"
    assert len({re.sub(r"\s+", " ", one) for one in shapes}) <= 3, "first, middle and last page"


def test_gold_questions_measure_the_annotator(open_review, store) -> None:
    gold = [make_task(n, gold=(1.0, 0.0)) for n in range(8)]
    store.add_all(gold)
    review = open_review()
    ann = review.enter("ann")
    for n in range(8):  # gold alone: a calibration round
        order = hidden_order(ann.http.get("/").text)
        right = "1" if order[0] == "first" else "2"
        ann.answer(right if n < 6 else "tie")
    team = {one["name"]: one for one in review.enter("lea").json("/team")["team"]}
    assert team["ann"]["num_gold"] == 8
    assert team["ann"]["gold_right"]["estimate"] == 0.75


# --- agreement and second looks -------------------------------------------------------------------


def test_agreement_is_that_of_an_independent_package(open_review, store) -> None:
    import krippendorff

    store.add_all([make_task(n) for n in range(14)])
    review = open_review(overlap=2)
    said: dict[str, dict[str, str]] = {"ann": {}, "bob": {}}
    for name in said:
        client = review.enter(name)
        for n in range(14):
            order = hidden_order(client.http.get("/").text)
            pick = "tie" if n in (3, 4) else ("1" if (order[0] == "first") == (n < 9) else "2")
            if name == "bob" and n in (1, 11):
                pick = "bad"
            task_id = client.answer(pick)
            said[name][task_id] = str(
                choice_of(store.all(Label, task_id=task_id, annotator=name)[0])
            )
    tasks = list(said["ann"])
    codes = {one: at for at, one in enumerate(("first", "second", "tie", "both bad"))}
    table = [[codes[said[name][one]] for one in tasks] for name in said]
    wanted = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    team = review.enter("lea").json("/team")
    assert team["alpha"]["estimate"] == pytest.approx(wanted)
    assert team["num_shared"] == 14 and team["num_apart"] == 2
    assert team["pairs"][0]["num_same"] == 12


def test_a_lead_decides_what_people_disagree_on(open_review, store) -> None:
    store.add_all([make_task(1), make_task(2)])
    review = open_review(overlap=2)
    ann, bob, lea = review.enter("ann"), review.enter("bob"), review.enter("lea")
    for n in range(2):
        for client, pick in (ann, "tie"), (bob, "bad" if n else "tie"):
            client.answer(pick)
    rows = lea.json("/second-look")["rows"]
    assert [row["settled_by"] for row in rows] == [""]
    task_id = rows[0]["task"]
    assert {v["name"]: v["choice"] for v in rows[0]["votes"]} == {"ann": "tie", "bob": "bad"}
    page = lea.http.get(f"/second-look/{task_id}")
    assert page.status_code == 200 and "both bad" in page.text
    assert lea.post(f"/second-look/{task_id}", choice="1").status_code == 303
    (look,) = store.all(Label, source=SECOND_LOOK)
    assert look.annotator == "lea" and look.task_id == task_id and look.is_vote
    assert lea.json("/second-look")["rows"][0]["settled_by"] == "lea"
    assert lea.json("/team")["num_apart"] == 0
    assert len(review.votes()) == 5, "their votes stay"
    settled = {one.task_id: one for one in settle(store, LabelConfig(overlap=2)).written}
    assert choice_of(settled[task_id]) == choice_of(look), "and hers decides"
    assert ann.http.get("/second-look").status_code == 403
    assert ann.post(f"/second-look/{task_id}", choice="1").status_code == 403


def test_a_second_look_that_is_changed_or_taken_back_stays_one(store) -> None:
    task = make_task(1)
    store.add(task)
    desk = Desk(store, ReviewConfig(), LabelConfig(overlap=2))
    desk.answer("ann", task, Said("first"))
    desk.answer("bob", task, Said("second"))
    desk.answer("lea", task, Said("first"), source=SECOND_LOOK)

    def decided() -> tuple[str | None, str]:
        (apart,) = desk.read(disagreements)
        assert apart.votes == {"ann": "first", "bob": "second"}, "hers is no vote among theirs"
        settle(store, LabelConfig(overlap=2))
        settled = [one for one in store.all(Label, task_id=task.id) if one.vote_ids]
        return choice_of(settled[-1]), apart.settled_by

    assert decided() == ("first", "lea")
    desk.answer("lea", task, Said("second"))  # from My answers
    assert decided() == ("second", "lea")
    assert desk.undo("lea") and desk.read(disagreements)[0].settled_by == ""
    desk.answer("lea", task, Said("tie"))
    assert decided() == ("tie", "lea")


# --- a server that dies ---------------------------------------------------------------------------


def test_a_killed_server_forgets_nothing(tmp_path: Path) -> None:
    (tmp_path / "trueup.toml").write_text("[review]\ngold_rate = 0.0\n")
    store = Store(tmp_path / ".trueup")
    store.add_all([make_task(n) for n in range(4)])
    environment = {**os.environ, "TRUEUP_REVIEW_PASSWORD": PASSWORD}
    command = [sys.executable, "-m", "trueup", "--project", str(tmp_path)]
    subprocess.run([*command, "review", "user", "add", "ann"], env=environment, check=True)

    def start() -> tuple[subprocess.Popen[str], str]:
        server = subprocess.Popen(
            [*command, "review", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout
        return server, server.stdout.readline().split()[2]

    server, url = start()
    try:
        with httpx.Client() as jar:
            ann = Client(url, "ann")
            done = ann.answer("1")
            held = ann.card()["task"]
            server.send_signal(signal.SIGKILL)
            server.wait()
            server, url = start()
            jar.cookies.update(ann.http.cookies)
            again = Client(url)
            again.http.cookies.update(dict(ann.http.cookies))
            assert again.card()["task"] == held, "still logged in, still the same task"
            assert again.json("/mine")["deeds"][0]["task"] == done
            again.answer("2")
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    assert len(store.all(Label)) == 2
    store.close()


def test_a_prompt_without_turns_is_no_trouble(open_review, store) -> None:
    task = make_task(1)
    store.add(ReviewTask(prompt=(), candidates=task.candidates))
    store.add(ReviewTask(prompt=(Message(role="tool", content=""),), candidates=task.candidates))
    review = open_review(overlap=2)
    for name in ("ann", "bob"):
        client = review.enter(name)
        while card := client.card():
            client.answer("1" if name == "ann" else "tie")
            assert card
    assert review.enter("lea").http.get("/second-look").status_code == 200


# --- what must not be written ---------------------------------------------------------------------


def test_comments_edits_and_reasons_are_scrubbed(store) -> None:
    store.add(task := make_task(1))
    scrub = Scrubber(PrivacyConfig(), store)
    desk = create_app(store, ReviewConfig(), scrub=scrub).state.desk
    said = Said(
        "first",
        ((), ("ann@example.com",)),
        "ask ann@example.com",
        (None, "Write to ann@example.com or b@example.com."),
    )
    desk.answer("ann", task, said)
    desk.answer("ann", task, said)
    labels = store.all(Label)
    assert len(labels) == 2, "said again is not said anew"
    assert not any("@" in one.model_dump_json() for one in labels)
    shown = desk.said("ann", task)
    assert shown.comment == "ask <EMAIL_1>"
    assert shown.edits == (None, "Write to <EMAIL_1> or <EMAIL_2>.")


def test_who_changes_whose_role_is_in_the_audit_trail(open_review) -> None:
    review = open_review()
    ada = review.enter("ada")
    token = ada.token("/people")
    data = {"role": "lead", "csrf": token}
    assert ada.http.post("/people/bob", data=data).status_code == 303
    review.people.change("bob", is_active=False, by="the boss")
    last = entries(review.store)[-2:]
    assert [(one.action, one.who) for one in last] == [("role", "ada"), ("role", "the boss")]
    assert (
        last[0].details | {"name": "bob", "role": "lead", "before": "annotator"} == last[0].details
    )
    assert last[1].details["is_active"] is False
    assert PASSWORD not in str(entries(review.store))
