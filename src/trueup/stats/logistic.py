"""Logistic regression with soft labels, an optional effect of each cluster, and errors over them.

statsmodels has fractional labels, and clusters; it has no effect of each cluster held by a prior
together with errors robust to them, which is what a prompt's difficulty needs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from trueup.stats.clusters import sum_of_clusters

__all__ = ["LogisticFit", "fit_logistic"]

Floats = NDArray[np.float64]

TOLERANCE = 1e-10
MOST_STEPS = 100
RIDGE = 1e-6
"""On every coefficient: a side that always wins has a finite one; elsewhere it is not felt."""


class LogisticFit(NamedTuple):
    """What the data say, and what each cluster had to do with it."""

    beta: Floats
    """Coefficients (k,)."""
    effects: Floats
    """Of each cluster (G,); all 0 where none was asked for."""
    influence: Floats
    """(G, k): how far each cluster moved the coefficients, to first order; rows sum to about 0.
    The sum of their outer products is the cluster-robust (sandwich) covariance."""
    slopes: Floats
    """(G, k): how an effect answers to the coefficients, d effect / d beta."""

    @property
    def covariance(self) -> Floats:
        """CR1 over clusters, with the factor G / (G - 1); (k, k)."""
        groups = len(self.influence)
        return groups / max(groups - 1, 1) * self.influence.T @ self.influence


def fit_logistic(
    x: Floats,
    y: Floats,
    clusters: NDArray[np.intp],
    *,
    weights: Floats | None = None,
    effect_sd: float | None = None,
) -> LogisticFit:
    """Fit  logit P(y = 1) = x beta + effect of the cluster  by maximum (penalised) likelihood.

    Args:
        x: (n, k); a constant is a column like any other.
        y: (n,) in [0, 1]; a tie is 1/2.
        clusters: (n,) numbered from 0; errors are robust to what its members share.
        weights: (n,) positive.
        effect_sd: standard deviation of the clusters' effects around 0; None is no effects.

    The effects are profiled out: each is the best for its cluster at the given coefficients, so
    what is left is an estimating equation with a term a cluster, and the sandwich is the usual
    one (Liang & Zeger 1986) of those terms.
    """
    w = np.ones(len(y)) if weights is None else weights
    problem = _Problem(x, y, w, clusters, None if effect_sd is None else 1 / effect_sd**2)
    beta, effects = np.zeros(x.shape[1]), np.zeros(int(clusters.max()) + 1)
    at = problem.at(beta, effects)
    for _ in range(MOST_STEPS):
        move = np.linalg.solve(at.curvature, at.score)
        shift = at.pull + at.slopes @ move
        size = max(np.abs(move).max(), np.abs(shift).max())
        step = min(1.0, 2.0 / size) if size else 1.0  # a logit of 2 at most: Newton may overshoot
        beta, effects = beta + step * move, effects + step * shift
        at = problem.at(beta, effects)
        if size < TOLERANCE:
            break
    influence = np.linalg.solve(at.curvature, at.parts.T).T.astype(float)
    return LogisticFit(beta, effects, influence, at.slopes)


class _Terms(NamedTuple):
    """The likelihood at a point, its effects profiled out."""

    score: Floats
    curvature: Floats
    parts: Floats
    """(G, k): the score of each cluster."""
    slopes: Floats
    pull: Floats
    """(G,): how far each effect is from its best."""


class _Problem(NamedTuple):
    x: Floats
    y: Floats
    w: Floats
    clusters: NDArray[np.intp]
    prior: float | None
    """Precision of the effects; None holds them at 0."""

    def at(self, beta: Floats, effects: Floats) -> _Terms:
        p = expit(self.x @ beta + effects[self.clusters])
        residual, information = self.w * (self.y - p), self.w * p * (1 - p)
        parts = sum_of_clusters(residual[:, None] * self.x, self.clusters)
        score = parts.sum(axis=0) - RIDGE * beta
        curvature = (self.x * information[:, None]).T @ self.x + RIDGE * np.eye(len(beta))
        slopes, pull = np.zeros_like(parts), np.zeros_like(effects)
        if self.prior is not None:
            cross = sum_of_clusters(information[:, None] * self.x, self.clusters)
            own = sum_of_clusters(information, self.clusters) + self.prior
            slopes = -cross / own[:, None]
            pull = (sum_of_clusters(residual, self.clusters) - self.prior * effects) / own
            score = score - cross.T @ pull
            curvature = curvature + cross.T @ slopes
        return _Terms(score, curvature, parts, slopes, pull)
