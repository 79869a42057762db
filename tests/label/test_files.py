"""Tasks and votes as files: nothing is lost on the way out and back, and nothing runs in a
spreadsheet."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_people import PEOPLE, says, task

from trueup.errors import DataError
from trueup.label import weigh
from trueup.label.files import add_tasks, export_tasks, export_votes, import_votes, read_text
from trueup.label.votes import CHOICES, VoteBook, choice_of, is_swapped
from trueup.privacy import PrivacyConfig, Scrubber
from trueup.records import Completion, Label, Message, ReviewTask
from trueup.store import Store

HOSTILE = "=cmd|' /C calc'!A0"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def odd(text: str) -> ReviewTask:
    return ReviewTask(
        prompt=(Message(role="user", content=text),),
        candidates=(Completion(text=f"{text}1"), Completion(text=f"{text}2")),
    )


def filled(text: str, said: str, **more: str) -> str:
    """The same CSV with every vote filled in, by a spreadsheet that minds its quotes."""
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(row | {"vote": said} | more for row in rows)
    return out.getvalue()


# --- votes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_votes_that_go_out_and_come_back_are_the_same(
    store: Store, tmp_path: Path, form: str
) -> None:
    for n, choice in enumerate(CHOICES * 5):
        store.add(task(n))
        says(store, task(n), choice, "ann", "=bob")
    text = export_votes(store, form)  # type: ignore[arg-type]
    assert import_votes(store, text, name="votes", form=form).new == 40  # type: ignore[arg-type]
    other = Store(tmp_path / "other")
    other.add_all(task(n) for n in range(20))
    done = import_votes(other, text, name="votes", form=form)  # type: ignore[arg-type]
    assert (done.rows, done.new, done.known, done.skipped) == (40, 40, 0, {})
    for n, choice in enumerate(CHOICES * 5):
        by = VoteBook(other).standing()[task(n).id]
        assert {name: choice_of(one) for name, one in by.items()} == {"ann": choice, "=bob": choice}
    again = import_votes(other, text, name="votes", form=form)  # type: ignore[arg-type]
    assert (again.new, again.known) == (0, 40)
    other.close()


def test_a_vote_is_for_the_answer_that_stood_there(store: Store) -> None:
    store.add_all(task(n) for n in range(10))
    text = export_tasks(weigh(store, PEOPLE).open_to("ann"), "csv", annotator="ann")
    shown = {row["task_id"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert {row["answer_1"][:3] for row in shown.values()} == {"goo", "bad"}
    import_votes(store, filled(text, "1"), name="votes.csv", form="csv")
    for n in range(10):
        choice = choice_of(VoteBook(store).standing()[task(n).id]["ann"])
        assert shown[task(n).id]["answer_1"] == f"{'good' if choice == 'first' else 'bad'} {n}"
        assert (choice == "second") == is_swapped(task(n).id, "file")


def test_a_changed_row_changes_the_vote_and_an_old_file_does_not_undo_another_page(
    store: Store,
) -> None:
    store.add(task())
    text = export_tasks([task()], "csv", annotator="ann")
    for said in ("tie", "both bad", "tie"):
        assert import_votes(store, filled(text, said), name="a.csv", form="csv").new == 1
    says(store, task(), "first", "ann")
    assert import_votes(store, filled(text, "tie"), name="a.csv", form="csv").known == 1
    assert choice_of(VoteBook(store).standing()[task().id]["ann"]) == "first"


def test_bad_rows_are_counted_by_reason_and_the_good_ones_kept(store: Store) -> None:
    store.add(task(), task(1))
    rows = [
        {"task_id": task().id, "vote": "Both  Bad", "annotator": "ann"},
        {"task_id": task().id, "vote": 1, "annotator": "bob"},
        {"task_id": task().id, "vote": "3", "annotator": "ann"},
        {"task_id": task().id, "vote": "", "annotator": "ann"},
        {"task_id": task().id, "vote": "1"},
        {"task_id": "task_nowhere", "vote": "1", "annotator": "ann"},
        {"task_id": [1], "vote": "1", "annotator": "ann"},
        ["1"],
    ]
    text = "\n".join(json.dumps(row) for row in rows) + "\n{broken\n\n" + "[" * 100_000 + "\n"
    done = import_votes(store, text, name="v", form="jsonl")
    assert (done.rows, done.new) == (10, 2)
    assert done.skipped == {
        "not JSON": 2,
        "unknown vote": 1,
        "no vote": 1,
        "no annotator": 1,
        "unknown task": 1,
        "not text": 1,
        "no object": 1,
    }
    assert done.problems[0] == "row 3: unknown vote"
    assert store.count(Label) == 2


def test_whose_the_votes_are_may_be_said_once_for_a_file(store: Store) -> None:
    store.add(task())
    text = filled(export_tasks([task()], "csv"), "tie")
    assert import_votes(store, text, name="v", form="csv").skipped == {"no annotator": 1}
    assert import_votes(store, text, name="v", form="csv", annotator="ann").new == 1


# --- spreadsheets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("begins", [*"=+-@\t\r\n＝＋－＠", " =", "'="])
def test_no_cell_begins_like_a_formula(store: Store, begins: str) -> None:
    one = odd(begins + "1+1")
    store.add(one)
    says(store, one, "first", begins + "ann")
    for text in (export_tasks([one], "csv", annotator=begins + "ann"), export_votes(store, "csv")):
        for row in csv.DictReader(io.StringIO(text, newline="")):
            assert all(not cell or cell[0] not in "=+-@\t\r\n＝＋－＠ " for cell in row.values())
            assert row["prompt"].endswith("1+1")


@pytest.mark.parametrize("text", [HOSTILE, "'quoted'", "'=x", "''=x", 'a\r\nb\n"c",d;e', " -1", ""])
def test_a_comment_comes_back_as_it_was(store: Store, tmp_path: Path, text: str) -> None:
    store.add(task())
    store.add(VoteBook(store).cast(task(), "tie", "ann", source="x", comment=text) or task())
    other = Store(tmp_path / "other")
    other.add(task())
    import_votes(other, export_votes(store, "csv"), name="v", form="csv")
    assert [one.comment for one in other.each(Label)] == [text]
    other.close()


def test_a_table_without_our_columns_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="the columns task_id and vote"):
        import_votes(store, "a,b\n1,2\n", name="v", form="csv")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "v.csv"
    bad.write_bytes(b"\xff\xfe\x00")
    for path in (bad, tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_text(path)


# --- tasks ----------------------------------------------------------------------------------------


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_gold_questions_come_with_their_answers_in_no_fixed_order(store: Store) -> None:
    rows = [{"prompt": f"Q{n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(40)]
    text = lines(
        {"prompt": "a", "candidates": ["x", "y"], "gold": "tie"},
        {"prompt": [{"role": "user", "content": "b"}], "candidates": ["x", "y"], "gold": [0, 0]},
        *rows,
    )
    done = add_tasks(store, text, name="gold.jsonl", gold=True)
    assert (done.rows, done.new) == (42, 42)
    assert add_tasks(store, text, name="gold.jsonl", gold=True).known == 42
    found = store.all(ReviewTask)
    assert [one.gold for one in found[:2]] == [(0.5, 0.5), (0, 0)]
    firsts = [one.gold == (1, 0) for one in found[2:]]
    assert 8 < sum(firsts) < 32
    for one, is_first in zip(found[2:], firsts, strict=True):
        assert one.candidates[0].text.startswith("yes" if is_first else "no")


def test_rows_that_are_no_questions_are_counted_by_reason(store: Store) -> None:
    good = {"prompt": "a", "candidates": ["x", "y"]}
    text = lines(
        good,
        good | {"gold": "first"},
        {"prompt": "a", "chosen": "x", "rejected": "y"},
        good | {"prompt": " "},
        good | {"prompt": [{"role": "user"}]},
        good | {"candidates": ["x"]},
        good | {"candidates": ["x", " "]},
        good | {"candidates": ["x", "x "]},
        good | {"gold": "third"},
        7,
    )
    done = add_tasks(store, text, name="t.jsonl")
    assert (done.rows, done.new) == (10, 1)
    assert done.skipped == {
        "has its answer: a gold question": 2,
        "no prompt": 2,
        "no two candidates": 1,
        "an answer is missing": 1,
        "two equal answers": 1,
        "unknown gold answer": 1,
        "no object": 1,
    }
    assert add_tasks(store, lines(good), name="t.jsonl", gold=True).skipped == {"no gold answer": 1}


def test_gold_questions_go_out_like_all_others(store: Store) -> None:
    store.add(task(), task(1, gold=(1, 0)))
    rows = [
        json.loads(one)
        for one in export_tasks(weigh(store, PEOPLE).open_to(""), "jsonl").splitlines()
    ]
    assert {row["task_id"] for row in rows} == {task().id, task(1, gold=(1, 0)).id}
    assert "gold" not in json.dumps(rows)


def test_a_file_with_two_rows_for_one_vote_says_the_last_and_nothing_new_again(
    store: Store,
) -> None:
    asked = odd("q")
    store.add(asked)
    rows = [{"task_id": asked.id, "vote": said, "annotator": "ann"} for said in ("1", "2")]
    text = "\n".join(map(json.dumps, rows))
    for new in (1, 0, 0):
        taken = import_votes(store, text, name="v.jsonl", form="jsonl")
        assert (taken.rows, taken.new, taken.known) == (2, new, 2 - new)
    (row,) = map(json.loads, export_votes(store, "jsonl").splitlines())
    assert row["vote"] == "2"


@pytest.mark.parametrize("said", [1.0, "1.0", 1, " 1 "])
def test_numbers_as_programs_write_them_are_votes(store: Store, said: object) -> None:
    asked = odd("q")
    store.add(asked)
    text = json.dumps({"task_id": asked.id, "vote": said, "annotator": "ann"})
    assert import_votes(store, text, name="v.jsonl", form="jsonl").new == 1


def test_half_a_character_is_a_bad_row(store: Store) -> None:
    rows = [
        {"prompt": "p \ud800", "candidates": ["a", "b"]},
        {"prompt": "p", "candidates": ["a \udfff", "b"]},
        {"prompt": [{"role": "user", "content": "\ud800"}], "candidates": ["a", "b"]},
        {"prompt": "p", "candidates": ["a \U0001f642", "b"]},
    ]
    taken = add_tasks(store, "\n".join(map(json.dumps, rows)), name="q.jsonl")
    assert (taken.new, taken.skipped) == (1, {"half a character": 3})
    (asked,) = store.each(ReviewTask)
    vote = {"task_id": asked.id, "vote": "1", "annotator": "ann", "comment": "\ud800"}
    taken = import_votes(store, json.dumps(vote), name="v.jsonl", form="jsonl")
    assert taken.skipped == {"half a character": 1}


def test_a_comment_is_scrubbed_and_still_known_when_it_comes_again(store: Store) -> None:
    store.add(task(0))
    row = {"task_id": task(0).id, "vote": "1", "annotator": "zoe", "comment": "ask ann@example.com"}
    fields = {"name": "v", "form": "jsonl", "scrub": Scrubber(PrivacyConfig(), store)}
    assert import_votes(store, json.dumps(row), **fields).new == 1  # type: ignore[arg-type]
    assert [one.comment for one in store.all(Label)] == ["ask <EMAIL_1>"]
    assert import_votes(store, json.dumps(row), **fields).known == 1  # type: ignore[arg-type]
