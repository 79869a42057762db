"""Held-out prompts from a file: what is read, and what a malformed file is told."""

import json
from pathlib import Path

import pytest

from trueup.errors import DataError
from trueup.suite import read_suite

HELD_OUT = {"id": "1", "split": "heldout", "messages": [{"role": "user", "content": "How long?"}]}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "prompts.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def asks(content: str, **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}], **fields}


def test_prompts_come_in_the_files_order_with_their_facts(tmp_path: Path) -> None:
    rows = asks("Where?", facts=[["4 hours", "four hours"]]), asks("Why?", answerable=False)
    first, second = read_suite(write(tmp_path, *rows))
    assert first.messages[0].content == "Where?"
    assert first.facts == (("4 hours", "four hours"),) and first.answerable
    assert second.messages[0].content == "Why?" and not second.answerable


def test_only_lines_of_the_split_are_read_and_one_without_a_split_is_of_any(tmp_path: Path) -> None:
    file = write(tmp_path, HELD_OUT, asks("Train?", split="train"), asks("Both?"))
    for split, expected in (("heldout", ["How long?", "Both?"]), ("train", ["Train?", "Both?"])):
        found = read_suite(file, split=split)
        assert [prompt.messages[0].content for prompt in found] == expected


def test_blank_lines_other_fields_and_odd_line_ends_are_no_matter(tmp_path: Path) -> None:
    file = write(tmp_path, "", asks("A\u2028B?", topic="charging"), "  ", HELD_OUT, "")
    assert [p.messages[0].content for p in read_suite(file)] == ["A\u2028B?", "How long?"]


@pytest.mark.parametrize(
    "line", ["{broken", "[]", '"text"', "{}", '{"messages": []}', '{"messages": [{"role": 1}]}']
)
def test_a_malformed_line_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    file = write(tmp_path, HELD_OUT, "", line)
    with pytest.raises(DataError, match=r"prompts\.jsonl, line 3 is not a prompt") as caught:
        read_suite(file)
    assert caught.value.got == line and caught.value.next == "mend that line"


def test_a_prompt_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2 repeats a prompt"):
        read_suite(write(tmp_path, HELD_OUT, HELD_OUT | {"id": "2"}))


def test_a_file_without_a_prompt_of_the_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prompt of the split") as caught:
        read_suite(write(tmp_path, HELD_OUT), split="train")
    assert caught.value.got == "train"


def test_a_file_that_cannot_be_read_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("Schön".encode("latin-1"))
    for place in (tmp_path / "none.jsonl", tmp_path, tmp_path / "latin"):
        with pytest.raises(DataError, match=r"held-out prompts .* cannot be read.*ab\.prompts"):
            read_suite(place)
