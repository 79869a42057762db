"""Estimates with their intervals. What has no answer is None, never zero.

scipy has the distributions; what it lacks is written here, from the papers named.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

__all__ = [
    "Interval",
    "mean_interval",
    "paired_difference",
    "ratio_interval",
    "smallest_useful_n",
    "wilson",
    "wilson_at",
]

Z95 = 1.959963984540054
"""The 97.5 % quantile of a normal distribution."""

MOST_INFLATION = 2.0
"""How far a pair that holds most of a sum may be blown up in the error of a ratio."""


class Interval(NamedTuple):
    """An estimate with its confidence interval, in the unit of the estimate."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval | None:
    """A proportion with Wilson's score interval (Wilson 1927). None for n = 0."""
    if n == 0:
        return None
    low, high = scipy_stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(low), float(high))


def wilson_at(share: float, n: float, *, quantile: float = Z95) -> Interval:
    """Wilson's interval around a share of `n` outcomes, which need not be a whole number.

    Args:
        n: the effective number of outcomes: as many independent ones know as much.
        quantile: of a normal distribution, or of Student's t where `n` is itself estimated.
    """
    added = quantile * quantile / n
    middle = (share + added / 2) / (1 + added)
    spread = max(0.0, share * (1 - share)) / n + added / (4 * n)
    half = quantile / (1 + added) * math.sqrt(spread)
    # the share itself is inside, which rounding may deny to 0 and 1
    low, high = max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
    return Interval(share, low, high)


def paired_difference(
    ours: Sequence[bool], theirs: Sequence[bool], *, confidence: float = 0.95
) -> Interval | None:
    """Difference of two pass rates on the same items, ours minus theirs, in [-1, 1].

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", method 10: Wilson intervals combined through the correlation of the
    two. Unlike a bootstrap it has a width when no item changed. None for no items.
    """
    n = len(ours)
    if n == 0 or len(theirs) != n:
        return None
    a = sum(o and t for o, t in zip(ours, theirs, strict=True))
    b = sum(o and not t for o, t in zip(ours, theirs, strict=True))
    c = sum(t and not o for o, t in zip(ours, theirs, strict=True))
    d = n - a - b - c
    first, second = wilson(a + b, n, confidence=confidence), wilson(a + c, n, confidence=confidence)
    assert first is not None and second is not None
    phi = _phi(a, b, c, d)
    gap = first.estimate - second.estimate
    down1, up1 = first.estimate - first.low, first.high - first.estimate
    down2, up2 = second.estimate - second.low, second.high - second.estimate
    low = gap - math.sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
    high = gap + math.sqrt(max(0.0, up1**2 - 2 * phi * up1 * down2 + down2**2))
    return Interval(gap, low, high)


def _phi(a: int, b: int, c: int, d: int) -> float:
    """Correlation of the pairs, continuity-corrected as Newcombe's method 10 asks."""
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    cross = a * d - b * c
    n = a + b + c + d
    corrected = max(cross - n / 2, 0.0) if cross > 0 else cross
    return corrected / math.sqrt(product)


def smallest_useful_n(margin: float, *, pass_rate: float = 0.5) -> int:
    """How many items it takes before an unchanged model could clear `-margin`.

    With fewer, even a candidate that passes exactly the champion's items is `unknown`. Never less
    than it takes for a loss of `margin` to leave no trace in 2.5 % of cases: log(0.025) /
    log(1 - margin), the exact bound that the interval's approximation undercuts.
    """
    exact = math.ceil(math.log(0.025) / math.log1p(-margin))
    for n in range(max(4, exact), 10_000):
        k = round(n * pass_rate)
        same = [True] * k + [False] * (n - k)
        interval = paired_difference(same, same)
        if interval and interval.low > -margin:
            return n
    return 10_000


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """A mean with Student's t interval. None for fewer than two values: no spread, no interval.

    One value a cluster: average the samples of a prompt first, or the interval is too narrow. For
    values without bounds: of win rates near 0 or 1 it has no width where all agree and passes
    the bounds where nearly all do; `cluster_share` is for those.
    """
    n = len(values)
    if n < 2:
        return None
    mean = float(np.mean(values))
    half = (
        float(np.std(values, ddof=1))
        / math.sqrt(n)
        * float(scipy_stats.t.ppf(0.5 + confidence / 2, n - 1))
    )
    return Interval(mean, mean - half, mean + half)


def ratio_interval(
    ours: Sequence[float], theirs: Sequence[float], *, confidence: float = 0.95
) -> Interval | None:
    """Ratio of the means of paired positive values, by the delta method on the logarithm.

        half = t * sqrt(sum of e_i^2 / (n (n - 1))),   e_i = (a_i - b_i) / (1 - max(a_i, b_i) / n)

    with a_i, b_i the values over their means, and t Student's with n - 1 degrees of freedom. The
    divisor is what HC3 is to regression (MacKinnon & White 1985), near the jackknife: a pair that
    holds much of a sum pulls the mean to itself, and without it long answers are taken for usual
    ones where there are few. Departure: it is one half at least, so that a mean that rests on a
    single value still has an interval.

    None where a mean is not positive or there are fewer than two pairs.
    """
    n = len(ours)
    if n < 2 or len(theirs) != n:
        return None
    x, y = np.asarray(ours, float), np.asarray(theirs, float)
    if x.mean() <= 0 or y.mean() <= 0:
        return None
    a, b = x / x.mean(), y / y.mean()
    errors = (a - b) / np.maximum(1 - np.maximum(a, b) / n, 1 / MOST_INFLATION)
    quantile = float(scipy_stats.t.ppf(0.5 + confidence / 2, n - 1))
    half = quantile * math.sqrt(float(errors @ errors) / (n * (n - 1)))
    ratio = float(x.mean() / y.mean())
    return Interval(ratio, ratio * math.exp(-half), ratio * math.exp(half))
