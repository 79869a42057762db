"""The numbers behind a promotion. What has no answer is None, never zero.

scipy has the distributions; what it lacks is written here, from the papers named.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

__all__ = [
    "Interval",
    "betting_evalue",
    "mean_interval",
    "paired_difference",
    "ratio_interval",
    "smallest_useful_n",
    "wilson",
]


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

    One value a cluster: average the samples of a prompt first, or the interval is too narrow.
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

    None where a mean is not positive or there are fewer than two pairs.
    """
    n = len(ours)
    if n < 2 or len(theirs) != n:
        return None
    x, y = np.asarray(ours, float), np.asarray(theirs, float)
    if x.mean() <= 0 or y.mean() <= 0:
        return None
    # linearise log(mean x / mean y): each pair contributes x/mean x - y/mean y
    parts = x / x.mean() - y / y.mean()
    half = (
        float(np.std(parts, ddof=1))
        / math.sqrt(n)
        * float(scipy_stats.t.ppf(0.5 + confidence / 2, n - 1))
    )
    ratio = float(x.mean() / y.mean())
    return Interval(ratio, ratio * math.exp(-half), ratio * math.exp(half))


def betting_evalue(outcomes: Sequence[float]) -> float:
    """Evidence that the mean of outcomes in [0, 1] is above 1/2, valid at any stopping time.

        E_t = average over bets l of prod_i (1 + l (x_i - 1/2)),   l on a grid in (0, 2)

    Waudby-Smith & Ramdas 2023, arXiv:2010.09686, with a uniform mixture in place of their
    adaptive bets. A win is 1, a tie 1/2, a loss 0; outcomes within a prompt are averaged first.
    Under "not better" the chance that E ever reaches 1/a is at most a, however often one looks.
    E of no outcomes is 1: no evidence either way.
    """
    bets = (np.arange(100) + 0.5) / 50
    values = np.asarray(outcomes, float)
    logs = np.log1p(bets[:, None] * (values[None, :] - 0.5)).sum(axis=1)
    peak = logs.max() if len(values) else 0.0
    log_mean = peak + math.log(np.exp(logs - peak).mean())
    return math.exp(min(log_mean, 709.0))  # JSON has no infinity
