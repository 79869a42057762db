"""A mean of people's labels, narrowed by a judge's on far more items, and never biased by it.

The judge may be wrong in any way: what it is wrong by is measured where people labelled too. How
much it helps depends on how well it agrees with them, and a planner turns that into labels.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from trueup.stats.intervals import Interval

__all__ = ["LabelPlan", "PPIMean", "plan_labels", "ppi_mean"]

Floats = NDArray[np.float64]


class PPIMean(NamedTuple):
    """What people would say on average, by their labels and the judge's."""

    mean: Interval
    power: float
    """How far the judge is trusted, lambda of the paper: 0 not at all, 1 as a person."""
    multiplier: float
    """So many times as many human labels it would take without the judge."""


class LabelPlan(NamedTuple):
    """How many human labels an interval of a given width takes."""

    more: int
    """Human labels to add."""
    half_width_now: float | None
    """Of the 95 % interval with the labels there are; None for fewer than two."""
    half_width: float
    """Expected with the labels of the plan; never more than what was asked for."""
    more_without_judge: int
    """Human labels to add if there were no judge."""
    num_new: int
    """How many of `more` are on items that do not exist yet: the judge's have run out."""


def ppi_mean(
    human: Sequence[float],
    judge: Sequence[float],
    judge_alone: Sequence[float],
    *,
    power: float | None = None,
    confidence: float = 0.95,
) -> PPIMean | None:
    """Prediction-powered mean with power tuning (PPI++).

        mean = avg(human) + power * (avg(judge_alone) - avg(judge))
        V    = var(human - power * judge) / n + power^2 var(judge_alone) / N
        power = cov(human, judge) / ((1 + n / N) var(judge)),  clipped to [0, 1]

    Angelopoulos et al. 2023, arXiv:2311.01453, Example 6.1. Departure: Student's t with n - 1
    degrees of freedom in place of the normal quantile, since people label few. With power 0 it is
    the classical mean of the human labels. For a win rate the values are points, 1, 1/2 or 0.

    Args:
        human: people's values of n items.
        judge: the judge's values of the same items, in their order.
        judge_alone: the judge's values of N other items, drawn from the same source.
        power: fixed beforehand; None tunes it on these data.

    Returns:
        None for fewer than two human labels, or where the two do not match up.
    """
    if len(human) < 2 or len(human) != len(judge):
        return None
    y, f, alone = (np.asarray(one, float) for one in (human, judge, judge_alone))
    n = len(y)
    tuned = _best_power(y, f, alone) if power is None else power
    tuned = tuned if len(alone) else 0.0
    mean = float(y.mean())
    variance = float((y - tuned * f).var(ddof=1)) / n
    if tuned:
        mean += tuned * float(alone.mean() - f.mean())
        variance += tuned**2 * _variance(alone) / len(alone)
    half = math.sqrt(variance) * float(scipy_stats.t.ppf(0.5 + confidence / 2, n - 1))
    classical = float(y.var(ddof=1)) / n
    return PPIMean(
        Interval(mean, mean - half, mean + half),
        tuned,
        classical / variance if variance > 0 else 1.0,
    )


def plan_labels(
    within: float,
    *,
    num_human: int,
    num_judge: int,
    human_sd: float,
    correlation: float,
    confidence: float = 0.95,
) -> LabelPlan:
    """How many more human labels bring the interval of the mean to plus or minus `within`.

    With n human and N judge labels on other items, tuned power and correlation r, the variance
    is expected to be  sd^2 / n * (1 - r^2 / (1 + n / N)).  Items that people label next are taken
    from those that the judge labelled alone, N falls by one each; past these, new ones are needed,
    and the judge is no help.

    Args:
        within: half the width that is wanted, in the unit of the labels.
        num_human: labels there are.
        num_judge: items that only the judge has labelled.
        human_sd: standard deviation of people's labels; 1/2 is the most that a win rate can have.
        correlation: of people's labels with the judge's, in [0, 1]. A judge of accuracy a on
            even odds without ties has 2 a - 1.
    """

    def half(n: int, r: float) -> float:
        if n < 2:
            return math.inf
        alone = num_judge - max(n - num_human, 0)
        help_of_judge = r**2 / (1 + n / alone) if alone > 0 else 0.0
        error = human_sd * math.sqrt((1 - help_of_judge) / n)
        return error * float(scipy_stats.t.ppf(0.5 + confidence / 2, n - 1))

    needed, alone = (_first(lambda n, r=r: half(n, r) <= within) for r in (correlation, 0.0))
    there = max(needed, num_human)
    return LabelPlan(
        there - num_human,
        half(num_human, correlation) if num_human > 1 else None,
        half(there, correlation),
        max(alone - num_human, 0),
        max(there - num_human - num_judge, 0),
    )


def _best_power(y: Floats, f: Floats, alone: Floats) -> float:
    """Least variance; the judge's own variance is taken over all it labelled."""
    spread = _variance(np.concatenate([f, alone]))
    if spread == 0 or not len(alone):
        return 0.0
    both = float(((y - y.mean()) * (f - f.mean())).sum()) / (len(y) - 1)
    return float(np.clip(both / ((1 + len(y) / len(alone)) * spread), 0.0, 1.0))


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _first(enough: Callable[[int], bool]) -> int:
    """The smallest number that is enough; the width falls as labels are added."""
    high = 2
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
