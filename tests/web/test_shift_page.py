"""The page of a distribution shift: its facts, its safety, and that it is whole."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from page_reader import assert_safe
from trueup.cli.main import cli
from trueup.models.backbone import Backbone
from trueup.models.embedder import lexical
from trueup.models.stored import StoredModel
from trueup.records import Completion, Interaction, Message, Messages, PreferencePair, Sampling
from trueup.shift import PromptDrift, ShiftConfig, measure, prompt_drift, warning
from trueup.store import Store
from trueup.web import plots, shift_data, write_shift

SCRIPT = "<script>alert(1)</script>"
CONFIG = ShiftConfig(num_pairs=24, max_tokens=8, permutations=40)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / ".trueup")
    yield store
    store.close()


@pytest.fixture
def champion(tiny_model: Path, store: Store) -> StoredModel:
    return StoredModel.serving(store, Backbone.load(tiny_model))


def asked(num: int = 24) -> list[Messages]:
    return [(Message(role="user", content=f"sky number {n}?"),) for n in range(num)]


def pair(prompt: Messages, chosen: Completion, rejected: Completion) -> PreferencePair:
    return PreferencePair(
        prompt=prompt, chosen=chosen, rejected=rejected, margin=1.0, label_ids=("label_1",)
    )


def foreign(champion: StoredModel) -> list[PreferencePair]:
    """Answers that the champion does not give, with log-probs of whoever gave them."""

    def answer(text: str) -> Completion:
        ids = champion.backbone.tokenizer(text)["input_ids"]
        return Completion(text=text, token_ids=ids, logprobs=(-0.1,) * len(ids), weights="another")

    return [
        pair(prompt, answer(f"{SCRIPT} number {n} \u202e it is!"), answer(f"green {n}, I say"))
        for n, prompt in enumerate(asked())
    ]


def own(champion: StoredModel) -> list[PreferencePair]:
    how = Sampling(temperature=1.0, max_tokens=8, seed=5)
    drawn = champion.complete(asked(), how, num_samples=2)
    return [pair(prompt, *two) for prompt, two in zip(asked(), drawn, strict=True)]


def drift() -> PromptDrift:
    """Prompts that moved from one week to the next."""
    traffic = [
        Interaction(
            prompt=(Message(role="user", content=f"{word} {n}"),),
            completion=Completion(text="ok"),
            source="gateway",
            created_at=f"2026-03-{day:02d}T10:{n:02d}:00+00:00",
        )
        for day, word in ((3, "the sea is deep"), (10, "how do I milk a cow?"))
        for n in range(20)
    ]
    moved = prompt_drift(traffic, lexical(), CONFIG)
    assert moved is not None
    return moved


def test_the_page_has_every_figure_beside_its_line(store: Store, champion: StoredModel) -> None:
    pairs, moved = foreign(champion), drift()
    found = measure(store, CONFIG, pairs, champion, lexical())
    assert found is not None and found.auc is not None and found.ess is not None
    page = write_shift(store, found, moved, CONFIG, pairs=pairs, source="dataset_1")
    shown = assert_safe(page.read_text(), page.with_suffix(".json").name)
    assert f"WARNING not such as the champion writes {warning(found, CONFIG)}." in shown.text
    assert shown.drawn() == ["shares", "foreign", "log-ratios", "prompts"]
    for value in (found.ess, found.ess_per_token, found.overlap, found.auc, found.mmd_p_value):
        assert plots.figure(value) in shown.text
    limits = [plots.figure(one, "ratio") for one in (found.auc_low, found.auc_high)]
    assert f"[{limits[0]}, {limits[1]}] at most 0.8 ✕outside" in shown.text
    assert f"{plots.figure(moved.auc)}, from" in shown.text, "the plot in words"
    assert "20 prompts of the newest 7 days against 20" in shown.text
    assert "trueup --set train.weighting=wpo train --dataset dataset_1" in shown.text
    assert len(found.log_ratios) == len(found.foreign) == len(found.foreign_own) == 48


def test_the_furthest_pairs_are_shown_as_text(store: Store, champion: StoredModel) -> None:
    pairs = foreign(champion)
    found = measure(store, CONFIG, pairs, champion, lexical())
    assert found is not None
    text = write_shift(store, found, None, CONFIG, pairs=pairs, source=SCRIPT).read_text()
    assert SCRIPT not in text and text.count("&lt;script&gt;") >= len(found.furthest)
    assert all(one.pair_id in text for one in found.furthest)


def test_own_answers_are_not_asked_about(store: Store, champion: StoredModel) -> None:
    pairs = own(champion)
    found = measure(store, CONFIG, pairs, champion, lexical())
    data = shift_data(found, None, CONFIG, pairs=pairs, source="new labels")
    told = next(one for one in data["figures"] if "AUC" in one["name"])
    assert told["figure"] is None and told["status"] == "not asked"
    page = write_shift(store, found, None, CONFIG, pairs=pairs, source="new labels")
    shown = assert_safe(page.read_text(), page.with_suffix(".json").name)
    assert "NO WARNING such as the champion writes" in shown.text
    assert "Unknown: fewer than ten different prompts" in shown.text
    assert "foreign" not in shown.drawn()
    assert json.loads(page.with_suffix(".json").read_text()) == data


def test_too_few_pairs_are_unknown(store: Store) -> None:
    page = write_shift(store, None, None, CONFIG, pairs=[], source="new labels")
    shown = assert_safe(page.read_text(), page.with_suffix(".json").name)
    assert "UNKNOWN too few pairs" in shown.text and shown.drawn() == []


def test_the_command_says_where_the_page_is(folder: Path) -> None:
    rows = [
        {"prompt": f"colour of {n}?", "chosen": f"blue {n}.", "rejected": f"um {n}"}
        for n in range(24)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["-p", str(folder), "shift", "--dataset", str(folder / "pairs.jsonl")]
    said = CliRunner().invoke(cli, words)
    assert said.exit_code == 0, said.output
    (page,) = folder.rglob("reports/shift_*.html")
    assert f"Report: {page}" in said.stdout
    assert "file:pairs.jsonl" in assert_safe(page.read_text(), f"{page.stem}.json").text
    told = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    assert told["report"] == str(page), "the same figures have the same page"
