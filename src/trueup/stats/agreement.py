"""Agreement of people with each other and of a judge with people, less what chance would give.

Labels are anything that can be hashed and compared; `None` is an item that somebody did not judge.
A figure that the data cannot give (no item, or one category only, where chance agrees with
everything) is None, never zero.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from trueup.stats.intervals import Interval, wilson

__all__ = [
    "Level",
    "Ratings",
    "Reliability",
    "agreement_rate",
    "annotator_reliability",
    "cohen_kappa",
    "fleiss_kappa",
    "krippendorff_alpha",
    "majority",
]

Level = Literal["nominal", "ordinal", "interval"]
Ratings = Sequence[Sequence[Any]]
"""One row an annotator, one place an item; None where an annotator did not judge."""


class Reliability(NamedTuple):
    """How often one annotator says what most of the others say."""

    agreement: Interval | None
    num_items: int
    """Items this annotator judged and most of the others agree on."""


def majority(labels: Sequence[Any]) -> Any | None:
    """The label that more annotators gave than any other; None for a draw, or no labels."""
    counts = Counter(one for one in labels if one is not None).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None
    return counts[0][0]


def agreement_rate(
    first: Sequence[Any], second: Sequence[Any], *, confidence: float = 0.95
) -> Interval | None:
    """The share of items that both label alike, with Wilson's interval. None for no common item."""
    both = _both(first, second)
    return wilson(sum(a == b for a, b in both), len(both), confidence=confidence)


