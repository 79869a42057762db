"""Agreement against scikit-learn, statsmodels and the krippendorff package, and by simulation."""

import numpy as np
import pytest
from numpy.random import Generator

from trueup.stats import (
    agreement_rate,
    annotator_reliability,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
)

krippendorff = pytest.importorskip("krippendorff")
metrics = pytest.importorskip("sklearn.metrics")
inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")


def noisy(rng: Generator, truth: np.ndarray, error: float, num_values: int) -> np.ndarray:
    """What somebody says who guesses in a share `error` of the items."""
    guesses = rng.integers(num_values, size=len(truth))
    return np.where(rng.random(len(truth)) < error, guesses, truth)


def with_gaps(rng: Generator, ratings: list[np.ndarray], share: float) -> list[list[int | None]]:
    return [[None if rng.random() < share else int(one) for one in row] for row in ratings]


def as_matrix(ratings: list[list[int | None]]) -> np.ndarray:
    return np.array([[np.nan if one is None else one for one in row] for row in ratings], float)


# --- Cohen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_cohens_kappa_and_its_interval_are_those_of_scikit_learn_and_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_values = int(rng.integers(2, 6))
    truth = rng.integers(num_values, size=200)
    a, b = (noisy(rng, truth, error, num_values) for error in (0.2, 0.5))
    found = cohen_kappa(list(a), list(b))
    assert found is not None
    assert found.estimate == pytest.approx(metrics.cohen_kappa_score(a, b), abs=1e-12)
    table = metrics.confusion_matrix(a, b)
    wanted = inter_rater.cohens_kappa(table)
    assert (found.low, found.high) == pytest.approx((wanted.kappa_low, wanted.kappa_upp), abs=1e-9)


def test_cohens_kappa_by_hand() -> None:
    # 20 of 50 both yes, 15 both no: p_o 0.7, p_e 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = cohen_kappa(a, b)
    assert found and found.estimate == pytest.approx(0.4)


def test_items_that_one_of_them_left_out_do_not_count() -> None:
    a, b = [0, 1, 0, 1, None, 1], [0, 1, 1, None, 1, 1]
    assert cohen_kappa(a, b) == cohen_kappa([0, 1, 0, 1], [0, 1, 1, 1])
    rate = agreement_rate(a, b)
    assert rate and rate.estimate == 0.75


def test_what_cannot_be_known_is_none() -> None:
    assert cohen_kappa([], []) is None
    assert cohen_kappa([1, 1, 1], [1, 1, 1]) is None, "chance agrees with everything"
    assert agreement_rate([None], [1]) is None
    assert fleiss_kappa([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1, None], [None, 2]]) is None, "nobody judged the same item"
    assert majority([]) is majority([1, 2]) is majority([None]) is None


def test_cohens_interval_covers_the_truth_about_95_times_in_100() -> None:
    """Two annotators who guess in 30 % of items of two even categories: kappa is 0.7 squared."""
    rng, covered, num = np.random.default_rng(5), 0, 1500
    for _ in range(num):
        truth = rng.integers(2, size=200)
        found = cohen_kappa(list(noisy(rng, truth, 0.3, 2)), list(noisy(rng, truth, 0.3, 2)))
        assert found is not None
        covered += found.low <= 0.49 <= found.high
    assert 0.93 <= covered / num <= 0.97


# --- Fleiss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_fleiss_kappa_is_that_of_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(3, size=60)
    ratings = [noisy(rng, truth, error, 3) for error in (0.1, 0.3, 0.3, 0.6)]
    table, _ = inter_rater.aggregate_raters(np.array(ratings).T)
    found = fleiss_kappa([list(row) for row in ratings])
    assert found and found.estimate == pytest.approx(inter_rater.fleiss_kappa(table), abs=1e-12)
    assert found.low < found.estimate < found.high


def test_fleiss_kappa_gives_the_published_example() -> None:
    """Fleiss 1971's own kind of table: 10 items, 14 annotators, 5 categories; kappa 0.210."""
    counts = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    items = [[at for at, n in enumerate(row) for _ in range(n)] for row in counts]
    found = fleiss_kappa([list(row) for row in zip(*items, strict=True)])
    assert found and found.estimate == pytest.approx(0.210, abs=5e-4)


# --- Krippendorff ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(4))
def test_alpha_with_gaps_is_that_of_the_krippendorff_package(level, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 8, size=40)
    ratings = with_gaps(rng, [truth + rng.integers(-1, 2, size=40) for _ in range(4)], 0.3)
    wanted = krippendorff.alpha(as_matrix(ratings), level_of_measurement=level)
    found = krippendorff_alpha(ratings, level=level)
    assert found and found.estimate == pytest.approx(wanted, abs=1e-9)
    assert found.low < found.estimate < found.high


def test_alpha_gives_the_published_example() -> None:
    """Krippendorff 2011, section C: four observers, twelve units, missing data: 0.743 nominal,
    0.815 ordinal, 0.849 interval."""
    gap = None
    ratings = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
        [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
    ]
    for level, wanted in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        found = krippendorff_alpha(ratings, level=level)  # type: ignore[arg-type]
        assert found and found.estimate == pytest.approx(wanted, abs=5e-4)


def test_labels_without_an_order_have_a_nominal_alpha() -> None:
    a = ["A", "B", "tie", "A", 3]
    assert krippendorff_alpha([a, a]) is not None
    assert krippendorff_alpha([a, a]).estimate == 1  # type: ignore[union-attr]


def test_alphas_interval_covers_the_truth_about_95_times_in_100() -> None:
    """Three annotators who guess in 30 % of items of three even categories, a tenth of it missing:
    alpha of ever more items is 0.7 squared."""
    rng, covered, num = np.random.default_rng(6), 0, 300
    for _ in range(num):
        truth = rng.integers(3, size=150)
        ratings = with_gaps(rng, [noisy(rng, truth, 0.3, 3) for _ in range(3)], 0.1)
        found = krippendorff_alpha(ratings, num_resamples=200)
        assert found is not None
        covered += found.low <= 0.49 <= found.high
    assert 0.92 <= covered / num <= 0.98


# --- annotators -----------------------------------------------------------------------------------


def test_an_annotator_is_held_against_the_others_and_not_against_oneself() -> None:
    good = [1, 1, 2, 2, 0, 0]
    ratings = [good, good, good, [2, 2, 1, 1, 0, None]]
    *careful, careless = annotator_reliability(ratings)
    assert [one.num_items for one in careful] == [6, 6, 6]
    assert all(one.agreement and one.agreement.estimate == 1 for one in careful)
    assert careless.num_items == 5
    assert careless.agreement and careless.agreement.estimate == pytest.approx(0.2)


def test_where_the_others_are_split_nothing_is_said() -> None:
    first, *_ = annotator_reliability([[1, 1], [1, 1], [2, 1]])
    assert first.num_items == 1
    alone = annotator_reliability([[1, 2]])
    assert alone == [(None, 0)]


def test_reliability_finds_who_guesses() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=300)
    ratings = [list(noisy(rng, truth, error, 3)) for error in (0.1, 0.1, 0.9)]
    rates = [one.agreement.estimate for one in annotator_reliability(ratings) if one.agreement]
    # the two careful ones are seen through the guesser's draws with each other, left out
    assert rates[2] < 0.5 < min(rates[:2])
