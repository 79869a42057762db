"""`trueup evaluate --gold`: any model on any set, kept as it goes; and items a judge grades."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from trueup.cli.main import cli
from trueup.errors import ConfigError, UnreadableVerdict
from trueup.evaluate import EvaluateConfig, GoldItem, GoldSet, gold_judge, measure
from trueup.evaluate.checkers import check
from trueup.judges import Ranking
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.models.tiny import save_tiny
from trueup.progress import Advance, listen
from trueup.records import Completion, Message, Messages, SampleSet
from trueup.store import Store

ANY = {"type": "regex", "pattern": "."}
NONE = {"type": "regex", "pattern": "no such thing"}
ASKED = (Message(role="user", content="Say it kindly."),)
KIND = {"type": "judge", "beats": "So what."}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One says red whatever it is asked, the other blue."""
    folder = tmp_path_factory.mktemp("models")
    return [
        save_tiny(
            folder / word, seed=0, hidden_size=32, steps=80,
            examples=[(f"Say {i}.", word) for i in range(20)],
        )
        for word in ("red", "blue")
    ]  # fmt: skip


def gold(num: int = 20) -> GoldSet:
    items = [
        GoldItem(id=str(i), slice=f"s{i % 2}", prompt=f"Say {i}.", checker=ANY if i % 4 else NONE)
        for i in range(num)
    ]
    return GoldSet("set", "trueup", items, num)


