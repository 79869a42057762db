"""Importing a file: each shape by hand, each reason to skip, interruptions, and real data sets."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueup.capture.importer import BATCH_ROWS, ImportResult, import_file
from trueup.capture.shapes import SHAPES, Origin, Skip, to_record
from trueup.errors import ConfigError, DataError
from trueup.privacy import PrivacyConfig, Scrubber, erase_user
from trueup.records import Interaction, Label
from trueup.store import Store

ORIGIN = Origin("rows.jsonl")
REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi there"}
GO_AWAY = {"role": "assistant", "content": "Go away"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


def rows(count: int) -> list[dict]:
    return [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(count)]


def write(path: Path, lines: list) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def turns(record: Interaction | Label) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in record.prompt]


def texts(label: Interaction | Label) -> list[str]:
    assert isinstance(label, Label)
    return [completion.text for completion in label.candidates]


def reason(row: object, shape: str | None = None) -> str:
    with pytest.raises(Skip) as caught:
        to_record(row, ORIGIN, shape)
    return caught.value.reason


def read_real(store: Store, name: str) -> ImportResult:
    if not REAL_DATA.is_dir():
        pytest.skip(f"public data sets are not at {REAL_DATA}")
    return import_file(store, REAL_DATA / name)


# --- shapes: one answer -----------------------------------------------------------------------


def test_openai_messages_become_an_interaction():
    found = to_record({"messages": [{"role": "system", "content": "Be kind"}, HELLO, HI]}, ORIGIN)
    assert isinstance(found, Interaction)
    assert turns(found) == [("system", "Be kind"), ("user", "Hello")]
    assert found.completion.text == "Hi there"
    assert found.completion.finish_reason == "stop"
    assert found.completion.token_ids is found.completion.logprobs is None
    assert found.source == "file:rows.jsonl"
    assert found.request_id == ""


@pytest.mark.parametrize("prompt", ["Hello", [HELLO]])
@pytest.mark.parametrize("completion", ["Hi there", [HI], [HELLO, HI]])
def test_prompt_and_completion_may_be_text_or_turns_that_repeat_the_prompt(prompt, completion):
    found = to_record({"prompt": prompt, "completion": completion}, ORIGIN)
    assert isinstance(found, Interaction)
    assert (turns(found), found.completion.text) == ([("user", "Hello")], "Hi there")


def test_sharegpt_roles_are_mapped_and_its_system_column_leads():
    conversations = [
        {"from": "human", "value": "Hello"},
        {"from": "gpt", "value": "Hi"},
        {"from": "human", "value": "Bye"},
        {"from": "model", "value": "See you"},
    ]
    found = to_record({"system": "Be kind", "conversations": conversations}, ORIGIN)
    assert isinstance(found, Interaction)
    assert turns(found) == [
        ("system", "Be kind"),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Bye"),
    ]
    assert found.completion.text == "See you"


@pytest.mark.parametrize("who", ["assistant", "gpt", "model", "bot", "GPT"])
def test_every_name_of_the_assistant_is_known(who):
    row = {"conversations": [{"from": "user", "value": "Hello"}, {"from": who, "value": "Hi"}]}
    assert isinstance(to_record(row, ORIGIN), Interaction)


def test_text_parts_are_text():
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]
    found = to_record({"messages": [{"role": "user", "content": parts}, HI]}, ORIGIN)
    assert turns(found) == [("user", "Hello\nyou")]


def test_text_is_stored_as_it_stands():
    found = to_record({"prompt": " a\r\n", "completion": "\n b\t\u2028é "}, ORIGIN)
    assert isinstance(found, Interaction)
    assert (turns(found), found.completion.text) == ([("user", " a\r\n")], "\n b\t\u2028é ")


# --- shapes: one answer with a boolean label --------------------------------------------------


@pytest.mark.parametrize(("desirable", "score"), [(True, 1.0), (False, -1.0)])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [HELLO, HI]},
        {"prompt": "Hello", "completion": "Hi there"},
        {"conversations": [HELLO, {"from": "gpt", "value": "Hi there"}]},
    ],
)
def test_a_boolean_label_makes_unpaired_signal(row, desirable, score):
    found = to_record(row | {"label": desirable}, ORIGIN)
    assert (turns(found), texts(found)) == ([("user", "Hello")], ["Hi there"])
    assert isinstance(found, Label)
    assert found.scores == (score,)


def test_a_label_that_is_no_boolean_is_not_guessed_at():
    row = {"prompt": "Hello", "completion": "Hi"}
    assert reason(row | {"label": 1}) == "label is neither true nor false"
    assert reason(row | {"label": "good"}) == "label is neither true nor false"
    assert isinstance(to_record(row | {"label": None}, ORIGIN), Interaction)


# --- shapes: two answers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello", "chosen": "Hi there", "rejected": "Go away"},
        {"prompt": [HELLO], "chosen": [HI], "rejected": [GO_AWAY]},
        {"prompt": "Hello", "chosen": [HELLO, HI], "rejected": [HELLO, GO_AWAY]},
        {
            "conversations": [{"from": "human", "value": "Hello"}],
            "chosen": {"from": "gpt", "value": "Hi there"},
            "rejected": {"from": "gpt", "value": "Go away"},
        },
        {
            "chosen": "\n\nHuman: Hello\n\nAssistant: Hi there",
            "rejected": "\n\nHuman: Hello\n\nAssistant: Go away",
        },
        {"chosen": [HELLO, HI], "rejected": [HELLO, GO_AWAY]},
        {"chosen": [HELLO, HI], "rejected": [HELLO, GO_AWAY], "messages": [HELLO, HI]},
    ],
)
def test_every_preference_shape_gives_the_same_label(row):
    found = to_record(row, ORIGIN)
    assert isinstance(found, Label)
    assert turns(found) == [("user", "Hello")]
    assert texts(found) == ["Hi there", "Go away"]
    assert found.scores == (1.0, 0.0)
    assert found.annotator == "import:rows.jsonl"
    assert (found.annotator_kind, found.source) == ("human", "file:rows.jsonl")
    assert all(completion.finish_reason == "stop" for completion in found.candidates)
    assert found.id == to_record(row, ORIGIN).id


def test_hh_dialogues_share_their_turns_but_the_last():
    shared = "\n\nHuman: One\n\nAssistant: Two\n\nthree\n\nHuman: Four"
    row = {"chosen": shared + "\n\nAssistant: Five ", "rejected": shared + "\n\nAssistant:Six"}
    found = to_record(row, ORIGIN)
    assert turns(found) == [("user", "One"), ("assistant", "Two\n\nthree"), ("user", "Four")]
    assert texts(found) == ["Five", "Six"]


def test_hh_markers_inside_a_paragraph_are_words():
    start = "\n\nHuman: Hello\n\nAssistant: "
    row = {"chosen": start + "Human: is what you are", "rejected": start + "an Assistant: I am"}
    assert texts(to_record(row, ORIGIN)) == ["Human: is what you are", "an Assistant: I am"]


def test_dialogues_that_part_early_give_the_replies_in_which_they_part():
    start = "\n\nHuman: Hello\n\nAssistant:"
    longer = start + " Hi\n\nHuman: Bye\n\nAssistant: See you"
    found = to_record({"chosen": longer, "rejected": start + " Go away"}, ORIGIN)
    assert (turns(found), texts(found)) == ([("user", "Hello")], ["Hi", "Go away"])


def test_dialogues_whose_prompts_differ_are_skipped():
    start, end = "\n\nHuman: Hello", "\n\nAssistant: Hi"
    other = {"chosen": start + end, "rejected": "\n\nHuman: Hola\n\nAssistant: Ola"}
    assert reason(other) == "prompts differ"
    one_longer = {"chosen": start + end, "rejected": start + end + "\n\nHuman: Bye" + end}
    assert reason(one_longer) == "prompts differ"
    twice = {"chosen": [HELLO, HI, GO_AWAY], "rejected": [HELLO, HI, HI]}
    assert reason(twice) == "prompt does not end in a user turn"


def test_the_shape_can_be_named():
    row = {"prompt": "Hello", "chosen": "Hi", "rejected": "No", "messages": [HELLO, HI]}
    assert isinstance(to_record(row, ORIGIN), Label)
    assert isinstance(to_record(row, ORIGIN, "openai"), Interaction)
    assert reason(row, "sharegpt") == "not of shape 'sharegpt'"


# --- what cannot be used ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([1, 2], "row is not an object"),
        ("text", "row is not an object"),
        (None, "row is not an object"),
        ({}, "no known shape"),
        ({"question": "1 + 1", "answer": "2"}, "no known shape"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "no known shape"),
        ({"chosen": "a", "rejected": "b"}, "no known shape"),
        ({"messages": []}, "no final assistant turn"),
        ({"messages": [HELLO]}, "no final assistant turn"),
        ({"messages": [HELLO, HI, HELLO]}, "no final assistant turn"),
        ({"prompt": "Hello", "completion": [HELLO]}, "no final assistant turn"),
        ({"prompt": "Hello", "completion": []}, "no final assistant turn"),
        ({"chosen": [HELLO], "rejected": [HELLO, HI]}, "no final assistant turn"),
        ({"chosen": "\n\nHuman: Hello", "rejected": "\n\nHuman: Bye"}, "no final assistant turn"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "text before the first turn"),
        ({"prompt": "", "completion": "Hi"}, "empty prompt"),
        ({"prompt": " \n", "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": [], "completion": "Hi"}, "empty prompt"),
        ({"messages": [HI]}, "empty prompt"),
        ({"chosen": [HI], "rejected": [GO_AWAY]}, "empty prompt"),
        ({"prompt": [HELLO, HI], "completion": "Hi"}, "prompt does not end in a user turn"),
        ({"prompt": "Hello", "completion": ""}, "empty completion"),
        ({"prompt": "Hello", "chosen": "a", "rejected": "\n"}, "empty completion"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "\n\nHuman: a\n\nAssistant: b"},
            "empty completion",
        ),
        ({"prompt": "Hello", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
        ({"prompt": "Hello", "chosen": "a", "rejected": " a\n"}, "chosen equals rejected"),
        ({"chosen": [HELLO, HI], "rejected": [HELLO, HI]}, "chosen equals rejected"),
        (
            {"prompt": [HELLO], "chosen": [HI, HELLO, HI], "rejected": [HI]},
            "answer has several turns",
        ),
        ({"messages": [{"role": "tool", "content": "4"}, HI]}, "unknown role"),
        ({"messages": [{"content": "Hello"}, HI]}, "unknown role"),
        ({"messages": [{"role": ["user"], "content": "Hello"}, HI]}, "unknown role"),
        ({"messages": [{"role": "user", "content": None}, HI]}, "content is not text"),
        ({"messages": [{"role": "user", "content": 7}, HI]}, "content is not text"),
        ({"messages": [{"role": "user"}, HI]}, "content is not text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, HI]},
            "content is not text",
        ),
        ({"messages": [HELLO, HI | {"tool_calls": [{"id": "1"}]}]}, "content is not text"),
        ({"messages": ["Hello", HI]}, "turn is not an object"),
        ({"messages": 7}, "neither text nor turns"),
        ({"prompt": 7, "completion": "Hi"}, "neither text nor turns"),
        ({"prompt": "half \ud83d", "completion": "Hi"}, "text is not valid Unicode"),
    ],
)
def test_what_cannot_be_used_is_skipped_with_its_reason(row, why):
    assert reason(row) == why


def test_no_json_value_in_any_cell_raises_anything_but_a_skip():
    odd = [None, True, 0, 1.5, "", "x", [], [[]], {}, [{}], {"role": "user"}, [None], ["x"], [HI]]
    columns = ("prompt", "completion", "messages", "conversations", "chosen", "rejected", "label")
    for shape in [None, *(one.name for one in SHAPES)]:
        for first in columns:
            for second in columns:
                for a in odd:
                    for b in odd:
                        try:
                            to_record({first: a, second: b, "system": a}, ORIGIN, shape)
                        except Skip as skip:
                            assert skip.reason


# --- files ------------------------------------------------------------------------------------


def test_a_file_is_counted_row_by_row(store, tmp_path):
    path = write(
        tmp_path / "mixed.jsonl",
        [
            {"messages": [HELLO, HI]},
            {"prompt": "Hello", "chosen": "Hi", "rejected": "Go away"},
            {"prompt": "Hello", "completion": "Hi", "label": True},
            "",
            {"prompt": "Hello", "completion": "  "},
            '{"prompt": "cut off',
            {"messages": [HELLO, HI]},
        ],
    )
    found = import_file(store, path, max_skip_rate=0.5)
    assert found == ImportResult(
        file="mixed.jsonl",
        rows=6,
        interactions=2,
        labels=2,
        unpaired=1,
        new=3,
        skipped={"empty completion": 1, "not JSON": 1},
        problems=("line 5: empty completion", 'line 6: not JSON (got \'{"prompt": "cut off\')'),
    )
    assert (store.count(Interaction), store.count(Label)) == (1, 2)
    assert store.count(Label, source="file:mixed.jsonl") == 2


def test_who_judged_can_be_said(store, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    import_file(store, path, annotator_kind="llm")
    assert store.count(Label, annotator_kind="llm", annotator="import:rows.jsonl") == 1


@pytest.mark.parametrize(
    ("more", "user", "tenant"),
    [
        ({}, None, None),
        ({"user": "ann", "tenant": "blue"}, "ann", "blue"),
        ({"user_id": 17}, "17", None),
        ({"safety_identifier": "s", "user_id": "u"}, "u", None),
        ({"user": None, "user_id": "", "safety_identifier": "s"}, "s", None),
        ({"user": {"name": "ann"}, "tenant": True}, None, None),
        ({"user": 10**30, "tenant": ["blue"]}, None, None),
    ],
)
def test_whose_a_row_is_is_kept(store, tmp_path, more, user, tenant):
    shapes = [
        {"prompt": "Hello", "completion": "Hi there"},
        {"messages": [HELLO, {"role": "assistant", "content": "Hi."}]},
        {"conversations": [{"from": "human", "value": "Yo"}, {"from": "gpt", "value": "Hi."}]},
    ]
    path = write(tmp_path / "log.jsonl", [one | more for one in shapes])
    assert import_file(store, path).interactions == 3
    assert {(one.user, one.tenant) for one in store.all(Interaction)} == {(user, tenant)}
    assert store.count(Interaction, user=user) == 3 or user is None


def test_users_of_a_file_are_pseudonyms_and_can_be_erased(store, tmp_path):
    row = {"prompt": "Hello", "completion": "Hi there"}
    lines = [row | {"user": "ann", "tenant": t} for t in ("a", "b")] + [row | {"user": "bob"}]
    path = write(tmp_path / "log.jsonl", lines)
    scrub = Scrubber(PrivacyConfig(), store)
    assert import_file(store, path, scrub=scrub).new == 3
    users = [one.user for one in store.all(Interaction)]
    assert len(set(users)) == 3 and all(one and one.startswith("user_") for one in users)
    assert erase_user(store, "ann").removed == {"interaction": 2}
    assert import_file(store, path, scrub=scrub).new == 0 and store.count(Interaction) == 1


def test_a_user_that_is_no_unicode_is_a_skip():
    row = {"prompt": "Hello", "completion": "Hi there", "user": "half \ud800"}
    assert reason(row) == "text is not valid Unicode"


def test_importing_twice_adds_nothing(store, tmp_path):
    path = write(tmp_path / "rows.jsonl", rows(25))
    first, again = import_file(store, path), import_file(store, path)
    assert (first.new, again.new) == (25, 0)
    assert again == first._replace(new=0)
    assert store.count(Interaction) == 25


def test_an_interrupted_import_keeps_its_batches_and_is_completed_by_another(store, tmp_path):
    path = write(tmp_path / "rows.jsonl", rows(2 * BATCH_ROWS + 5))
    seen: list[ImportResult] = []

    def interrupt(result: ImportResult) -> None:
        seen.append(result)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(store, path, on_progress=interrupt)
    assert store.count(Interaction) == BATCH_ROWS == seen[0].new
    assert import_file(store, path).new == BATCH_ROWS + 5
    assert store.count(Interaction) == 2 * BATCH_ROWS + 5


def run_in_a_process(code: str, *arguments: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


KILLED = """
import os, signal, sys
from trueup.capture.importer import import_file
from trueup.store import Store
def die(_):
    os.kill(os.getpid(), signal.SIGKILL)
