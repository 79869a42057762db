"""A flagger learned from labels: what weak answers look like here.

Logistic regression over the columns, with and without the vectors, or small gradient-boosted trees
over the columns. Which, and how strong, is chosen inside the rows it learns from, by average
precision on folds of them; the same folds' scores calibrate it. A prompt never stands on both
sides of a fold.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from trueup.errors import DataError
from trueup.flag.calibrate import Calibration, fit_calibration, sigmoid
from trueup.flag.features import COLUMNS, Known
from trueup.flag.trees import Tree, fit_trees, tree_margins
from trueup.records import Value, content_hash
from trueup.stats.ranking import average_precision, brier, calibration_error

__all__ = [
    "INNER_FOLDS",
    "RECIPES",
    "Learned",
    "Recipe",
    "fit",
    "folds_of",
    "inner_margins",
    "learn",
]

INNER_FOLDS = 4


class Recipe(NamedTuple):
    """A kind of model and how freely it may fit."""

    kind: Literal["logistic", "boosting"]
    strength: float
    """Inverse of the ridge penalty; for trees, their number."""
    with_vectors: bool = False

    @property
    def name(self) -> str:
        what = "C" if self.kind == "logistic" else "trees"
        return (
            f"{self.kind}{' with vectors' if self.with_vectors else ''}, {what} {self.strength:g}"
        )


RECIPES = (
    Recipe("logistic", 0.1),
    Recipe("logistic", 1.0),
    Recipe("logistic", 10.0),
    Recipe("logistic", 0.3, True),
    Recipe("logistic", 3.0, True),
    Recipe("boosting", 40),
    Recipe("boosting", 120),
)


class Learned(Value):
    """A flagger as plain numbers: JSON in, JSON out, no code is loaded with it."""

    kind: Literal["logistic", "boosting"]
    recipe: str
    columns: tuple[str, ...] = COLUMNS
    embedder: str = ""
    """Id of what made the vectors; empty where they are not looked at."""
    fill: tuple[float, ...] = ()
    """Medians that stand in for what is missing."""
    centre: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    """Of the columns, then of the vectors."""
    start: float = 0.0
    trees: tuple[Tree, ...] = ()
    calibration: Calibration = Calibration()
    figures: dict[str, float] = Field(default_factory=dict)
    """Out-of-fold figures of the labels it was learned from."""
    taught: tuple[str, ...] = ()
    """The interactions it was learned from, by the ends of their ids: on these it knows too much to
    be compared with another one."""

    @property
    def id(self) -> str:
        """`learned/` and a hash of everything it is made of."""
        return f"learned/{content_hash(self.model_dump(mode='json'))[:12]}"

    def margins(self, known: Known) -> np.ndarray:
        """Log-odds before calibration, shape (N,)."""
        if self.kind == "boosting":
            return tree_margins(list(self.trees), self.start, known.columns_NC)
        x = _design(known.columns_NC, self.fill, self.centre, self.spread)
        if self.embedder:
            x = np.hstack([x, known.vectors_ND])
        return x @ np.array(self.weights) + self.start

    def chances(self, known: Known) -> np.ndarray:
        """The chance that each answer is weak, shape (N,)."""
        return self.calibration(self.margins(known))


def learn(
    known: Known, weak_N: np.ndarray, groups: Sequence[str], *, embedder: str = ""
) -> Learned:
    """Choose, fit and calibrate.

    Args:
        groups: of each row, its prompt.
        embedder: id of what made the vectors.
    """
    best, margins = chosen(known, weak_N, groups)
    calibration = fit_calibration(margins, weak_N)
    before, after = sigmoid(margins), calibration(margins)
    fitted = fit(best, known, weak_N, embedder=embedder)
    return fitted.model_copy(
        update={
            "calibration": calibration,
            "figures": {
                "rows": float(len(weak_N)),
                "weak": float(weak_N.sum()),
                "auprc": average_precision(margins, weak_N > 0),
                "brier_before": brier(before, weak_N > 0),
                "brier_after": brier(after, weak_N > 0),
                "ece_before": calibration_error(before, weak_N > 0),
                "ece_after": calibration_error(after, weak_N > 0),
            },
        }
    )


def chosen(known: Known, weak_N: np.ndarray, groups: Sequence[str]) -> tuple[Recipe, np.ndarray]:
    """The recipe with the best average precision out of fold, and its out-of-fold margins."""
    usable = [r for r in RECIPES if not r.with_vectors or known.vectors_ND.shape[1]]
    tried = [inner_margins(r, known, weak_N, groups) for r in usable]
    worth = [average_precision(one, weak_N > 0) for one in tried]
    best = int(np.argmax(worth))
    return usable[best], tried[best]


def inner_margins(
    recipe: Recipe, known: Known, weak_N: np.ndarray, groups: Sequence[str]
) -> np.ndarray:
    """The log-odds of each row by a model that saw neither it nor its prompt."""
    margins = np.zeros(len(weak_N))
    for train, test in folds_of(weak_N, groups, INNER_FOLDS, seed=1):
        model = fit(recipe, known.rows(train), weak_N[train], embedder="any")
        margins[test] = model.margins(known.rows(test))
    return margins


def folds_of(
    weak_N: np.ndarray, groups: Sequence[str], num_folds: int, *, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places to learn from and to measure on, as like in their share of weak answers as groups
    allow.

    Raises:
        DataError: too few groups, so that a fold would leave only one side to learn from.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names = np.asarray(groups)
    sides = [len(set(names[weak_N == side].tolist())) for side in (1, 0)]
    folds = StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    places = []
    if min(sides) >= 2 and len(set(names.tolist())) >= num_folds:
        places = list(folds.split(np.zeros(len(weak_N)), weak_N, names))
    if not places or any(len(set(weak_N[train].tolist())) < 2 for train, _ in places):
        raise DataError(
            "There are too few different prompts to learn from some and to measure on others",
            got=f"weak answers to {sides[0]} prompts, fine ones to {sides[1]}",
            expected=f"{2 * num_folds} prompts of each at best; one prompt is never on both sides",
            next="label answers to more prompts",
        )
    yield from places


def fit(recipe: Recipe, known: Known, weak_N: np.ndarray, *, embedder: str = "") -> Learned:
    """One recipe on all of these rows, without calibration."""
    if recipe.kind == "boosting":
        trees, start = fit_trees(known.columns_NC, weak_N, rounds=int(recipe.strength))
        return Learned(kind="boosting", recipe=recipe.name, trees=tuple(trees), start=start)
    from sklearn.linear_model import LogisticRegression

    fill, centre, spread = _standard(known.columns_NC)
    x = _design(known.columns_NC, fill, centre, spread)
    if recipe.with_vectors:
        x = np.hstack([x, known.vectors_ND])
    model = LogisticRegression(C=recipe.strength, max_iter=2000).fit(x, weak_N)
    return Learned(
        kind="logistic",
        recipe=recipe.name,
        embedder=embedder if recipe.with_vectors else "",
        fill=tuple(fill.tolist()),
        centre=tuple(centre.tolist()),
        spread=tuple(spread.tolist()),
        weights=tuple(model.coef_[0].tolist()),
        start=float(model.intercept_[0]),
    )


def _standard(x_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, mean and spread of each column; a column that is missing everywhere is 0."""
    has = ~np.isnan(x_NC)
    fill = np.array([np.median(x_NC[h, n]) if h.any() else 0.0 for n, h in enumerate(has.T)])
    filled = np.where(has, x_NC, fill)
    spread = filled.std(axis=0)
    return fill, filled.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)


def _design(
    x_NC: np.ndarray,
    fill: Sequence[float] | np.ndarray,
    centre: Sequence[float] | np.ndarray,
    spread: Sequence[float] | np.ndarray,
) -> np.ndarray:
    """Standardised columns, halved, for vectors have the length 1 and shall not be drowned.
    What lies far outside of what was learned from counts as five deviations."""
    filled = np.where(np.isnan(x_NC), np.asarray(fill), x_NC)
    standard = (filled - np.asarray(centre)) / np.asarray(spread)
    return np.clip(standard, -5, 5) / 2
