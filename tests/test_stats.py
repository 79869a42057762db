"""The statistics behind a promotion: published numbers, slow versions, and coverage by simulation.

An interval that says 95 % must hold the truth about 95 times in 100 at the sample sizes that gold
sets have; the evidence must keep its promise to somebody who looks after every single prompt.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy.optimize import brentq

from trueup.stats import (
    Interval,
    betting_evalue,
    mean_interval,
    paired_difference,
    ratio_interval,
    smallest_useful_n,
    wilson,
)

Z = 1.959963984540054


def outcomes(both: int, ours: int, theirs: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Two lists of passes from the four counts of a paired table."""
    return (
        [True] * (both + ours) + [False] * (theirs + neither),
        [True] * both + [False] * ours + [True] * theirs + [False] * neither,
    )


def difference(both: int, ours: int, theirs: int, neither: int) -> Interval:
    interval = paired_difference(*outcomes(both, ours, theirs, neither))
    assert interval is not None
    return interval


# --- one proportion -------------------------------------------------------------------------------


def test_wilson_gives_the_published_numbers() -> None:
    """Newcombe 1998 ("Two-sided confidence intervals for the single proportion"), Table I,
    method 3."""
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson(successes, n)
        assert interval is not None
        assert interval.estimate == successes / n
        assert interval.low == pytest.approx(low, abs=5e-5)
        assert interval.high == pytest.approx(high, abs=5e-5)


def test_wilsons_limits_solve_the_score_equation() -> None:
    """The slow version: at a limit p the observed share is exactly z standard errors from p."""
    for successes, n in ((1, 10), (7, 10), (30, 60), (59, 60)):
        interval, share = wilson(successes, n), successes / n
        assert interval is not None

        def off(p: float, share: float = share, n: int = n) -> float:
            return (share - p) ** 2 - Z**2 * p * (1 - p) / n

        assert interval.low == pytest.approx(brentq(off, 0, share), abs=1e-9)
        assert interval.high == pytest.approx(brentq(off, share, 1), abs=1e-9)


def test_a_wider_confidence_is_a_wider_interval() -> None:
    narrow, wide = wilson(30, 60, confidence=0.8), wilson(30, 60, confidence=0.99)
    assert narrow and wide and wide.low < narrow.low < 0.5 < narrow.high < wide.high


# --- a paired difference --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "low", "high", "digits"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404, 4),  # Newcombe 1998, method 10
        ((14, 5, 0, 22), 0.011, 0.226, 3),  # Altman et al. 2000, Table 6.2
        ((1, 1, 7, 12), -0.507, -0.026, 3),  # Fagerland et al. 2014, after Bentur et al. 2009
    ],
)
def test_a_paired_difference_gives_the_published_numbers(
    table: tuple[int, int, int, int], low: float, high: float, digits: int
) -> None:
    interval = difference(*table)
    assert (round(interval.low, digits), round(interval.high, digits)) == (low, high)


def slow_difference(a: int, b: int, c: int, d: int) -> tuple[float, float]:
    """Method 10 from the paper's formulas, with Wilson limits found by bisection."""
    n = a + b + c + d

    def limits(share: float) -> tuple[float, float]:
        def off(p: float) -> float:
            return (share - p) ** 2 - Z**2 * p * (1 - p) / n

        edge = 1e-9  # at 0 and 1 the share itself is a root, and not the one wanted
        low = 0.0 if share == 0 else brentq(off, 0, min(share, 1 - edge), xtol=1e-14)
        high = 1.0 if share == 1 else brentq(off, max(share, edge), 1, xtol=1e-14)
        return low, high

    first, second = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = limits(first), limits(second)
    phi = 0.0
    if min(a + b, c + d, a + c, b + d) > 0:
        cross = a * d - b * c
        top = cross - n / 2 if cross > n / 2 else 0.0 if cross >= 0 else cross
        phi = top / math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    down = (first - l1) ** 2 - 2 * phi * (first - l1) * (u2 - second) + (u2 - second) ** 2
    up = (second - l2) ** 2 - 2 * phi * (second - l2) * (u1 - first) + (u1 - first) ** 2
    gap = (b - c) / n
    return gap - math.sqrt(down), gap + math.sqrt(up)


