"""Public benchmarks, told by their fields; samples of them."""

import gzip
import json
from pathlib import Path

import pytest

from trueup.errors import GoldSetError
from trueup.evaluate import read_set, sampled
from trueup.evaluate.checkers import check

DATA = Path(__file__).parents[3] / "shared" / "data"

ROWS = {
    "gsm8k": {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 1,004"},
    "humaneval": {
        "task_id": "t/0", "prompt": "def f(x):\n    ''' twice '''\n", "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    },
    "ifeval": {
        "key": 7, "prompt": "Quote.", "instruction_id_list": ["startend:quotation"],
        "kwargs": [{}],
    },
    "multiple choice": {"question": "Sky?", "choices": ["red", "blue"], "answer": 1},
    "trueup": {"id": "a", "prompt": "Say a.", "checker": {"type": "exact", "answers": ["a"]}},
}  # fmt: skip


def write(folder: Path, *rows: object, name: str = "set.jsonl") -> Path:
    file = folder / name
    text = "\n".join(map(json.dumps, rows)).encode()
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return file


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("file", ["set.jsonl", "set.jsonl.gz"])
def test_a_format_is_told_by_its_fields(tmp_path: Path, name: str, file: str) -> None:
    found = read_set(write(tmp_path, ROWS[name], name=file))
    assert (found.name, found.format, found.total) == ("set", name, 1)


def test_what_each_format_asks_and_takes_for_right(tmp_path: Path) -> None:
    items = {
        name: read_set(write(tmp_path, row)).items[0] for name, row in ROWS.items()
    }  # fmt: skip
    assert items["gsm8k"].prompt.startswith("Two and two?")
    assert check(items["gsm8k"].checker, "2 + 2 is\n1004").passed
    assert not check(items["gsm8k"].checker, "It is 4.").passed
    assert "def f(x):" in items["humaneval"].prompt and items["humaneval"].id == "t/0"
    assert items["ifeval"].prompt == "Quote." and items["ifeval"].id == "7"
    assert items["multiple choice"].prompt.splitlines()[1:3] == ["A) red", "B) blue"]
    assert check(items["multiple choice"].checker, "B").passed


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["x", "y"], "answer": "B"},
        {"question": "q", "options": ["x", "y"], "answer": "y"},
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        {"question": "q", "choices": ["A", "B"], "answer": "B"},  # one option by either reading
    ],
)
def test_the_right_option_may_be_a_letter_a_label_or_its_text(tmp_path: Path, row: dict) -> None:
    [item] = read_set(write(tmp_path, row)).items
    assert item.checker["answer"] == "B"


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "What?", "label": "safe"}],
        [["a"]],
        [ROWS["gsm8k"], ROWS["ifeval"]],
        [ROWS["gsm8k"] | {"answer": "#### four"}],
        [ROWS["gsm8k"], ROWS["gsm8k"]],
        [ROWS["multiple choice"] | {"answer": 2}],
        [ROWS["multiple choice"] | {"answer": "green"}],
        [ROWS["multiple choice"] | {"choices": ["B", "A"], "answer": "A"}],  # letter or text?
        [ROWS["ifeval"] | {"kwargs": []}],
        [ROWS["humaneval"] | {"test": "assert f(1) == 2"}],
        [],
    ],
)
def test_a_row_that_cannot_be_used_is_a_named_error(tmp_path: Path, rows: list) -> None:
    with pytest.raises(GoldSetError, match=r"Next: |is empty"):
        read_set(write(tmp_path, *rows))


def test_a_file_cut_short_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, *ROWS.values(), name="set.jsonl.gz")
    for broken in (file.read_bytes()[:-9], b"not gzip"):
        file.write_bytes(broken)
        with pytest.raises(GoldSetError, match="cannot be read"):
            read_set(file)


def test_a_sample_is_fixed_nested_spread_and_in_the_files_order(tmp_path: Path) -> None:
    rows = [ROWS["trueup"] | {"id": str(i), "prompt": f"Say {i}."} for i in range(100)]
    whole = read_set(write(tmp_path, *rows))
    turned = read_set(write(tmp_path, *reversed(rows)))
    ten, twenty = sampled(whole, 10), sampled(whole, 20)
    ids = [item.id for item in ten.items]
    assert len(ids) == 10 and ten.total == 100
    assert ids == sorted(ids, key=int) and ids != [str(i) for i in range(10)]
    assert set(ids) <= {item.id for item in twenty.items}
    assert set(ids) == {item.id for item in sampled(turned, 10).items}
    assert sampled(whole, None) is whole and sampled(whole, 500) is whole


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")
def test_the_published_files_are_read_and_a_safety_set_is_not() -> None:
    sizes = {"gsm8k.jsonl": 400, "HumanEval.jsonl.gz": 164, "ifeval.jsonl": 270}
    for name, size in sizes.items():
        found = read_set(DATA / name)
        assert found.total == size and found.format == found.name.lower()
    with pytest.raises(GoldSetError, match="no format that is known"):
        read_set(DATA / "xstest.jsonl")
