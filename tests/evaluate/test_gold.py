"""A gold file: what is read, and what a malformed one is told before anything is answered."""

import json
from pathlib import Path

import pytest

from trueup.errors import GoldSetError
from trueup.evaluate import read_gold

CHECKER = {"type": "contains", "all": ["4 hours"]}
ITEM = {"id": "charge", "prompt": "How long does a charge take?", "checker": CHECKER}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "gold.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_items_come_in_the_files_order(tmp_path: Path) -> None:
    other = ITEM | {"id": "2", "prompt": "A\u2028B?", "slice": "odd", "pass_rate": 0.5}
    first, second = read_gold(write(tmp_path, ITEM, "", other, ""))
    assert (first.id, first.slice, first.pass_rate) == ("charge", "all", None)
    assert (second.slice, second.pass_rate) == ("odd", 0.5)
    assert [m.content for m in second.messages] == ["A\u2028B?"]


@pytest.mark.parametrize(
    "line", ["{broken", "[]", "3", "{}", '{"id": "x", "prompt": "y"}', json.dumps(ITEM | {"x": 1})]
)
def test_a_malformed_line_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    with pytest.raises(GoldSetError, match=r"gold\.jsonl, line 3 is not a gold item") as caught:
        read_gold(write(tmp_path, ITEM, "", line))
    assert caught.value.got == line[:80] and caught.value.next == "mend that line"


def test_a_checker_that_does_not_exist_is_found_while_reading(tmp_path: Path) -> None:
    with pytest.raises(GoldSetError, match="telepathy"):
        read_gold(write(tmp_path, ITEM | {"checker": {"type": "telepathy"}}))


def test_an_id_twice_or_a_question_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GoldSetError, match="line 2 repeats an id"):
        read_gold(write(tmp_path, ITEM, ITEM | {"prompt": "Another?"}))
    with pytest.raises(GoldSetError, match="line 2 repeats a question"):
        read_gold(write(tmp_path, ITEM, ITEM | {"id": "2"}))


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GoldSetError, match=r"gold set .* is empty"):
        read_gold(write(tmp_path, "", "  "))


def test_a_file_that_cannot_be_read_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("Schön".encode("latin-1"))
    for place in (tmp_path / "none.jsonl", tmp_path, tmp_path / "latin"):
        with pytest.raises(GoldSetError, match=r"gold set .* cannot be read.*evaluate\.gold"):
            read_gold(place)