def test_a_paired_difference_equals_the_slow_version() -> None:
    random = np.random.default_rng(0)
    tables = [*random.multinomial(60, [0.4, 0.1, 0.1, 0.4], 30), *random.integers(0, 9, (30, 4))]
    for a, b, c, d in [*tables, (0, 0, 0, 9), (9, 0, 0, 0), (0, 9, 0, 0), (5, 4, 0, 0)]:
        if a + b + c + d:
            interval = difference(int(a), int(b), int(c), int(d))
            assert interval.estimate == pytest.approx((b - c) / (a + b + c + d))
            assert interval[1:] == pytest.approx(slow_difference(a, b, c, d), abs=1e-9)


def test_swapping_the_models_mirrors_the_interval() -> None:
    ahead, behind = difference(20, 12, 3, 25), difference(20, 3, 12, 25)
    assert ahead == pytest.approx((-behind.estimate, -behind.high, -behind.low))


@pytest.mark.parametrize("table", [(30, 0, 0, 30), (60, 0, 0, 0), (0, 0, 0, 60), (57, 0, 0, 3)])
def test_two_models_that_never_differ_still_leave_doubt(table: tuple[int, int, int, int]) -> None:
    interval = difference(*table)
    assert interval.estimate == 0
    assert -0.08 < interval.low < -0.01
    assert 0.01 < interval.high < 0.08


@cache
def limits_of(both: int, ours: int, theirs: int, neither: int) -> Interval:
    return difference(both, ours, theirs, neither)


@pytest.mark.parametrize(("n", "simulations"), [(60, 1000), (150, 500)])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(0.025, 0.025), (0.05, 0.05), (0.1, 0.1), (0.15, 0.15), (0.05, 0.15)]
)
def test_a_paired_difference_covers_the_truth(
    n: int, simulations: int, ours: float, theirs: float
) -> None:
    """Discordant pairs from 5 % to 30 %, the pass rate at 60 % for the weaker of two models.

    With three discordant pairs expected the interval is cautious; it is never bold.
    """
    agree, both = 1 - ours - theirs, 0.6 - min(ours, theirs)
    random = np.random.default_rng(n + int(1000 * ours))
    tables = random.multinomial(n, [both, ours, theirs, agree - both], simulations).tolist()
    held = [(i := limits_of(*table)).low <= ours - theirs <= i.high for table in tables]
    assert 0.93 <= np.mean(held) <= (0.985 if n * (ours + theirs) > 5 else 0.995)


def test_items_that_do_not_match_up_have_no_difference() -> None:
    assert paired_difference([True, False], [True]) is None


# --- how many items a gate needs ------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.2, 0.1, 0.05, 0.03])
@pytest.mark.parametrize("pass_rate", [0.5, 0.9])
def test_the_smallest_useful_n_is_the_first_at_which_a_pass_means_something(
    margin: float, pass_rate: float
) -> None:
    """An unchanged model clears the margin, and a model that lost that much would hardly ever look
    unchanged."""

    def means_something(n: int) -> bool:
        passes = round(n * pass_rate)
        looks_unchanged_all_the_same = (1 - margin) ** n
        low = difference(passes, 0, 0, n - passes).low
        return low > -margin and looks_unchanged_all_the_same <= 0.025

    n = smallest_useful_n(margin, pass_rate=pass_rate)
    assert means_something(n)
    assert not any(means_something(fewer) for fewer in range(4, n))


def test_at_a_margin_of_a_tenth_it_takes_36_items() -> None:
    """0.9 to the power of 36 is 0.02253; to the power of 35, 0.02503."""
    assert smallest_useful_n(0.1) == 36


