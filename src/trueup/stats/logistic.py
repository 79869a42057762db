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
"""On every coefficient: there is always a solution; where the data have one it is not felt."""


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
    doubt: Floats
    """(m, k): how far each row of the prior would move the coefficients by one standard deviation
    of its outcome; no rows without a prior."""

    @property
    def covariance(self) -> Floats:
        """CR1 over clusters, with the factor G / (G - 1), and the prior's own doubt; (k, k)."""
        groups = len(self.influence)
        robust = groups / max(groups - 1, 1) * self.influence.T @ self.influence
        return robust + self.doubt.T @ self.doubt


def fit_logistic(
    x: Floats,
    y: Floats,
    clusters: NDArray[np.intp],
    *,
    weights: Floats | None = None,
    effect_sd: float | None = None,
    prior: Floats | None = None,
) -> LogisticFit:
    """Fit  logit P(y = 1) = x beta + effect of the cluster  by maximum (penalised) likelihood.

    Args:
        x: (n, k); a constant is a column like any other.
        y: (n,) in [0, 1]; a tie is 1/2.
        clusters: (n,) numbered from 0; errors are robust to what its members share.
        weights: (n,) positive.
        effect_sd: standard deviation of the clusters' effects around 0; None is no effects.
        prior: (m, k): at each of these rows half a success and half a failure are added. Without
            them a side that always wins has no finite coefficient and no error.

    The prior for one proportion is the adjusted logit of Gart 1966, log (s + 1/2) / (f + 1/2) with
    variance 1 / (s + 1/2) + 1 / (f + 1/2); for regression, the log-F(1, 1) prior of Greenland &
    Mansournia 2015. As there, what is added counts in the errors, too, as the half outcomes that
    it is: after outcomes that all agree they are all the doubt there is.

    The effects are profiled out: each is the best for its cluster at the given coefficients, so
    what is left is an estimating equation with a term a cluster, and the sandwich is the usual
    one (Liang & Zeger 1986) of those terms.
    """
    w = np.ones(len(y)) if weights is None else weights
    added = np.zeros((0, x.shape[1])) if prior is None else prior
    problem = _Problem(x, y, w, clusters, None if effect_sd is None else 1 / effect_sd**2, added)
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
    chance = expit(added @ beta)
    spread = np.sqrt((chance**2 + (1 - chance) ** 2) / 2)
    doubt = np.linalg.solve(at.curvature, (added * spread[:, None]).T).T.astype(float)
    return LogisticFit(beta, effects, influence, at.slopes, doubt)


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
    precision: float | None
    """Of the effects; None holds them at 0."""
    added: Floats
    """(m, k): where half a success and half a failure are added."""

    def at(self, beta: Floats, effects: Floats) -> _Terms:
        p = expit(self.x @ beta + effects[self.clusters])
        residual, information = self.w * (self.y - p), self.w * p * (1 - p)
        parts = sum_of_clusters(residual[:, None] * self.x, self.clusters)
        chance = expit(self.added @ beta)
        score = parts.sum(axis=0) + self.added.T @ (0.5 - chance) - RIDGE * beta
        curvature = (self.x * information[:, None]).T @ self.x + RIDGE * np.eye(len(beta))
        curvature += (self.added * (chance * (1 - chance))[:, None]).T @ self.added
        slopes, pull = np.zeros_like(parts), np.zeros_like(effects)
        if self.precision is not None:
            cross = sum_of_clusters(information[:, None] * self.x, self.clusters)
            own = sum_of_clusters(information, self.clusters) + self.precision
            slopes = -cross / own[:, None]
            pull = (sum_of_clusters(residual, self.clusters) - self.precision * effects) / own
            score = score - cross.T @ pull
            curvature = curvature + cross.T @ slopes
        return _Terms(score, curvature, parts, slopes, pull)
