"""Diversity, on matrices whose Vendi score is known and on texts counted by hand."""

import math

import numpy as np
import pytest

from trueup.guard.diversity import (
    distinct,
    duplicates,
    extra_answers,
    kernel,
    most_common_opening,
    most_common_rate,
    openings,
    self_similarity,
    vendi,
)
from trueup.guard.halves import half_sample_interval
from trueup.models.embedder import lexical


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_n_of_the_same_are_one_and_n_with_nothing_in_common_are_n(n: int) -> None:
    assert vendi(np.ones((n, n))) == pytest.approx(1)
    assert vendi(np.eye(n)) == pytest.approx(n)


def test_groups_of_the_same_count_once_each() -> None:
    """Eigenvalues 3/4 and 1/4: exp of their entropy."""
    x = np.eye(3)[[0, 0, 0, 1]]
    assert vendi(kernel(x)) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


@pytest.mark.parametrize("shape", [(6, 20), (30, 4)], ids=["few", "many"])
def test_it_equals_the_eigenvalues_of_the_kernel(shape: tuple[int, int]) -> None:
    x = unit(np.random.default_rng(0).normal(size=shape))
    values = np.linalg.eigvals(x @ x.T / len(x)).real
    values = values[values > 1e-9]
    assert vendi(kernel(x)) == pytest.approx(math.exp(-sum(v * math.log(v) for v in values)))


def test_two_texts_at_a_cosine_have_the_score_of_their_angle() -> None:
    """K / 2 has eigenvalues (1 + c) / 2 and (1 - c) / 2."""
    c = 0.6
    x = np.array([[1, 0], [c, math.sqrt(1 - c * c)]])
    expected = math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    assert extra_answers([x, x[:1]]) == pytest.approx([expected - 1, 0])


def test_self_similarity_is_the_mean_over_pairs() -> None:
    x = unit(np.random.default_rng(1).normal(size=(9, 4)))
    pairs = [float(x[i] @ x[j]) for i in range(9) for j in range(9) if i != j]
    assert self_similarity(kernel(x)) == pytest.approx(np.mean(pairs))
    assert self_similarity(kernel(x[:1])) is None


def test_distinct_bigrams_by_hand() -> None:
    assert distinct([["a", "b", "a", "b"], ["a", "b"]]) == pytest.approx(2 / 4)
    assert distinct([["one"], []]) is None and distinct([]) is None


def test_openings_and_near_duplicates_by_hand() -> None:
    said = ["I am sorry, but no.", "I am sorry but yes!", "The sky is blue today.", "So?"]
    assert most_common_rate(openings(said)) == 0.5 and most_common_opening(said) == "i am sorry but"
    assert most_common_rate([]) == 1.0
    x = unit(np.array([[1, 0.0], [1, 0.1], [1, 0.2], [0, 1]]))
    assert duplicates(kernel(x)) == [0, 1, 2] and duplicates(kernel(x[:0])) == []


def test_empty_answers_are_near_duplicates_of_each_other_alone() -> None:
    x = lexical()(["", "", " ", "The flask holds a pint."])
    assert duplicates(kernel(x)) == [0, 1, 2]
    assert vendi(kernel(x[:3])) == pytest.approx(1)


def test_half_samples_cover_the_truth_of_a_mean_and_of_a_ratio() -> None:
    """Where the truth is known: 95 % intervals hold it about as often."""
    rng, held = np.random.default_rng(2), {"mean": 0, "ratio": 0}
    runs = 160
    for _ in range(runs):
        hard = rng.lognormal(3, 0.5, 60)
        x, y = hard * rng.lognormal(0, 0.3, 60), hard * rng.lognormal(0, 0.3, 60)
        ratio = half_sample_interval(lambda at, x=x, y=y: float(x[at].mean() / y[at].mean()), 60)
        z = rng.normal(1, 2, 60)
        mean = half_sample_interval(lambda at, z=z: float(z[at].mean()), 60)
        assert ratio is not None and mean is not None
        held["ratio"] += ratio.low <= 1 <= ratio.high
        held["mean"] += mean.low <= 1 <= mean.high
    assert all(0.90 <= n / runs <= 0.99 for n in held.values()), held


def test_half_samples_of_too_little_are_unknown() -> None:
    assert half_sample_interval(lambda at: 1.0, 3) is None
    assert half_sample_interval(lambda at: None, 10) is None