def cohen_kappa(
    first: Sequence[Any], second: Sequence[Any], *, confidence: float = 0.95
) -> Interval | None:
    """Agreement of two annotators beyond chance, in [-1, 1]; 0 is what chance gives.

        kappa = (p_o - p_e) / (1 - p_e)

    Cohen 1960, unweighted. The interval is the large-sample one of Fleiss, Cohen & Everitt 1969,
    Eq. 13: fair from some fifty items on. None where both use one category only.
    """
    both = _both(first, second)
    if not both:
        return None
    table = _table(both)
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    observed, expected = float(np.trace(table)), float(rows @ columns)
    if expected >= 1:
        return None
    kappa = (observed - expected) / (1 - expected)
    variance = _kappa_variance(table, rows, columns, kappa, expected) / len(both)
    half = float(scipy_stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt(max(variance, 0.0))
    return Interval(kappa, max(-1.0, kappa - half), min(1.0, kappa + half))


def _kappa_variance(
    table: np.ndarray, rows: np.ndarray, columns: np.ndarray, kappa: float, expected: float
) -> float:
    """Fleiss, Cohen & Everitt 1969, Eq. 13, times the number of items."""
    both = rows[None, :] + columns[:, None]  # p_.i + p_j. at (i, j)
    agree = np.diag(table) @ (1 - np.diag(both) * (1 - kappa)) ** 2
    differ = table * both**2
    rest = (1 - kappa) ** 2 * (differ.sum() - np.trace(differ))
    last = (kappa - expected * (1 - kappa)) ** 2
    return float((agree + rest - last) / (1 - expected) ** 2)


def fleiss_kappa(
    ratings: Ratings, *, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> Interval | None:
    """Agreement of several annotators beyond chance, each item judged by equally many.

    Fleiss 1971. Annotators need not be the same from item to item. Items that any annotator left
    out are left out; where those are many, use `krippendorff_alpha`. The interval is a percentile
    bootstrap over items, since the formula of the paper holds under no agreement only.
    """
    items = [item for item in zip(*ratings, strict=True) if None not in item]
    if not items or len(ratings) < 2:
        return None
    counts, times = _alike(_counts(items))

    def kappa(weights: np.ndarray) -> float | None:
        total, m = weights.sum(), len(ratings)
        agreed = ((counts**2).sum(axis=1) - m) @ weights / (total * m * (m - 1))
        shares = weights @ counts / (total * m)
        expected = float((shares**2).sum())
        return None if expected >= 1 else float((agreed - expected) / (1 - expected))

    return _bootstrap(kappa, times, confidence, num_resamples, seed)


def krippendorff_alpha(
    ratings: Ratings,
    *,
    level: Level = "nominal",
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """Reliability of any number of annotators, with items they did not all judge.

        alpha = 1 - D_o / D_e

    Krippendorff 2011, *Computing Krippendorff's alpha-reliability*. 1 is perfect, 0 is chance;
    at least 0.8 to rely on, 0.667 for tentative conclusions (Krippendorff 2004). Items that fewer
    than two judged say nothing and are left out. The interval is a percentile bootstrap over
    items (the paper resamples pairs of values, as if an item's pairs were independent).

    Args:
        ratings: labels for `nominal`; numbers for `ordinal` (their order alone counts) and
            `interval` (their distances count).
    """
    items = [[one for one in item if one is not None] for item in zip(*ratings, strict=True)]
    items = [item for item in items if len(item) >= 2]
    if not items:
        return None
    counts, times = _alike(_counts(items))
    sizes = counts.sum(axis=1)
    x = None
    if level == "interval":
        x = np.array(sorted({one for item in items for one in item}), float)

    def alpha(weights: np.ndarray) -> float | None:
        return _alpha(counts, sizes, weights, level, x)

    return _bootstrap(alpha, times, confidence, num_resamples, seed)


def _alpha(
    counts: np.ndarray, sizes: np.ndarray, weights: np.ndarray, level: Level, x: np.ndarray | None
) -> float | None:
    """`x` is what each category is worth, for `interval`."""
    totals = weights @ counts
    n = float(totals.sum())
    if level == "nominal":
        within, overall = sizes**2 - (counts**2).sum(axis=1), n**2 - float(totals @ totals)
    else:
        if x is None:  # squared differences of middle ranks are the ordinal metric itself
            x = np.cumsum(totals) - totals / 2
        x = x - (totals @ x) / n  # differences do not change, and cancel less
        within = 2 * (sizes * (counts @ x**2) - (counts @ x) ** 2)
        overall = 2 * n * float(totals @ x**2)
    if overall <= 0 or n <= 1:
        return None
    observed = float(weights @ (within / (sizes - 1))) / n
    return 1 - observed / (overall / (n * (n - 1)))


def annotator_reliability(ratings: Ratings, *, confidence: float = 0.95) -> list[Reliability]:
    """Each annotator against the majority of all the others, left out of it themselves.

    Items on which the others are split, or that nobody else judged, say nothing of anyone.
    """
    found = []
    for place, row in enumerate(ratings):
        others = [other for at, other in enumerate(ratings) if at != place]
        most = [majority(item) for item in zip(*others, strict=True)] if others else []
        agreed = [a == b for a, b in zip(row, most, strict=False) if None not in (a, b)]
        found.append(
            Reliability(wilson(sum(agreed), len(agreed), confidence=confidence), len(agreed))
        )
    return found


# --- inside ---------------------------------------------------------------------------------------


def _both(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, Any]]:
    """The items that both judged."""
    return [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]


def _table(both: Sequence[tuple[Hashable, Hashable]]) -> np.ndarray:
    """Joint shares of two annotators' labels, shape (categories, categories)."""
    names = list(dict.fromkeys(one for pair in both for one in pair))
    place = {name: at for at, name in enumerate(names)}
    table = np.zeros((len(names), len(names)))
    for a, b in both:
        table[place[a], place[b]] += 1
    return table / len(both)


def _counts(items: Sequence[Sequence[Any]]) -> np.ndarray:
    """How often each category was named for each item, shape (items, categories), in order."""
    names = {one for item in items for one in item}
    try:
        order = sorted(names)
    except TypeError:  # labels of several types have no order, and nominal needs none
        order = sorted(names, key=repr)
    place = {name: at for at, name in enumerate(order)}
    counts = np.zeros((len(items), len(order)))
    for at, item in enumerate(items):
        for one in item:
            counts[at, place[one]] += 1
    return counts


def _alike(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items that differ in their counts, and how many there are of each: 100,000 items that two
    people put into four categories are ten of them."""
    return np.unique(counts, axis=0, return_counts=True)


def _bootstrap(
    figure: Any, times: np.ndarray, confidence: float, num_resamples: int, seed: int
) -> Interval | None:
    """A figure of items, each so many times, with its percentile interval; resamples in which it
    does not exist are left out. None where it does not exist for the items themselves."""
    num_items = int(times.sum())
    estimate = figure(times.astype(float))
    if estimate is None:
        return None
    random = np.random.default_rng(seed)
    found = []
    for _ in range(num_resamples):
        weights = random.multinomial(num_items, times / num_items)
        if (value := figure(weights.astype(float))) is not None:
            found.append(value)
    if not found:
        return None
    low, high = np.quantile(found, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(estimate), float(low), float(high))
