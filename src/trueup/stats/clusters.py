"""Means of values that come in clusters: several samples of one prompt are not several prompts.

Ignoring it makes an interval too narrow by as much as the samples of a prompt agree. Strata are
another matter: topics that the suite was filled from on purpose, whose shares are known.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from trueup.stats.intervals import Interval, wilson_at

__all__ = [
    "cluster_difference",
    "cluster_mean",
    "cluster_share",
    "stratum_weights",
    "sum_of_clusters",
]

Floats = NDArray[np.float64]


class _Sums(NamedTuple):
    """Deviations summed within each cluster, and the stratum of each cluster as a number."""

    parts: Floats
    stratum: NDArray[np.intp]


class _Mean(NamedTuple):
    """A weighted mean, its variance, and what that variance is known by."""

    mean: float
    variance: float
    freedom: int
    """Clusters less strata."""
    clusters: float
    """Effective number of clusters, (sum w)^2 / sum w^2 over their weights; Kish 1965."""


def cluster_mean(
    values: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    strata: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> Interval | None:
    """A weighted mean with errors robust to clusters, and to strata where there are any.

        V = sum over strata s of  n_s / (n_s - 1) * sum over clusters g in s of (u_g - mean_s u)^2
        u_g = sum over i in g of w_i (y_i - mean) / sum w

    One stratum: CR1 of Liang & Zeger 1986 with the factor G / (G - 1), which is what statsmodels
    gives for a constant. Several: the linearised variance of survey sampling (Cochran 1977,
    section 5A). Student's t with G - S degrees of freedom, G clusters and S strata. The only
    cluster of a stratum is measured from the mean of all, which is cautious: alone it has no
    spread to show.

    Args:
        clusters: of each value, such as its prompt; by default each value is its own.
        strata: of each value; a cluster lies in one stratum.
        weights: positive; see `stratum_weights`.

    Returns:
        None where there are fewer than two clusters, or no degrees of freedom.
    """
    found = _mean(values, clusters, strata, weights)
    if found is None:
        return None
    half = math.sqrt(found.variance) * _student(confidence, found.freedom)
    return Interval(found.mean, found.mean - half, found.mean + half)


def cluster_share(
    values: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    strata: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> Interval | None:
    """A weighted mean of values in [0, 1], such as a win rate: it stays within, and keeps a width.

        deff = (V + c) / (p (1 - p) / G + c),   c = (p^2 + (1 - p)^2) / (2 G^2)

    Wilson's interval at G / deff outcomes, with the mean p and the variance V of `cluster_mean`, G
    clusters (effective ones, where they weigh unlike), and Student's t for the normal quantile.
    The design effect (Kish 1965, Section 8.2) is the variance over that of G independent wins and
    losses; less than 1 for ties and for samples of a prompt that differ. An interval at the
    effective number is what Korn & Graubard 1998 propose, with that of Clopper and Pearson.
    Departure: c, half a win and half a loss on either side of the design effect, for V alone says
    that 5 ties in a row leave no doubt.

    Few clusters make it slightly cautious: see the table in docs/statistics.md.

    Args:
        values: in [0, 1]; a tie is 1/2.

    Returns:
        None where `cluster_mean` is None.
    """
    found = _mean(values, clusters, strata, weights)
    if found is None:
        return None
    p, groups = found.mean, found.clusters
    half_each = (p**2 + (1 - p) ** 2) / (2 * groups**2)
    effect = (found.variance + half_each) / (p * (1 - p) / groups + half_each)
    return wilson_at(p, groups / effect, quantile=_student(confidence, found.freedom))


def cluster_difference(
    ours: Sequence[float],
    our_clusters: Sequence[str],
    theirs: Sequence[float],
    their_clusters: Sequence[str],
    *,
    confidence: float = 0.95,
) -> Interval | None:
    """Difference of two means whose values share clusters: two models on the same prompts.

    CR1 as of a regression on a constant and a dummy, G / (G - 1) * (N - 1) / (N - 2), Student's t
    with G - 1 degrees of freedom. None where a side is empty or there are fewer than two clusters.
    """
    if not len(ours) or not len(theirs):
        return None
    x, y = np.asarray(ours, float), np.asarray(theirs, float)
    gap = float(x.mean() - y.mean())
    deviations = np.concatenate([(x - x.mean()) / len(x), (y.mean() - y) / len(y)])
    sums = _sums(deviations, [*our_clusters, *their_clusters], None)
    n, groups = len(deviations), len(sums.parts)
    if groups < 2 or n < 3:
        return None
    variance = groups / (groups - 1) * (n - 1) / (n - 2) * float(sums.parts @ sums.parts)
    half = math.sqrt(variance) * _student(confidence, groups - 1)
    return Interval(gap, gap - half, gap + half)


def stratum_weights(strata: Sequence[str], shares: Mapping[str, float]) -> list[float]:
    """A weight a value, so that each stratum counts by its share and not by its number of values.

    Args:
        shares: of each stratum in what the suite stands for, in any unit; a stratum without one
            keeps the share it has in the suite.
    """
    names, counts = np.unique(np.asarray(strata, str), return_counts=True)
    have = dict(zip(names.tolist(), (counts / counts.sum()).tolist(), strict=True))
    asked = sum(shares.get(name, 0.0) for name in have)
    left = sum(share for name, share in have.items() if name not in shares)
    scale = (1 - left) / asked if asked else 1.0
    return [shares[one] * scale / have[one] if one in shares else 1.0 for one in strata]


def sum_of_clusters(parts: Floats, clusters: NDArray[np.intp]) -> Floats:
    """Rows of `parts` (n,) or (n, k) added up within each cluster, numbered from 0."""
    if parts.ndim == 1:
        return np.bincount(clusters, weights=parts).astype(float)
    columns = [np.bincount(clusters, weights=column) for column in parts.T]
    return np.column_stack(columns).astype(float)


def _student(confidence: float, freedom: int) -> float:
    return float(scipy_stats.t.ppf(0.5 + confidence / 2, freedom))


def _mean(
    values: Sequence[float],
    clusters: Sequence[str] | None,
    strata: Sequence[str] | None,
    weights: Sequence[float] | None,
) -> _Mean | None:
    """None for fewer than two clusters, or no degrees of freedom."""
    if not len(values):
        return None
    y = np.asarray(values, float)
    w = np.ones_like(y) if weights is None else np.asarray(weights, float)
    w = w / w.sum()
    mean = float(w @ y)
    sums = _sums(w * (y - mean), clusters, strata)
    freedom = len(sums.parts) - (int(sums.stratum.max()) + 1 if strata is not None else 1)
    if len(sums.parts) < 2 or freedom < 1:
        return None
    shares = _sums(w, clusters, None).parts
    return _Mean(mean, _variance(sums), freedom, 1 / float(shares @ shares))


def _sums(
    deviations: Floats, clusters: Sequence[str] | None, strata: Sequence[str] | None
) -> _Sums:
    at = (
        np.arange(len(deviations))
        if clusters is None
        else np.unique(np.asarray(clusters, str), return_inverse=True)[1]
    )
    parts = sum_of_clusters(deviations, at)
    stratum = np.zeros(len(parts), np.intp)
    if strata is not None:
        stratum[at] = np.unique(np.asarray(strata, str), return_inverse=True)[1]
    return _Sums(parts, stratum)


def _variance(sums: _Sums) -> float:
    total = 0.0
    for one in range(int(sums.stratum.max()) + 1):
        parts = sums.parts[sums.stratum == one]
        n = len(parts)
        if n == 1:
            total += float(parts[0] ** 2)
        elif n:
            total += n / (n - 1) * float(((parts - parts.mean()) ** 2).sum())
    return total