def test_a_finer_margin_needs_more_items() -> None:
    needed = [smallest_useful_n(margin) for margin in (0.3, 0.2, 0.1, 0.05, 0.02)]
    assert needed == sorted(needed)
    assert needed[0] < needed[-1]


# --- means and ratios -----------------------------------------------------------------------------


def test_a_mean_gives_students_interval() -> None:
    """Worked by hand: mean 5, standard deviation sqrt(10), t(0.975, 4 degrees) = 2.776445."""
    interval = mean_interval([1.0, 3.0, 5.0, 7.0, 9.0])
    half = 2.776445 * math.sqrt(10) / math.sqrt(5)
    assert interval == pytest.approx((5.0, 5.0 - half, 5.0 + half), abs=1e-5)


def coverage(draw: Callable[[np.random.Generator], Interval | None], truth: float) -> float:
    random = np.random.default_rng(1)
    held = [i is not None and i.low <= truth <= i.high for i in (draw(random) for _ in range(2000))]
    return float(np.mean(held))


def test_a_mean_covers_the_truth_for_win_rates_with_ties() -> None:
    def votes(random: np.random.Generator) -> Interval | None:
        return mean_interval(random.choice([0.0, 0.5, 1.0], size=60, p=[0.3, 0.2, 0.5]).tolist())

    assert 0.935 <= coverage(votes, 0.6) <= 0.965


def test_a_mean_covers_the_truth_from_five_values_on() -> None:
    def values(random: np.random.Generator) -> Interval | None:
        return mean_interval(random.normal(3.0, 2.0, size=5).tolist())

    assert 0.935 <= coverage(values, 3.0) <= 0.965


@pytest.mark.parametrize("n", [30, 90])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_a_ratio_covers_the_truth_for_paired_lognormal_lengths(n: int, correlation: float) -> None:
    """Answer lengths of two models to the same prompts: skewed, and long where the prompt asks."""

    def lengths(random: np.random.Generator) -> Interval | None:
        shared, own = random.normal(size=n), random.normal(size=n)
        other = correlation * shared + math.sqrt(1 - correlation**2) * own
        return ratio_interval(
            np.exp(3.0 + 0.5 * shared).tolist(), np.exp(2.8 + 0.5 * other).tolist()
        )

    assert 0.925 <= coverage(lengths, math.exp(0.2)) <= 0.97


@pytest.mark.parametrize("n", [8, 30])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_a_ratio_covers_the_truth_for_very_skewed_lengths(n: int, correlation: float) -> None:
    """Log-normal with a standard deviation of 1; slightly cautious for 8 prompts."""

    def lengths(random: np.random.Generator) -> Interval | None:
        shared, own = random.normal(size=n), random.normal(size=n)
        other = correlation * shared + math.sqrt(1 - correlation**2) * own
        return ratio_interval(np.exp(shared).tolist(), np.exp(other).tolist())

    assert 0.93 <= coverage(lengths, 1.0) <= 0.975


def test_a_ratio_that_rests_on_one_value_is_still_seen_to_have_fallen() -> None:
    """60 prompts of which one is left with any spread: a thing that guards should catch."""
    found = ratio_interval([1.0] + [0.0] * 59, [1.0] * 60)
    assert found and found.estimate == pytest.approx(1 / 60) and found.high < 1


def test_a_ratio_of_equal_lengths_is_exactly_one() -> None:
    assert ratio_interval([3.0, 8.0, 2.0], [3.0, 8.0, 2.0]) == (1.0, 1.0, 1.0)


def test_a_ratio_turned_round_is_the_reciprocal() -> None:
    ours, theirs = [3.0, 9.0, 4.0, 6.0], [2.0, 7.0, 5.0, 3.0]
    up, down = ratio_interval(ours, theirs), ratio_interval(theirs, ours)
    assert up and down
    assert up == pytest.approx((1 / down.estimate, 1 / down.high, 1 / down.low))


# --- evidence -------------------------------------------------------------------------------------

BETS = (np.arange(100) + 0.5) / 50


