"""What flaggers are worth: areas against scikit-learn, and folds that cannot be peeked at."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from trueup.errors import DataError
from trueup.flag import FlagConfig
from trueup.flag.calibrate import fit_calibration
from trueup.flag.features import COLUMNS, Known
from trueup.flag.labelled import read_labelled
from trueup.flag.learn import RECIPES, Learned, fit, folds_of, learn
from trueup.flag.rating import rate
from trueup.flag.remembered import Remembered
from trueup.flag.trees import Tree, fit_trees, tree_margins
from trueup.flag.trial import Trial, cross_validate
from trueup.shift.two_sample import auc_interval
from trueup.stats.ranking import (
    auroc,
    average_precision,
    brier,
    calibration_error,
    ranking,
    ranking_difference,
    resampled_weights,
)

HALUEVAL = Path(__file__).parents[3] / "shared" / "data" / "halueval-general.jsonl"


def scored(n: int, *, ties: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    y = chance.random(n) < 0.3
    s = chance.normal(size=n) + 0.8 * y
    return (s.round(0 if ties else 9), y)


# --- areas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_both_areas_are_scikit_learns_ties_or_not(ties: bool) -> None:
    for seed in range(5):
        s, y = scored(97, ties=ties, seed=seed)
        assert auroc(s, y) == pytest.approx(metrics.roc_auc_score(y, s))
        assert average_precision(s, y) == pytest.approx(metrics.average_precision_score(y, s))


def test_a_resample_is_what_scikit_learn_says_of_its_rows() -> None:
    s, y = scored(60, ties=True)
    weights = resampled_weights(y, resamples=50)
    low = np.quantile([metrics.roc_auc_score(y, s, sample_weight=w) for w in weights], 0.025)
    assert ranking(s, y, weights).auroc.low == pytest.approx(low)
    low = np.quantile(
        [metrics.average_precision_score(y, s, sample_weight=w) for w in weights], 0.025
    )
    assert ranking(s, y, weights).auprc.low == pytest.approx(low)


def test_the_bootstrap_agrees_with_delong() -> None:
    s, y = scored(800, ties=False)
    found = ranking(s, y, resampled_weights(y)).auroc
    exact = auc_interval(s[y], s[~y])
    assert found.estimate == pytest.approx(exact.estimate)
    assert found.low == pytest.approx(exact.low, abs=0.005)
    assert found.high == pytest.approx(exact.high, abs=0.005)


def test_groups_are_drawn_whole_and_every_resample_has_both_sides() -> None:
    y = np.array([1, 0, 0, 0, 1, 0, 0, 0], bool)
    weights = resampled_weights(y, [0, 0, 1, 1, 2, 3, 4, 5], resamples=300)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 3]).all()
    assert (weights[:, [0, 4]].sum(axis=1) == 2).all(), "two groups have a positive row"


def test_a_paired_difference_is_narrower_than_the_two_intervals_and_zero_of_the_same() -> None:
    s, y = scored(400, ties=False)
    near = s + np.random.default_rng(1).normal(size=len(s)) * 0.1
    weights = resampled_weights(y)
    gap = ranking_difference(s, near, y, weights).auroc
    own = ranking(s, y, weights).auroc
    assert gap.high - gap.low < 0.5 * (own.high - own.low)
    assert ranking_difference(s, s, y, weights).auprc == (0, 0, 0)


def test_brier_is_scikit_learns_and_a_calibrated_forecast_has_no_error_but_chance() -> None:
    p = np.random.default_rng(0).random(4000)
    y = np.random.default_rng(1).random(4000) < p
    assert brier(p, y) == pytest.approx(metrics.brier_score_loss(y, p))
    assert calibration_error(p, y) < 0.04
    assert calibration_error(p**3, y) > 0.15


# --- learning -----------------------------------------------------------------------------------


def problem(n: int = 400, dims: int = 6, seed: int = 0) -> tuple[Known, np.ndarray, list[str]]:
    """Weak where the first column is high, or the second is missing."""
    chance = np.random.default_rng(seed)
    x = chance.normal(size=(n, len(COLUMNS)))
    x[chance.random(n) < 0.3, 1] = np.nan
    x[:, 5] = np.nan
    logit = 1.6 * x[:, 0] - 1 + 2.0 * np.isnan(x[:, 1])
    y = (chance.random(n) < 1 / (1 + np.exp(-logit))).astype(int)
    return Known(x, chance.normal(size=(n, dims)) / dims**0.5), y, [f"p{i // 2}" for i in range(n)]


def test_trees_as_arrays_say_what_scikit_learns_say() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    known, y, _ = problem()
    trees, start = fit_trees(known.columns_NC, y, rounds=30)
    again = [Tree.model_validate_json(one.model_dump_json()) for one in trees]
    made = HistGradientBoostingClassifier(
        max_iter=30,
        learning_rate=0.05,
        max_leaf_nodes=6,
        min_samples_leaf=20,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    ).fit(np.where(np.isnan(known.columns_NC).all(axis=0), 0, known.columns_NC), y)
    fresh, *_ = problem(seed=1)
    x = np.where(np.isnan(known.columns_NC).all(axis=0), 0, fresh.columns_NC)
    assert np.allclose(tree_margins(again, start, fresh.columns_NC), made.decision_function(x))


@pytest.mark.parametrize("recipe", [RECIPES[1], RECIPES[4], RECIPES[5]], ids=lambda r: r.name)
def test_a_flagger_is_the_same_after_a_trip_through_json(recipe) -> None:
    known, y, _ = problem()
    made = fit(recipe, known, y, embedder="lexical:char-3-5/1")
    again = Learned.model_validate_json(made.model_dump_json())
    assert again == made and again.id == made.id
    assert np.array_equal(again.margins(known), made.margins(known))
    assert auroc(made.margins(known), y > 0) > 0.75


def test_learning_finds_what_there_is_and_its_chances_can_be_believed() -> None:
    known, y, groups = problem(500)
    made = learn(known, y, groups, embedder="e")
    fresh, truth, _ = problem(2000, seed=5)
    chances = made.chances(fresh)
    assert auroc(chances, truth > 0) > 0.8
    assert calibration_error(chances, truth > 0) < 0.06
    assert made.id.startswith("learned/") and made.id != learn(known, 1 - y, groups).id


def test_platts_map_is_found_again_and_never_turns_the_order_around() -> None:
    chance = np.random.default_rng(0)
    margins = chance.normal(size=6000) * 2
    y = (chance.random(6000) < 1 / (1 + np.exp(-(0.5 * margins - 1)))).astype(int)
    few = fit_calibration(margins[:1200], y[:1200])
    assert (few.slope, few.offset) == (pytest.approx(0.5, abs=0.08), pytest.approx(-1, abs=0.15))
    assert fit_calibration(-margins[:1200], y[:1200]).slope == 0.01
    many = fit_calibration(margins, y)
    assert many.margins, "isotonic where both sides have a thousand"
    assert calibration_error(many(margins), y > 0) < 0.03


def test_no_prompt_is_on_both_sides_of_a_fold() -> None:
    _, y, groups = problem(200)
    for train, test in folds_of(y, groups, 5, seed=0):
        assert not {groups[i] for i in train} & {groups[i] for i in test}


# --- the trial ----------------------------------------------------------------------------------


def rows_file(path: Path, n: int = 160, **more: object) -> Path:
    """Weak answers hedge and give numbers; two rows share each prompt."""
    chance = np.random.default_rng(0)
    lines = []
    for i in range(n):
        weak = chance.random() < 0.35
        hedges = chance.random() < (0.8 if weak else 0.2)
        told = f"It may be {chance.integers(9)} or 1{i}." if hedges else "It is the river."
        row = {
            "user_query": f"Which river is number {i // 2}?",
            "chatgpt_response": f"{told} " + "Yes. " * int(chance.integers(4)),
            "hallucination": "yes" if weak else "no",
            "hallucination_spans": [told] if weak else [],
        }
        lines.append(json.dumps(row | more))
    path.write_text("\n".join(lines))
    return path


def trial_of(path: Path, **options: int) -> Trial:
    rows = read_labelled(path, label_key="hallucination")
    return cross_validate(
        rows,
        FlagConfig(),
        ratings=[None] * len(rows),
        vectors_ND=np.zeros((len(rows), 0)),
        num_folds=3,
        resamples=200,
        **options,
    )


def test_where_the_errors_stand_is_never_a_feature(tmp_path: Path) -> None:
    """Removed, or handed to other rows: not a digit changes."""
    plain = rows_file(tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in plain.read_text().splitlines()]
    spans = [row["hallucination_spans"] for row in rows]
    moved = [
        row | {"hallucination_spans": s} for row, s in zip(rows, spans[7:] + spans[:7], strict=True)
    ]
    bare = [{k: v for k, v in row.items() if k != "hallucination_spans"} for row in rows]
    told = [trial_of(plain)]
    for name, changed in (("moved", moved), ("bare", bare)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "rows.jsonl"
        file.write_text("\n".join(map(json.dumps, changed)))
        told.append(trial_of(file))
    assert told[0] == told[1] == told[2]


def test_a_figure_that_tells_is_found_and_the_comparison_is_of_the_same_rows(
    tmp_path: Path,
) -> None:
    found = trial_of(rows_file(tmp_path / "rows.jsonl"))
    by_name = {one.name: one for one in found.flaggers}
    assert found.prompts == 80 and found.rows == 160
    assert by_name["learned"].auroc.low > 0.6
    gap = by_name["learned"].auprc.estimate - by_name["best single"].auprc.estimate
    assert found.comparison.auprc.estimate == pytest.approx(gap)
    assert set(found.comparison.chosen) <= set(by_name) - {"random", "learned"}
    assert "perplexity" not in by_name and "feedback" in found.left_out
    assert trial_of(tmp_path / "rows.jsonl") == found, "a function of its input"


def test_labels_without_sense_give_nothing_and_the_intervals_say_so(tmp_path: Path) -> None:
    """The model is learned on other folds: learned on the measured rows it would show nearly 1."""
    path = rows_file(tmp_path / "rows.jsonl", n=200)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    truth = [row["hallucination"] for row in rows]
    estimates = []
    for seed in range(2):
        shuffled = np.random.default_rng(seed).permutation(truth)
        path.write_text(
            "\n".join(
                json.dumps(r | {"hallucination": str(t)})
                for r, t in zip(rows, shuffled, strict=True)
            )
        )
        found = trial_of(path)
        estimates += [f.auroc.estimate for f in found.flaggers if f.kind == "learned"]
        random = next(f for f in found.flaggers if f.name == "random")
        assert random.auroc.low < 0.55 and random.auroc.high > 0.45
    assert np.mean(estimates) < 0.6


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"user_query": "a", "chatgpt_response": "b"}', "hallucination"),
        ('{"user_query": "a", "hallucination": "yes"}', "line 1"),
        ('{"user_query": "a", "chatgpt_response": "b", "hallucination": "perhaps"}', "line 1"),
        ('{"user_query": "a", "chatgpt_response": "b", "hallucination": "yes"}', "too few"),
    ],
)
def test_a_file_that_cannot_be_measured_on_is_refused(
    tmp_path: Path, line: str, match: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=match):
        read_labelled(path, label_key="hallucination")


def test_halueval_reads_as_it_is() -> None:
    if not HALUEVAL.is_file():
        pytest.skip("../shared/data is not here")
    rows = read_labelled(HALUEVAL, label_key="hallucination")
    assert (len(rows), sum(row.is_weak for row in rows)) == (2000, 346)


# --- log-probs of a local model -----------------------------------------------------------------


def test_ratings_are_the_models_own_and_are_not_computed_twice(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from trueup.models import chat
    from trueup.models.backbone import Backbone

    backbone = Backbone.load(tiny_model, device="cpu")
    rows = read_labelled(rows_file(tmp_path / "rows.jsonl", n=60), label_key="hallucination")
    answers = [row.interaction for row in rows[:10]]
    remembered = Remembered(tmp_path / "kept.sqlite")
    rated = rate(answers, backbone, remembered, max_tokens=20)
    one = answers[3]
    prompt = chat.prompt_ids(backbone.tokenizer, one.prompt)
    said = chat.completion_ids(backbone.tokenizer, one.completion)[:20]
    with torch.no_grad():
        logits = backbone.model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
    p = logits.log_softmax(-1)
    assert rated[3] is not None and rated[3].entropies is not None
    assert np.allclose(rated[3].logprobs, p[range(len(said)), said], atol=1e-4)
    assert np.allclose(rated[3].entropies, -(p.exp() * p).sum(-1), atol=1e-3)
    monkeypatch.delattr("trueup.flag.rating._rated")  # what is kept needs no model
    assert rate(answers, backbone, Remembered(remembered.path), max_tokens=20) == rated


def test_the_command_needs_no_project_and_prints_json(tmp_path: Path) -> None:
    import os

    path = rows_file(tmp_path / "rows.jsonl", n=80)
    words = ["flag", "eval", "--data", str(path), "--folds", "2", "--no-model", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "trueup", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "TRUEUP_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {"length", "random", "learned", "best single"} <= {f["name"] for f in told["flaggers"]}
    assert set(told["comparison"]["auprc"]) == {"estimate", "low", "high"}
    assert told["model"] == "" and told["base_rate"] == told["weak"] / told["rows"]
