"""The page of flaggers on labelled answers: what it says is found is found, and it is safe."""

import json
from pathlib import Path

import numpy as np
import pytest

from page_reader import assert_safe
from trueup.flag.trial import Calibrated, Comparison, FlaggerScore, Span, Trial, _curve
from trueup.web import trial_data, write_trial

RANDOM = np.random.default_rng(0)
WEAK = (RANDOM.random(400) < 0.2).astype(int)
SCORES = {"learned": WEAK + RANDOM.normal(size=400), "length": RANDOM.normal(size=400)}
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def trial() -> Trial:
    span = Span(estimate=0.6, low=0.5, high=0.7)
    kinds = {"learned": "learned", "length": "baseline"}
    return Trial(
        rows=400,
        weak=int(WEAK.sum()),
        base_rate=float(WEAK.mean()),
        prompts=400,
        folds=5,
        resamples=2000,
        model="",
        embedder=SCRIPT,
        flaggers=[
            FlaggerScore(
                name=name, kind=kinds[name], auroc=span, auprc=span, directions=[1],
                curve=_curve(scores, WEAK),
            )
            for name, scores in SCORES.items()
        ],
        comparison=Comparison(
            against="best single", chosen=["length"], auroc=span,
            auprc=Span(estimate=-0.1, low=-0.2, high=-0.05),
        ),
        calibration=Calibrated(
            brier_before=0.2, brier_after=0.1, brier_of_base_rate=0.2,
            ece_before=0.1, ece_after=0.05,
        ),
        recipes=["logistic"],
        left_out={"feedback": SCRIPT},
    )  # fmt: skip


def test_what_is_found_at_each_depth_is_what_counting_finds(trial: Trial) -> None:
    data = trial_data(trial, source="rows.jsonl")
    for one in data["flaggers"]:
        order = np.argsort(-SCORES[one["name"]])
        for percent in (1, 10, 25, 50, 99, 100):
            first = WEAK[order[: 4 * percent]]
            assert one["found"][percent - 1] == pytest.approx(
                first.sum() / WEAK.sum(), abs=0.02
            )  # curves are thinned


def test_the_page_is_safe_and_says_which_way_it_came_out(trial: Trial, tmp_path: Path) -> None:
    page = write_trial(tmp_path / "flag.html", trial, source=f"rows {SCRIPT}")
    html = page.read_text()
    assert_safe(html, "flag.json")
    assert SCRIPT not in html and "&lt;script&gt;" in html
    assert '<span class="status">worse</span>' in html
    told = json.loads(page.with_suffix(".json").read_text())
    assert told["comparison"]["auprc"]["estimate"] == -0.1 and len(told["flaggers"]) == 2
