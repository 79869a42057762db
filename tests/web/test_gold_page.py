"""The page of a measurement on a gold set: its facts, its safety, and that it is whole."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from page_reader import assert_safe
from trueup.cli.main import cli
from trueup.evaluate import GoldItem, GoldSet, Measured, measure
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.models.tiny import save_tiny
from trueup.store import Store
from trueup.web import gold_data, plots, write_gold

SCRIPT = "<script>alert(1)</script>"
ANSWERS = (f"red {SCRIPT}", "blue")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One says red and a script whatever it is asked, the other blue."""
    folder = tmp_path_factory.mktemp("models")
    return [
        save_tiny(
            folder / answer[:3], seed=0, hidden_size=32, steps=120,
            examples=[(f"Say {i}.", answer) for i in range(20)],
        )
        for answer in ANSWERS
    ]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / ".trueup")
    yield store
    store.close()


def gold(num: int = 20, name: str = "colours") -> GoldSet:
    """Two items in five want red, the others blue; one cannot be checked without a judge."""
    items = [
        GoldItem(
            id=f"item-{i}",
            slice=f"slice {i % 2}",
            prompt=f"Say {i}.",
            checker={"type": "contains", "any": ["red" if i % 5 < 2 else "blue"]},
        )
        for i in range(num)
    ]
    graded = {"type": "judge", "beats": "So what."}
    return GoldSet(name, "trueup", [*items, GoldItem(id="j", prompt="?", checker=graded)], num + 9)


def measured(store: Store, models: list[Path], name: str = "colours", num: int = 20) -> Measured:
    ours, theirs = (StoredModel(store, Backbone.load(folder), None) for folder in models)
    return measure(store, gold(num, name), ours, theirs, max_tokens=40, name="candidate")


def test_the_page_has_every_figure_and_every_failure(store: Store, models: list[Path]) -> None:
    found = measured(store, models)
    ours, theirs = found.standings
    assert ours.accuracy is not None and theirs.accuracy is not None and found.paired is not None
    page = write_gold(store, found)
    shown = assert_safe(page.read_text(), page.with_suffix(".json").name)
    assert shown.drawn() == ["accuracy-1", "accuracy-2", "difference"]
    assert "40.0% of colours The candidate is right on 8 of 20 items" in shown.text
    for one in (ours, theirs):
        for share in (one.accuracy, *(part for _, part in one.slices.values())):
            assert share is not None
            limits = [plots.figure(value, "rate") for value in (share.low, share.high)]
            assert f"{share.estimate:.1%} [{limits[0]}, {limits[1]}]" in shown.text
    assert plots.figure(found.paired.whole.p_value) in shown.text
    assert "Failed 12 of 12" in shown.text and "the champion passes" in shown.text
    assert "1 could not be checked here and is not counted." in shown.text
    for row in found.rows:
        assert (f"{row['id']} {row['slice']}" in shown.text) == (row["passed"] is False)
        assert row["passed"] is not False or row["reason"] in shown.text


def test_what_a_model_answered_stays_text(store: Store, models: list[Path]) -> None:
    found = measured(store, models, name=f"../{SCRIPT}")
    assert SCRIPT in found.rows[0]["answer"]
    page = write_gold(store, found)
    text = page.read_text()
    assert page.parent == store.folder / "reports"
    assert SCRIPT not in text and text.count("&lt;script&gt;") >= 12
    assert_safe(text, page.with_suffix(".json").name)


def test_the_json_beside_it_has_every_item(store: Store, models: list[Path]) -> None:
    found = measured(store, models)
    told = json.loads(write_gold(store, found).with_suffix(".json").read_text())
    assert {name: told[name] for name in gold_data(found)} == json.loads(
        json.dumps(gold_data(found))
    )
    assert len(told["rows"]) == 21 and told["failed"]["count"] == 12


def test_many_failures_are_cut_and_named(store: Store, models: list[Path]) -> None:
    found = measured(store, models, num=120)
    shown = assert_safe((page := write_gold(store, found)).read_text(), f"{page.stem}.json")
    assert "Failed 50 of 72" in shown.text and "And 22 more: " in shown.text


def test_a_champion_alone_has_one_plot(store: Store, models: list[Path]) -> None:
    model = StoredModel(store, Backbone.load(models[0]), None)
    items = [GoldItem(id="a", prompt="Say 1.", checker={"type": "contains", "any": ["red"]})]
    one = GoldSet("one", "trueup", items, 1)
    page = write_gold(store, measure(store, one, model, model, max_tokens=40))
    shown = assert_safe(page.read_text(), f"{page.stem}.json")
    assert shown.drawn() == ["accuracy-1"]
    assert "100.0% of one" in shown.text and "Failed 0 of 0" in shown.text


def test_instructions_are_listed_by_group(store: Store, models: list[Path]) -> None:
    model = StoredModel(store, Backbone.load(models[0]), None)
    names = ["startend:quotation", "punctuation:no_comma"]
    asked = {"type": "ifeval", "instruction_id_list": names, "kwargs": [{}, {}]}
    items = [GoldItem(id=f"{i}", prompt=f"Say {i}.", checker=asked) for i in range(3)]
    found = measure(store, GoldSet("if", "ifeval", items, 3), model, model, max_tokens=8)
    page = write_gold(store, found)
    shown = assert_safe(page.read_text(), f"{page.stem}.json")
    assert "instructions, loose – 50.0%" in shown.text
    assert "punctuation 3 instructions 100.0%" in shown.text
    assert "0.0% of if" in shown.text and "startend 3 instructions 0.0%" in shown.text


def test_where_nothing_could_be_checked_accuracy_is_unknown(
    store: Store, models: list[Path]
) -> None:
    model = StoredModel(store, Backbone.load(models[0]), None)
    found = measure(store, gold(0), model, model, max_tokens=40)
    page = write_gold(store, found)
    shown = assert_safe(page.read_text(), f"{page.stem}.json")
    assert "unknown of colours No item could be checked here." in shown.text
    assert shown.drawn() == []


def test_the_command_says_where_the_page_is(models: list[Path], tmp_path: Path) -> None:
    base = json.dumps(str(models[0]))
    (tmp_path / "trueup.toml").write_text(f"[model]\nbase = {base}\n[evaluate]\nmax_tokens = 8\n")
    rows = [{"question": f"{i} + 0?", "answer": f"#### {i}"} for i in range(6)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["-p", str(tmp_path), "evaluate", "--gold", str(tmp_path / "sums.jsonl")]
    said = CliRunner().invoke(cli, words)
    assert said.exit_code == 0, said.output
    (page,) = tmp_path.rglob("reports/gold_sums_*.html")
    assert f"Report: {page}" in said.stdout
    [told] = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)["sets"]
    assert told["report"] == str(page), "the same figures have the same page"
