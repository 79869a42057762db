"""Two sets of texts: were they written alike?

A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv:1610.06545) asks how well a small
classifier tells them apart on texts it has not seen; the maximum mean discrepancy (Gretton et al.
2012, JMLR 13) compares means in a kernel's space and has a p-value by permutation. The first finds
any difference that its features can show, the second needs no training.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from trueup.models.embedder import Embedder
from trueup.stats import Interval

__all__ = ["MMD", "TwoSample", "auc_interval", "classifier_test", "mmd", "simple_features"]

FOLDS = 5
STRENGTH = 10.0  # of the classifier: inverse of its ridge penalty
Z95 = NormalDist().inv_cdf(0.975)


class TwoSample(NamedTuple):
    """How well two sets of texts are told apart."""

    auc: Interval
    """0.5 is not at all, 1 always."""
    scores: list[float]
    """For each text of the first set, then of the second, the chance that it is of the first, by
    a classifier that did not see its group."""


class MMD(NamedTuple):
    """Squared maximum mean discrepancy, unbiased, so that it may be below zero; and its p-value."""

    squared: float
    p_value: float


def classifier_test(
    first: Sequence[str],
    second: Sequence[str],
    embedder: Embedder,
    *,
    groups: Sequence[int] | None = None,
    seed: int = 0,
) -> TwoSample | None:
    """Logistic regression on embeddings and simple features, cross-validated in five folds.

    Args:
        groups: of each text, first set first: texts of one group, such as the answers to one
            prompt, never stand on both sides of a fold. By default each text is its own.

    Returns:
        None where a set or the groups are fewer than ten: no folds to learn from. The interval is
        DeLong's, for the texts at hand: it does not count that other folds give other classifiers.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    texts = [*first, *second]
    grouped = np.asarray(groups if groups is not None else range(len(texts)))
    if min(len(first), len(second)) < 10 or len(set(grouped.tolist())) < 10:
        return None
    x = np.hstack([embedder(texts), simple_features(texts)])
    y = np.array([1] * len(first) + [0] * len(second))
    scores = np.zeros(len(texts))
    folds = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(x, y, grouped):
        model = LogisticRegression(C=STRENGTH, max_iter=1000)
        model.fit(x[train], y[train])
        scores[test] = model.predict_proba(x[test])[:, 1]
    return TwoSample(auc_interval(scores[y == 1], scores[y == 0]), scores.tolist())


def simple_features(texts: Sequence[str]) -> np.ndarray:
    """Length, and what a text is made of; shape (N, 6), each standardised over the texts."""
    rows = [_features(one) for one in texts]
    x = np.array(rows, float).reshape(-1, 6)
    spread = x.std(axis=0)
    # of the size of an embedding's coordinates taken together, so that neither drowns the other
    return (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0) / 6**0.5


def _features(text: str) -> tuple[float, ...]:
    words, size = text.split(), max(1, len(text))
    return (
        np.log1p(len(words)),
        len(set(words)) / max(1, len(words)),
        len(text) / max(1, len(words)),
        sum(char.isdigit() for char in text) / size,
        sum(not (char.isalnum() or char.isspace()) for char in text) / size,
        float(text.count("\n")),
    )


def auc_interval(first: np.ndarray, second: np.ndarray) -> Interval:
    """The chance that a score of the first set is above one of the second, ties a half, with the
    95 % interval of DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44, cut to [0, 1]."""
    above = (first[:, None] > second[None, :]) + 0.5 * (first[:, None] == second[None, :])
    auc = float(above.mean())
    variance = _variance(above.mean(axis=1)) + _variance(above.mean(axis=0))
    half = Z95 * variance**0.5
    return Interval(auc, max(0.0, auc - half), min(1.0, auc + half))


def _variance(parts: np.ndarray) -> float:
    return float(parts.var(ddof=1)) / len(parts)


def mmd(
    first_ND: np.ndarray, second_ND: np.ndarray, *, permutations: int = 200, seed: int = 0
) -> MMD | None:
    """With a Gaussian kernel whose width is the median distance; None for a set of fewer than two.

    The p-value is (1 + permutations at least as large) / (1 + permutations): valid at any number.
    """
    n, m = len(first_ND), len(second_ND)
    if min(n, m) < 2:
        return None
    x = np.concatenate([first_ND, second_ND]).astype(float)
    squares = (x * x).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * x @ x.T, 0.0)
    width = float(np.median(distances[np.triu_indices(n + m, 1)]))
    kernel = np.exp(-distances / (width or 1.0))
    np.fill_diagonal(kernel, 0.0)
    chance, side = np.random.default_rng(seed), np.repeat([True, False], [n, m])
    seen = _squared(kernel, side)
    others = [_squared(kernel, chance.permutation(side)) for _ in range(permutations)]
    # equal texts give equal values but for rounding
    as_large = sum(one >= seen - 1e-12 for one in others)
    return MMD(seen, (1 + as_large) / (1 + permutations))


def _squared(kernel: np.ndarray, side: np.ndarray) -> float:
    """Gretton et al. 2012, Eq. 3: means within either set less twice the mean between."""
    n, m = int(side.sum()), int((~side).sum())
    ours = kernel @ side
    within = float(ours[side].sum()) / (n * (n - 1))
    between = float(ours[~side].sum()) / (n * m)
    others = float((kernel.sum(axis=1) - ours)[~side].sum()) / (m * (m - 1))
    return within + others - 2 * between
