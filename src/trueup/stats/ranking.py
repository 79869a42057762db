"""How well scores put the positive rows first, and how far chances can be believed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueup.stats.intervals import Interval

__all__ = [
    "Ranking",
    "auroc",
    "average_precision",
    "brier",
    "calibration_error",
    "ranking",
    "ranking_difference",
    "resampled_weights",
]

Floats = NDArray[np.float64]
CHUNK = 4_000_000  # weights in memory at once


class Ranking(NamedTuple):
    """Area under the ROC curve, and under the precision-recall curve as average precision."""

    auroc: Interval
    auprc: Interval


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """The chance that a positive row's score is above a negative one's, ties a half."""
    return float(_areas(scores, positive, np.ones((1, np.size(scores))))[0][0])


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float:
    """Sum over thresholds of (recall gained) * precision, as scikit-learn has it: no interpolation
    between thresholds. Scores without any sense give the share of positive rows."""
    return float(_areas(scores, positive, np.ones((1, np.size(scores))))[1][0])


def ranking(scores: ArrayLike, positive: ArrayLike, weights: Floats) -> Ranking:
    """Both areas with 95 % percentile intervals.

    Args:
        weights: how often each resample holds each row, see `resampled_weights`.
    """
    at = _areas(scores, positive, np.ones((1, np.size(scores))))
    again = _areas(scores, positive, weights)
    return Ranking(*(_interval(one[0], many) for one, many in zip(at, again, strict=True)))


def ranking_difference(
    ours: ArrayLike, theirs: ArrayLike, positive: ArrayLike, weights: Floats
) -> Ranking:
    """Ours less theirs, on the same rows and the same resamples of them."""
    ones = np.ones((1, np.size(ours)))
    at = zip(_areas(ours, positive, ones), _areas(theirs, positive, ones), strict=True)
    again = zip(_areas(ours, positive, weights), _areas(theirs, positive, weights), strict=True)
    return Ranking(
        *(_interval((a - b)[0], c - d) for (a, b), (c, d) in zip(at, again, strict=True))
    )


def resampled_weights(
    positive: ArrayLike,
    groups: Sequence[object] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Floats:
    """How often each resample of a stratified bootstrap holds each row; shape (resamples, rows).

    Groups are drawn whole, those with a positive row apart from those without one, so that every
    resample has both. By default each row is a group.
    """
    y = np.asarray(positive, bool)
    names = [str(g) for g in groups] if groups is not None else [str(n) for n in range(len(y))]
    at = np.unique(np.asarray(names), return_inverse=True)[1]
    has = np.zeros(int(at.max()) + 1, bool)
    np.logical_or.at(has, at, y)
    chance = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(has)))
    for stratum in (has, ~has):
        n = int(stratum.sum())
        if n:
            counts[:, stratum] = chance.multinomial(n, [1 / n] * n, size=resamples)
    return counts[:, at]


def brier(chances: ArrayLike, positive: ArrayLike) -> float:
    """Mean squared error of chances (Brier 1950)."""
    p, y = np.asarray(chances, float), np.asarray(positive, float)
    return float(((p - y) ** 2).mean())


def calibration_error(chances: ArrayLike, positive: ArrayLike, *, bins: int = 10) -> float:
    """Mean distance of chance and share over bins of equal size, weighted by size (ECE).

    A calibrated forecast has about sqrt(bins * p (1 - p) / n) by chance alone, not 0.
    """
    p, y = np.asarray(chances, float), np.asarray(positive, float)
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(i) * abs(p[i].mean() - y[i].mean()) for i in parts) / len(p))


def _areas(scores: ArrayLike, positive: ArrayLike, weights: Floats) -> tuple[Floats, Floats]:
    """Both areas of each row of weights."""
    s, y = np.asarray(scores, float), np.asarray(positive, bool)
    order = np.argsort(-s, kind="stable")
    s, y = s[order], y[order]
    ends = np.flatnonzero(np.append(s[1:] != s[:-1], True))  # equal scores come together
    step = max(1, CHUNK // max(1, len(s)))
    found = [
        _areas_of(weights[at : at + step][:, order], y, ends) for at in range(0, len(weights), step)
    ]
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


def _areas_of(w: Floats, y: NDArray[np.bool_], ends: NDArray[np.intp]) -> tuple[Floats, Floats]:
    hits = np.cumsum(w * y, axis=1)[:, ends]
    misses = np.cumsum(w * ~y, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    lost = np.diff(misses, axis=1, prepend=0)
    positives, negatives = hits[:, -1], misses[:, -1]
    roc = ((hits - gained / 2) * lost).sum(axis=1) / (positives * negatives)
    seen = hits + misses
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    return roc, (gained * precision).sum(axis=1) / positives


def _interval(estimate: float, resampled: Floats) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(estimate), float(low), float(high))