def test_a_champion_alone_is_measured_and_asked_once(models: list[Path], tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = StoredModel(store, Backbone.load(models[0]), None)
    found = measure(store, gold(), model, model, max_tokens=8)
    [standing] = found.standings
    assert standing.accuracy is not None and found.paired is None and found.lost == []
    assert standing.accuracy.estimate == 0.75 and standing.checked == 20
    assert standing.cut == sum(row["cut"] for row in found.rows)
    assert {name: n for name, (n, _) in standing.slices.items()} == {"s0": 10, "s1": 10}
    assert standing.slices["s0"][1].estimate == 0.5
    assert store.count(SampleSet) == 20
    again = measure(store, gold(), model, model, max_tokens=8)
    assert again == found and store.count(SampleSet) == 20


def test_answers_drawn_before_a_stop_are_kept(models: list[Path], tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = StoredModel(store, Backbone.load(models[0]), None)
    done = 0

    @contextmanager
    def impatient(name: str, total: int) -> Iterator[Advance]:
        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            if done > 17:
                raise KeyboardInterrupt

        yield advance

    with pytest.raises(KeyboardInterrupt), listen(impatient):
        measure(store, gold(), model, model, max_tokens=8)
    assert store.count(SampleSet) == 16  # the first batch
    measure(store, gold(), model, model, max_tokens=8)
    assert store.count(SampleSet) == 20


def test_two_models_are_compared_item_by_item(models: list[Path], tmp_path: Path) -> None:
    store = Store(tmp_path)
    ours, theirs = (StoredModel(store, Backbone.load(folder), None) for folder in models)
    words = ["red"] * 12 + ["blue"] * 8
    items = [
        item.model_copy(update={"checker": {"type": "contains", "any": [word]}})
        for item, word in zip(gold().items, words, strict=True)
    ]
    found = measure(store, gold()._replace(items=items), ours, theirs, max_tokens=8, name="other")
    assert [one.model for one in found.standings] == ["other", "champion"]
    assert found.paired is not None
    assert (found.paired.whole.lost, found.paired.whole.won) == (8, 12)
    assert found.lost == [str(i) for i in range(12, 20)]
    assert {one.items for one in found.paired.slices} == {10}


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def project(models: list[Path], tmp_path: Path) -> Path:
    """Fresh from `trueup init`: no held-out prompts, no gold set, no candidate."""
    (tmp_path / "trueup.toml").write_text(
        f"[model]\nbase = {json.dumps(str(models[0]))}\n[evaluate]\nmax_tokens = 4\n"
    )
    rows = [{"question": f"{i} + 0?", "answer": f"#### {i}"} for i in range(12)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run(project: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["-p", str(project), "evaluate", *words])
    return done.exit_code, done.stdout


def test_the_command_measures_where_there_is_no_candidate(project: Path) -> None:
    file = str(project / "sums.jsonl")
    code, printed = run(project, "--gold", file, "--limit", "5", "--json")
    assert code == 0, printed
    [found] = json.loads(printed)["sets"]
    assert (found["set"], found["format"], found["items"], found["of"]) == ("sums", "gsm8k", 5, 12)
    assert [one["model"] for one in found["models"]] == ["champion"] and found["paired"] is None
    share = found["models"][0]["accuracy"]
    assert 0 <= share["low"] <= share["estimate"] <= share["high"] <= 1
    code, printed = run(project, "--gold", file, "--limit", "5", "--model", "base")
    assert code == 0 and "5 of 12 items" in printed and "accuracy" in printed


@pytest.mark.parametrize(
    "words",
    [["--limit", "3"], ["--model", "base"], ["--gold", "x", "--model", "a", "--checkpoint", "b"],
     ["--gold", "x", "--lm-eval", "y"], ["--gold", "x", "--limit", "0"]],
)  # fmt: skip
def test_options_that_do_not_go_together_are_a_usage_error(project: Path, words: list[str]) -> None:
    assert run(project, *words)[0] == 2


# --- graded by a judge -----------------------------------------------------------------------


class Longest:
    """Likes the longer answer; `favours_first` likes whatever stands first instead."""

    kind = "code"
    is_symmetric = False

    def __init__(self, *, favours_first: bool = False) -> None:
        self.id = "code:longest/1"
        self.favours_first = favours_first

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        assert prompt == ASKED
        scores = [float(len(c.text)) for c in candidates]
        if self.favours_first:
            scores = [float(-i) for i in range(len(candidates))]
        return Ranking(tuple(scores), tuple(() for _ in scores))


def graded(checker: dict, text: str, judge: Longest | None) -> bool | None:
    return check(checker, text, prompt=ASKED, judge=judge).passed  # type: ignore[arg-type]


def test_a_judged_answer_must_beat_the_items_text_in_both_orders() -> None:
    assert graded(KIND, "You are very welcome.", Longest()) is True
    assert graded(KIND, "So.", Longest()) is False
    assert graded(KIND, "So what.", Longest()) is False  # a tie
    assert graded(KIND, "You are very welcome.", Longest(favours_first=True)) is False
    assert graded(KIND, "", Longest()) is False


def test_a_judged_answer_may_have_to_reach_a_score() -> None:
    scored = {"type": "judge", "min_score": 5}
    assert graded(scored, "Thank you", Longest()) is True
    assert graded(scored, "No", Longest()) is False
    assert graded(KIND | scored, "So what!?", Longest()) is True
    assert graded(KIND | {"min_score": 50}, "So what!?", Longest()) is False


def test_without_a_verdict_nothing_is_right_or_wrong() -> None:
    class Mumbling(Longest):
        def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
            raise UnreadableVerdict("no winner was named")

    assert graded(KIND, "You are welcome.", None) is None
    assert graded(KIND, "You are welcome.", Mumbling()) is None


def test_the_judge_that_labelled_does_not_mark_the_gold_set(tmp_path: Path) -> None:
    store = Store(tmp_path)
    items = [GoldItem(id="k", prompt="Say it kindly.", checker=KIND)]
    config = EvaluateConfig(judge="house-style")
    judge = gold_judge(store, config, items, ["llm:other"])
    assert judge is not None
    with pytest.raises(ConfigError, match="judge that labelled"):
        gold_judge(store, config, items, [judge.id])
    with pytest.raises(ConfigError, match=r"none is named.*evaluate\.judge"):
        gold_judge(store, EvaluateConfig(), items)
    assert gold_judge(store, EvaluateConfig(), gold().items) is None