def slow_evalues(points: np.ndarray) -> np.ndarray:
    """After each of the outcomes (along the last axis): the wealth of every bet, then the mean."""
    wealth = np.cumprod(1 + BETS[:, None, None] * (points[None] - 0.5), axis=-1)
    return wealth.mean(axis=0)


def test_no_outcome_is_no_evidence_and_neither_is_a_tie() -> None:
    assert betting_evalue([]) == 1
    assert betting_evalue([0.5] * 30) == pytest.approx(1)


def test_one_win_and_one_loss_are_worth_what_the_bets_pay() -> None:
    """Bets average 1, so a win pays 1 + 1/2 and a loss leaves 1 - 1/2."""
    assert betting_evalue([1.0]) == pytest.approx(1.5)
    assert betting_evalue([0.0]) == pytest.approx(0.5)


@pytest.mark.parametrize("tie_rate", [0.0, 0.3, 0.9])
def test_one_step_under_the_null_is_a_fair_game(tie_rate: float) -> None:
    half = (1 - tie_rate) / 2
    expected = sum(
        chance * betting_evalue([points])
        for points, chance in ((1.0, half), (0.5, tie_rate), (0.0, half))
    )
    assert expected == pytest.approx(1)


def test_evidence_equals_the_slow_version_after_every_outcome() -> None:
    points = np.random.default_rng(2).choice([0, 0.25, 0.5, 0.75, 1], size=(3, 60))
    slow = slow_evalues(points)
    for row in range(3):
        found = [betting_evalue(points[row, : t + 1].tolist()) for t in range(60)]
        assert found == pytest.approx(slow[row].tolist())


def test_looking_after_every_prompt_promotes_one_in_twenty_equals_at_most() -> None:
    """2,000 histories of 200 prompts at even odds with a fifth of ties, stopped at the first
    moment the evidence reaches 20."""
    random = np.random.default_rng(3)
    promoted = 0
    for _ in range(20):
        points = random.choice([0.0, 0.5, 1.0], size=(100, 200), p=[0.4, 0.2, 0.4])
        promoted += int((slow_evalues(points).max(axis=-1) >= 20).sum())
    assert 0 < promoted / 2000 <= 0.05


def test_a_candidate_that_is_worse_is_hardly_ever_promoted() -> None:
    points = np.random.default_rng(4).choice([0.0, 1.0], size=(500, 200), p=[0.55, 0.45])
    assert (slow_evalues(points).max(axis=-1) >= 20).mean() < 0.02


def test_a_win_rate_of_65_per_cent_is_found_within_200_prompts() -> None:
    random = np.random.default_rng(5)
    points = random.choice([0.0, 0.5, 1.0], size=(400, 200), p=[0.25, 0.2, 0.55])
    best = slow_evalues(points).max(axis=-1)
    assert points.mean() == pytest.approx(0.65, abs=0.01)
    assert (best >= 20).mean() > 0.9


@pytest.mark.filterwarnings("error")
def test_evidence_beyond_what_a_float_holds_stays_a_number_that_can_be_stored() -> None:
    """1,200 wins in a row are worth more than 1.8e308; JSON has no infinity."""
    assert math.isfinite(betting_evalue([1.0] * 1200))
    assert betting_evalue([1.0] * 1200) > 1e300
    assert 0 <= betting_evalue([0.0] * 5000) < 1e-10


# --- what has no answer ---------------------------------------------------------------------------


def test_what_has_no_answer_is_none_never_zero() -> None:
    assert wilson(0, 0) is None
    assert paired_difference([], []) is None
    assert mean_interval([]) is None
    assert mean_interval([0.7]) is None
    assert ratio_interval([], []) is None
    assert ratio_interval([2.0], [1.0]) is None
    assert ratio_interval([2.0, 3.0], [1.0]) is None
    assert ratio_interval([2.0, 3.0], [0.0, 0.0]) is None
    assert ratio_interval([0.0, 0.0], [2.0, 3.0]) is None