import_file(Store(sys.argv[1]), sys.argv[2], on_progress=die)
"""

DISK_FULL = """
import resource, signal, sys
from trueup.capture.importer import import_file
from trueup.errors import StorageError
from trueup.store import Store
store = Store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try:
    import_file(store, sys.argv[2])
except StorageError as error:
    sys.exit(str(error))
"""


def test_a_killed_import_is_completed_by_another(tmp_path):
    path = write(tmp_path / "rows.jsonl", rows(BATCH_ROWS + 5))
    killed = run_in_a_process(KILLED, tmp_path / "killed", path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = Store(tmp_path / "killed")
    assert store.count(Interaction) == BATCH_ROWS
    assert import_file(store, path).new == 5
    store.close()


def test_a_full_disk_loses_nothing_already_written(tmp_path):
    long = [row | {"completion": row["completion"] + " word" * 80} for row in rows(3 * BATCH_ROWS)]
    path = write(tmp_path / "rows.jsonl", long)
    full = run_in_a_process(DISK_FULL, tmp_path / "full", path)
    assert full.returncode == 1
    assert "could not be written; what was written before is safe" in full.stderr
    store = Store(tmp_path / "full")
    kept = store.count(Interaction)
    assert kept in (BATCH_ROWS, 2 * BATCH_ROWS)
    assert import_file(store, path).new == len(long) - kept
    store.close()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz"])
def test_lines_and_lists_plain_and_packed_give_the_same_rows(store, tmp_path, name):
    plain = rows(BATCH_ROWS + 3)
    text = "\n".join(map(json.dumps, plain)) if "jsonl" in name else json.dumps(plain, indent=2)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    found = import_file(store, path)
    assert (found.file, found.rows, found.new) == (name, BATCH_ROWS + 3, BATCH_ROWS + 3)
    first = next(store.each(Interaction))
    assert (turns(first), first.completion.text) == ([("user", "question 0")], "answer 0")


def test_a_json_file_of_lines_is_read_as_lines(store, tmp_path):
    assert import_file(store, write(tmp_path / "train.json", rows(3))).new == 3


def test_a_byte_order_mark_is_no_part_of_the_first_row(store, tmp_path):
    for name, text in (("a.jsonl", json.dumps(rows(1)[0])), ("b.json", json.dumps(rows(1)))):
        (tmp_path / name).write_text("\ufeff" + text)
        assert import_file(store, tmp_path / name).new == 1


def test_a_list_is_read_across_its_chunks(store, tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    numbers = list(range(10_000, 10_100))  # half a number is a number too
    path.write_text(json.dumps([*numbers, *rows(3), True, "text", {"prompt": "é" * 500}]))
    for size in (1, 2, 7, 64):  # the size of a chunk is no setting, yet every cut must be safe
        monkeypatch.setattr("trueup.capture.importer.CHUNK_CHARS", size)
        found = import_file(store, path, max_skip_rate=1)
        assert (found.rows, found.interactions) == (106, 3)
        assert found.skipped == {"row is not an object": 102, "no known shape": 1}
        assert found.problems[1] == "row 2: row is not an object (got 'int')"


@pytest.mark.parametrize("cut", ["", "]x", ",{", ",}]"])
def test_a_broken_list_keeps_the_rows_before_the_break(store, tmp_path, cut):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows(3))[:-1] + cut)
    with pytest.raises(DataError, match="not a well-formed JSON list after row 3"):
        import_file(store, path)
    assert store.count(Interaction) == 3


def test_too_many_skips_stop_after_the_usable_rows_are_written(store, tmp_path):
    path = write(tmp_path / "rows.jsonl", [*rows(8), "{", {"prompt": "a", "completion": ""}])
    with pytest.raises(DataError) as caught:
        import_file(store, path)
    assert str(caught.value) == (
        "2 of 10 rows of rows.jsonl could not be used (not JSON 1, empty completion 1); the other "
        "8 were kept. Got \"line 9: not JSON (got '{')\". Expected a skipped share of at most 0.1. "
        "Next: mend the file and import it again, which adds only what is missing, or raise the "
        "limit with max_skip_rate."
    )
    assert store.count(Interaction) == 8
    assert import_file(store, path, max_skip_rate=0.2).new == 0


def test_only_the_first_problems_are_quoted_and_all_are_counted(store, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{}, *["?" * 500] * 40])
    found = import_file(store, path, max_skip_rate=1)
    assert list(found.skipped.items()) == [("not JSON", 40), ("no known shape", 1)]
    assert len(found.problems) == 10
    assert max(map(len, found.problems)) < 100


def test_hostile_lines_are_skips(store, tmp_path):
    deep = '{"messages": ' + "[" * 900 + "]" * 900 + "}"
    lines = ["[" * 100_000, '{"a": ' + "9" * 5_000 + "}", deep, '{"\\ud800": 1}', "NaN", "\x00"]
    found = import_file(store, write(tmp_path / "rows.jsonl", lines), max_skip_rate=1)
    assert sum(found.skipped.values()) == found.rows == len(lines)
    "\n".join(found.problems).encode()


def test_text_that_is_not_utf8_is_named_with_its_line(store, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(rows(1)[0]).encode()
    path.write_bytes(good + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"not UTF-8 in line 2.*Expected UTF-8.*Next: convert"):
        import_file(store, path)
    assert store.count(Interaction) == 1
    (tmp_path / "list.json").write_bytes(b"[" + good + b', "caf\xe9"]')
    with pytest.raises(DataError, match="not UTF-8"):
        import_file(store, tmp_path / "list.json")
    path.write_text(json.dumps(rows(1)[0]), encoding="utf-16")
    with pytest.raises(DataError, match="not UTF-8 in line 1"):
        import_file(store, path)


def test_a_damaged_gzip_keeps_what_came_before(store, tmp_path):
    lines = [json.dumps({"prompt": os.urandom(40).hex(), "completion": "a"}) for _ in range(3000)]
    packed = gzip.compress("\n".join(lines).encode())
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        import_file(store, path)
    kept = store.count(Interaction)
    assert kept > 0
    path.write_bytes(packed[:10] + b"\xff" * 100)  # a block of a kind that does not exist
    with pytest.raises(DataError, match="cannot be read"):
        import_file(store, path)
    path.write_bytes(packed)
    assert import_file(store, path).new + kept == 3000


def test_a_file_without_line_ends_does_not_fill_the_memory(store, tmp_path, monkeypatch):
    # the real limit, 64 million characters, would make this test slow
    monkeypatch.setattr("trueup.capture.importer.MAX_ROW_CHARS", 1000)
    monkeypatch.setattr("trueup.capture.importer.CHUNK_CHARS", 100)
    for name in ("rows.jsonl", "rows.json"):
        (tmp_path / name).write_text('["' + "a" * 5000)
        with pytest.raises(DataError, match="has no end to"):
            import_file(store, tmp_path / name)


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_a_file_without_rows_is_an_error(store, tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"rows.jsonl has no rows.*Next:"):
        import_file(store, tmp_path / "rows.jsonl")


def test_an_empty_list_and_an_empty_gzip_have_no_rows(store, tmp_path):
    (tmp_path / "rows.json").write_text(" [ ]\n")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b""))
    for name in ("rows.json", "rows.jsonl.gz"):
        with pytest.raises(DataError, match="has no rows"):
            import_file(store, tmp_path / name)


def test_a_missing_file_and_a_folder_are_errors(store, tmp_path):
    with pytest.raises(DataError, match=r"cannot be read. Got 'No such file.*Next: check the path"):
        import_file(store, tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"cannot be read. Got 'Is a directory'"):
        import_file(store, tmp_path)


def test_a_name_that_is_not_utf8_can_be_stored(store, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    try:
        write(path, rows(1))
    except OSError:
        pytest.skip("this file system allows UTF-8 names only")
    assert import_file(store, path).file == "caf\ufffd.jsonl"
    assert store.count(Interaction, source="file:caf\ufffd.jsonl") == 1


def test_unknown_settings_are_refused_before_reading(store, tmp_path):
    with pytest.raises(ConfigError, match=r"Got 'alpaca'. Expected one of hh, implicit"):
        import_file(store, tmp_path / "nowhere.jsonl", shape="alpaca")
    with pytest.raises(ConfigError, match="Expected one of human, llm, code"):
        import_file(store, tmp_path / "nowhere.jsonl", annotator_kind="robot")  # type: ignore[arg-type]


# --- real data sets ---------------------------------------------------------------------------


def test_dpo_en_is_read_whole(store):
    found = read_real(store, "dpo-en.jsonl")
    assert (found.rows, found.labels, found.interactions, found.unpaired) == (299, 299, 0, 0)
    assert found.skipped == {}
    assert found.new == store.count(Label) == 294  # five rows stand in the file twice
    first = next(store.each(Label))
    assert [turn.role for turn in first.prompt] == ["user"]
    assert first.prompt[0].content.startswith("Hi! I'd like to create a new language game")
    assert first.candidates[0].text.startswith("That sounds like a fun and engaging idea!")
    assert first.scores == (1.0, 0.0)
    prompts = [tuple(turn.role for turn in label.prompt) for label in store.each(Label)]
    assert ("system", "user") in prompts
    assert all(roles[-1] == "user" for roles in prompts)


def test_hh_harmless_loses_only_its_four_empty_answers(store):
    found = read_real(store, "hh-harmless.jsonl")
    assert (found.rows, found.labels, found.interactions) == (1156, 1152, 0)
    assert found.skipped == {"empty completion": 4}
    assert [problem.split(":")[0] for problem in found.problems] == [
        "line 87",
        "line 517",
        "line 926",
        "line 1104",
    ]
    assert found.new == store.count(Label) == 1152
    first = next(store.each(Label))
    assert [turn.role for turn in first.prompt] == ["user", "assistant"] * 2 + ["user"]
    assert first.prompt[0].content == "what are some pranks with a pen i can do?"
    assert first.candidates[0].text.startswith("No, sorry!  All of these involve a pen")
    assert first.candidates[1].text.startswith("There are lots of funny things you can do with")


def test_hh_harmless_dialogues_can_be_put_together_again(store):
    read_real(store, "hh-harmless.jsonl")
    lines = (REAL_DATA / "hh-harmless.jsonl").read_text().splitlines()
    written = {"".join(json.loads(line)["chosen"].split()) for line in lines}
    names = {"user": "Human:", "assistant": "Assistant:"}
    for label in store.each(Label):
        spoken = [*turns(label), ("assistant", label.candidates[0].text)]
        assert "".join("".join([names[who], *said.split()]) for who, said in spoken) in written


def test_kto_en_gives_unpaired_labels(store):
    found = read_real(store, "kto-en.jsonl")
    assert (found.rows, found.labels, found.unpaired, found.interactions) == (300, 300, 300, 0)
    assert found.skipped == {}
    labels = store.all(Label)
    assert [label.scores for label in labels].count((1.0,)) == 150
    assert [label.scores for label in labels].count((-1.0,)) == 150
    assert labels[0].prompt[0].content.startswith("The Federal Trade Commission is going after")
    assert texts(labels[0])[0].startswith("Ooh ooh ah ah! *giggle*")
    assert labels[0].scores == (1.0,)


def test_a_real_file_of_another_kind_is_refused_and_adds_nothing(store):
    with pytest.raises(DataError, match=r"400 of 400 rows of gsm8k.jsonl could not be used"):
        read_real(store, "gsm8k.jsonl")
    assert store.count(Label) == store.count(Interaction) == 0
