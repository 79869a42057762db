"""Means over clusters and strata: against statsmodels, a survey's formula, and simulation."""

import warnings

import numpy as np
import pytest

from trueup.stats import (
    Interval,
    cluster_difference,
    cluster_mean,
    cluster_share,
    mean_interval,
    stratum_weights,
    wilson,
    wilson_at,
)

sm = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed: no oracle")


def sampled(rng: np.random.Generator, prompts: int, samples: int, shared: float) -> np.ndarray:
    """Points of several samples a prompt, (prompts, samples), that agree through the prompt."""
    lean = rng.normal(0, shared, (prompts, 1))
    return (rng.normal(0.3, 1, (prompts, samples)) + lean > 0).astype(float)


def oracle(y: np.ndarray, x: np.ndarray, groups: list[str], weights=None) -> Interval:
    """The last coefficient with CR1 errors and Student's t, by statsmodels."""
    w = np.ones(len(y)) if weights is None else weights
    codes = np.unique(groups, return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant alone has no F test
        fit = sm.WLS(y, x, weights=w).fit(
            cov_type="cluster", cov_kwds={"groups": codes}, use_t=True
        )
    low, high = fit.conf_int()[-1]
    return Interval(float(fit.params[-1]), float(low), float(high))


@pytest.mark.parametrize("prompts", [2, 7, 60])
def test_a_clustered_mean_equals_statsmodels(prompts: int) -> None:
    rng = np.random.default_rng(prompts)
    names = [f"p{i % prompts}" for i in range(5 * prompts + 3)]  # clusters of unequal size
    y, w = rng.normal(size=len(names)), rng.uniform(0.5, 2, len(names))
    for weights in (None, w):
        ours = cluster_mean(y.tolist(), names, weights=weights)
        assert ours == pytest.approx(oracle(y, np.ones((len(y), 1)), names, weights))


def test_a_difference_of_two_models_on_the_same_prompts_equals_statsmodels() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = [f"p{i % 20}" for i in range(60)], [f"p{i % 25}" for i in range(75)]
    x, y = rng.normal(0.5, 1, 60), rng.normal(0, 1, 75)
    design = np.column_stack([np.ones(135), np.r_[np.ones(60), np.zeros(75)]])
    found = cluster_difference(x.tolist(), ours, y.tolist(), theirs)
    assert found == pytest.approx(oracle(np.r_[x, y], design, [*ours, *theirs]))


def test_without_clusters_or_strata_it_is_students_interval() -> None:
    values = [0.0, 1.0, 0.5, 1.0, 1.0]
    assert cluster_mean(values) == pytest.approx(mean_interval(values))


def test_samples_of_a_prompt_may_be_averaged_or_clustered_alike() -> None:
    points = sampled(np.random.default_rng(2), 40, 4, 1.0)
    names = np.repeat([f"p{i}" for i in range(40)], 4).tolist()
    assert cluster_mean(points.ravel().tolist(), names) == pytest.approx(
        mean_interval(points.mean(1).tolist())
    )


def held(interval: Interval | None, truth: float) -> bool:
    return interval is not None and interval.low <= truth <= interval.high


def test_clusters_cover_where_samples_counted_alone_do_not() -> None:
    """1,000 suites of 60 prompts with 4 samples each, P(win) = P(N(0.3, 1 + 2) > 0)."""
    from scipy.stats import norm

    truth = float(norm.cdf(0.3 / np.sqrt(3)))
    rng = np.random.default_rng(3)
    names = np.repeat(np.arange(60), 4).tolist()
    robust, naive = [], []
    for _ in range(1000):
        points = sampled(rng, 60, 4, np.sqrt(2)).ravel().tolist()
        robust.append(held(cluster_mean(points, names), truth))
        naive.append(held(mean_interval(points), truth))
    assert 0.93 <= np.mean(robust) <= 0.97
    assert np.mean(naive) < 0.85


# --- shares ---------------------------------------------------------------------------------------


def test_at_a_whole_number_of_outcomes_it_is_wilsons_interval() -> None:
    for wins, n in ((0, 4), (7, 20), (1, 1), (299, 300)):
        assert wilson_at(wins / n, n) == pytest.approx(wilson(wins, n))


def test_a_share_of_wins_and_losses_is_wilsons_with_students_quantile() -> None:
    points = [1.0] * 140 + [0.0] * 60
    plain = wilson_at(0.7, 199, quantile=1.971957)  # t(0.975, 199), and a variance over n - 1
    assert cluster_share(points) == pytest.approx(plain, abs=1e-4)


def test_samples_that_all_agree_are_worth_one() -> None:
    rng = np.random.default_rng(5)
    points = (rng.random(30) < 0.7).astype(float)
    names = [f"p{i}" for i in range(30)]
    once = cluster_share(points.tolist())
    assert cluster_share(np.repeat(points, 5).tolist(), np.repeat(names, 5).tolist()) == (
        pytest.approx(once)
    )


@pytest.mark.parametrize("points", [[1.0] * 3, [0.5] * 5, [1.0] * 15 + [0.5], [0.0] * 40])
def test_few_votes_leave_doubt_and_nothing_leaves_the_unit_interval(points: list[float]) -> None:
    found = cluster_share(points)
    assert found and 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.high - found.low > 0.05
    stratified = cluster_share(points * 2, strata=["a"] * len(points) + ["b"] * len(points))
    assert stratified and stratified.high - stratified.low > 0.03


SHARES = {
    "10, 90 %": (10, (0.1, 0.0, 0.9), 1.0),
    "20, 95 %": (20, (0.05, 0.0, 0.95), 1.0),
    "64, 97 %": (64, (0.03, 0.0, 0.97), 0.975),
    "128, 97 %": (128, (0.03, 0.0, 0.97), 0.975),
    "60, a fifth of ties": (60, (0.3, 0.2, 0.5), 0.975),
    "100, nearly all ties": (100, (0.05, 0.9, 0.05), 0.98),
    "100, no loss to speak of": (100, (0.01, 0.1, 0.89), 0.98),
}


@pytest.mark.parametrize("case", SHARES)
def test_a_win_rate_is_covered_up_to_the_edge(case: str) -> None:
    """2,000 contests each, of losses, ties and wins. With ten or twenty votes the interval is wider
    than it need be, never narrower; Student's own covers 64 % there."""
    n, chances, most = SHARES[case]
    rng, truth, covered = np.random.default_rng(6), chances[2] + chances[1] / 2, []
    for _ in range(2000):
        covered.append(held(cluster_share(rng.choice([0.0, 0.5, 1.0], n, p=chances)), truth))
    assert 0.93 <= np.mean(covered) <= most


def test_the_share_of_clusters_is_covered_up_to_the_edge() -> None:
    """60 prompts of 4 samples that agree, P(win) = P(N(mu, 1 + 2) > 0): 57 and 96 %."""
    from scipy.stats import norm

    rng, names = np.random.default_rng(7), np.repeat(np.arange(60), 4).tolist()
    for middle in (0.3, 3.0):
        truth = float(norm.cdf(middle / np.sqrt(3)))
        covered = []
        for _ in range(1000):
            lean = rng.normal(0, np.sqrt(2), (60, 1))
            points = (rng.normal(middle, 1, (60, 4)) + lean > 0).astype(float).ravel()
            covered.append(held(cluster_share(points.tolist(), names), truth))
        assert 0.93 <= np.mean(covered) <= 0.98


def test_the_share_of_strata_is_covered_up_to_the_edge() -> None:
    strata = ["a"] * 20 + ["b"] * 20
    weights = stratum_weights(strata, {"a": 0.3, "b": 0.7})
    rng, covered = np.random.default_rng(8), []
    for _ in range(1000):
        points = (rng.random(40) < np.r_[np.full(20, 0.97), np.full(20, 0.95)]).astype(float)
        found = cluster_share(points.tolist(), strata=strata, weights=weights)
        covered.append(held(found, 0.3 * 0.97 + 0.7 * 0.95))
    assert 0.93 <= np.mean(covered) <= 0.98


# --- strata ---------------------------------------------------------------------------------------


def test_strata_give_the_survey_formula() -> None:
    """By hand: sum of W_s^2 s_s^2 / n_s (Cochran 1977, 5.6), here with shares 3/4 and 1/4."""
    a, b = [1.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.0, 0.0, 0.5, 0.0]
    strata = ["a"] * 4 + ["b"] * 6
    weights = stratum_weights(strata, {"a": 3, "b": 1})
    found = cluster_mean(a + b, strata=strata, weights=weights)
    variance = 0.75**2 * np.var(a, ddof=1) / 4 + 0.25**2 * np.var(b, ddof=1) / 6
    assert found and found.estimate == pytest.approx(0.75 * np.mean(a) + 0.25 * np.mean(b))
    half = 2.306004 * np.sqrt(variance)  # t(0.975, 8)
    assert found.high - found.estimate == pytest.approx(half, rel=1e-5)


def test_a_stratum_without_a_share_keeps_the_one_it_has_in_the_suite() -> None:
    strata = ["a"] * 2 + ["b"] * 3 + ["c"] * 5
    weights = np.array(stratum_weights(strata, {"a": 2, "b": 2}))
    shares = [weights[:2].sum(), weights[2:5].sum(), weights[5:].sum()] / weights.sum()
    assert shares == pytest.approx([0.25, 0.25, 0.5])
    assert stratum_weights(strata, {}) == [1.0] * 10


def test_weights_by_share_undo_a_suite_that_over_samples_a_topic() -> None:
    """Topic a is 10 % of the traffic and half of the suite; P(win) is 0.9 there and 0.4 elsewhere,
    so 0.45 in all."""
    rng = np.random.default_rng(4)
    strata = ["a"] * 50 + ["b"] * 50
    weights = stratum_weights(strata, {"a": 0.1, "b": 0.9})
    covered, blind = [], []
    for _ in range(1000):
        points = (rng.random(100) < np.r_[np.full(50, 0.9), np.full(50, 0.4)]).astype(float)
        covered.append(held(cluster_mean(points, strata=strata, weights=weights), 0.45))
        blind.append(held(cluster_mean(points), 0.45))
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(blind) < 0.1


def test_strata_narrow_what_topics_explain() -> None:
    points, strata = [1.0] * 20 + [0.0] * 18 + [1.0, 0.0], ["easy"] * 20 + ["hard"] * 20
    with_them, without = cluster_mean(points, strata=strata), cluster_mean(points)
    assert with_them and without
    assert with_them.high - with_them.low < 0.5 * (without.high - without.low)


def test_the_only_prompt_of_a_stratum_still_leaves_doubt() -> None:
    found = cluster_mean([1.0, 1.0, 1.0, 0.0], strata=["a", "a", "a", "b"])
    assert found and found.low < found.estimate < found.high


def test_what_has_no_answer_is_none() -> None:
    assert cluster_mean([]) is None
    assert cluster_share([]) is None
    assert cluster_share([1.0]) is None
    assert cluster_share([1.0, 0.0], ["p", "p"]) is None
    assert cluster_mean([1.0, 0.0], ["p", "p"]) is None
    assert cluster_mean([1.0, 0.0], strata=["a", "b"]) is None
    assert cluster_difference([], [], [1.0], ["p"]) is None
