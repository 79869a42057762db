"""Prediction-powered means: by hand, by simulation of coverage, and the planner against both."""

import numpy as np
import pytest

from trueup.stats import mean_interval, plan_labels, ppi_mean


def labels(rng: np.random.Generator, n: int, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """People's wins at 60 %, and a judge that agrees with them at this rate."""
    human = (rng.random(n) < 0.6).astype(float)
    return human, np.where(rng.random(n) < accuracy, human, 1 - human)


def test_a_judge_without_power_leaves_the_mean_of_the_people() -> None:
    human, judge = labels(np.random.default_rng(0), 300, 0.8)
    found = ppi_mean(human[:50], judge[:50], judge[50:], power=0.0)
    assert found and found.mean == pytest.approx(mean_interval(human[:50].tolist()))
    assert found.multiplier == pytest.approx(1)


def test_the_formula_by_hand() -> None:
    """Power 1 of n = 4, N = 3: 0.5 + (2/3 - 3/4), variances 1/4 / 4 + 1/3 / 3."""
    found = ppi_mean([1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1], power=1.0)
    assert found and found.mean.estimate == pytest.approx(0.5 + 2 / 3 - 3 / 4)
    half = 3.182446 * np.sqrt(0.25 / 4 + (1 / 3) / 3)  # t(0.975, 3)
    assert found.mean.high - found.mean.estimate == pytest.approx(half, rel=1e-5)


def test_tuned_power_is_the_least_variance() -> None:
    human, judge = labels(np.random.default_rng(1), 2100, 0.85)
    split = human[:100], judge[:100], judge[100:]
    tuned = ppi_mean(*split)
    assert tuned and 0.5 < tuned.power < 0.9
    widths = [
        found.mean.high - found.mean.low
        for power in np.linspace(0, 1, 41)
        if (found := ppi_mean(*split, power=float(power)))
    ]
    assert tuned.mean.high - tuned.mean.low == pytest.approx(min(widths), rel=0.01)


@pytest.mark.parametrize(
    ("accuracy", "multiplier"), [(0.72, 1.23), (0.8, 1.52), (0.85, 1.82), (0.9, 2.63), (0.95, 4.43)]
)
def test_coverage_and_the_known_multipliers(accuracy: float, multiplier: float) -> None:
    """100 human and 2,000 judge labels, 1,500 times: how many times as many human labels the
    classical mean would take for the same variance."""
    rng = np.random.default_rng(int(100 * accuracy))
    held, powered, classical = [], [], []
    for _ in range(1500):
        human, judge = labels(rng, 2100, accuracy)
        found = ppi_mean(human[:100], judge[:100], judge[100:])
        assert found
        held.append(found.mean.low <= 0.6 <= found.mean.high)
        powered.append(found.mean.estimate)
        classical.append(human[:100].mean())
    assert 0.935 <= np.mean(held) <= 0.965
    assert np.mean(powered) == pytest.approx(0.6, abs=0.005), "unbiased"
    # a ratio of two variances of 1,500 draws that share their noise: about 5 % either way
    assert np.var(classical) / np.var(powered) == pytest.approx(multiplier, rel=0.12)


def test_a_judge_that_is_wrong_in_its_own_way_costs_no_truth() -> None:
    """It calls everything a win that people find a tie, and is generous on the rest."""
    rng, held = np.random.default_rng(3), []
    for _ in range(1500):
        human = rng.choice([0, 0.5, 1], size=440, p=[0.3, 0.3, 0.4])
        judge = np.where(human == 0.5, 1.0, np.maximum(human, rng.random(440) < 0.3))
        found = ppi_mean(human[:40], judge[:40], judge[40:])
        assert found
        held.append(found.mean.low <= 0.55 <= found.mean.high)
        assert abs(judge.mean() - 0.55) > 0.08, "the judge alone would be far off"
    assert 0.93 <= np.mean(held) <= 0.97


def test_a_useless_judge_costs_next_to_nothing() -> None:
    human, judge = labels(np.random.default_rng(4), 1000, 0.5)
    found = ppi_mean(human[:80], judge[:80], judge[80:])
    classical = mean_interval(human[:80].tolist())
    assert found and classical
    assert found.mean.high - found.mean.low <= 1.01 * (classical.high - classical.low)


def test_a_plan_keeps_its_word() -> None:
    """The interval with the labels it asks for is as narrow as it says, on average."""
    plan = plan_labels(0.04, num_human=60, num_judge=1500, human_sd=0.49, correlation=0.7)
    assert plan.more > 0 and plan.half_width <= 0.04
    rng, halves = np.random.default_rng(5), []
    n, whole = 60 + plan.more, 60 + 1500
    for _ in range(200):
        human, judge = labels(rng, whole, 0.85)
        found = ppi_mean(human[:n], judge[:n], judge[n:])
        assert found
        halves.append((found.mean.high - found.mean.low) / 2)
    assert np.mean(halves) == pytest.approx(0.04, rel=0.05)


def test_a_plan_asks_for_no_more_than_it_must() -> None:
    whole = plan_labels(0.05, num_human=40, num_judge=900, human_sd=0.5, correlation=0.6)
    n, left = 40 + whole.more - 1, 900 - whole.more + 1
    less = plan_labels(0.05, num_human=n, num_judge=left, human_sd=0.5, correlation=0.6)
    assert less.more == 1 and less.half_width_now and less.half_width_now > 0.05
    there = plan_labels(0.05, num_human=n + 1, num_judge=left - 1, human_sd=0.5, correlation=0.6)
    assert there.more == 0
    assert whole.more < whole.more_without_judge and whole.num_new == 0
    assert plan_labels(0.1, num_human=0, num_judge=0, human_sd=0.5, correlation=1).more == 99


def test_a_plan_says_when_the_items_run_out() -> None:
    """Each label takes an item from the judge's own; past the last, new ones are needed."""
    plan = plan_labels(0.03, num_human=20, num_judge=108, human_sd=0.5, correlation=0.8)
    assert plan.more == plan.more_without_judge and plan.num_new == plan.more - 108
    every = plan_labels(0.3, num_human=128, num_judge=0, human_sd=0.5, correlation=0.8)
    assert every.half_width_now == pytest.approx(0.0875, abs=0.0005)
    wide = plan_labels(0.09, num_human=20, num_judge=108, human_sd=0.5, correlation=0.8)
    assert wide.num_new == 0 and wide.half_width == pytest.approx(0.09, abs=0.001)


def test_what_has_no_answer_is_none() -> None:
    assert ppi_mean([1.0], [1.0], [0.0]) is None
    assert ppi_mean([1.0, 0.0], [1.0], [0.0]) is None
    found = ppi_mean([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [])
    assert found and found.power == 0
