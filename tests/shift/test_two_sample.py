"""Two-sample tests against scikit-learn, a slow version, and simulation under no difference."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from trueup.models.embedder import lexical
from trueup.shift.two_sample import auc_interval, classifier_test, mmd, simple_features


def test_the_auc_is_scikit_learns_ties_and_all() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, 40) + 1.0, rng.integers(0, 6, 55) * 1.0
    y = np.repeat([1, 0], [40, 55])
    expected = roc_auc_score(y, np.concatenate([first, second]))
    assert auc_interval(first, second).estimate == pytest.approx(expected)


def test_the_interval_of_an_auc_covers_the_truth() -> None:
    """Normal scores a distance of 1 apart: the AUC is Phi(1 / sqrt 2) = 0.7602."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(1000):
        found = auc_interval(rng.normal(1, 1, 60), rng.normal(0, 1, 60))
        covered += found.low <= 0.7602 <= found.high
    assert 0.93 <= covered / 1000 <= 0.97


def slow_mmd(x: np.ndarray, y: np.ndarray) -> float:
    both = np.concatenate([x, y])
    every = [float(((a - b) ** 2).sum()) for i, a in enumerate(both) for b in both[:i]]
    width = float(np.median(every))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / width))

    def mean(s: np.ndarray, t: np.ndarray, same: bool) -> float:
        values = [k(a, b) for i, a in enumerate(s) for j, b in enumerate(t) if not same or i != j]
        return float(np.mean(values))

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_mmd_equals_the_slow_version() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(0, 1, (12, 3)), rng.normal(0.5, 1, (17, 3))
    found = mmd(x, y)
    assert found is not None and found.squared == pytest.approx(slow_mmd(x, y))
    assert mmd(x[:1], y) is None


def test_mmd_is_small_one_time_in_twenty_where_nothing_differs() -> None:
    rng, small = np.random.default_rng(3), 0
    for seed in range(200):
        found = mmd(
            rng.normal(0, 1, (15, 4)), rng.normal(0, 1, (15, 4)), permutations=39, seed=seed
        )
        assert found is not None
        small += found.p_value <= 0.05
    assert small <= 20  # 10 expected; 21 or more come up once in 1,000


def test_a_classifier_sees_words_and_only_those_of_other_groups() -> None:
    sky = [f"cloud wind moon star {i}" for i in range(40)]
    sea = [f"wave salt ship tide {i}" for i in range(40)]
    told = classifier_test(sky, sea, lexical())
    assert told is not None and told.auc.estimate > 0.99 and len(told.scores) == 80
    assert classifier_test(sky[:9], sea, lexical()) is None
    # all answers to one prompt on one side: what a group has alone cannot be learned of it
    assert classifier_test(sky, sea, lexical(), groups=[0] * 40 + [1] * 40) is None


def test_simple_features_are_standardised_and_finite_for_empty_texts() -> None:
    x = simple_features(["", "one two", "3 4 5!\n"])
    assert x.shape == (3, 6) and np.isfinite(x).all()
    assert x.mean(axis=0) == pytest.approx(np.zeros(6), abs=1e-12)
    assert np.isfinite(simple_features(["a", "a"])).all()
