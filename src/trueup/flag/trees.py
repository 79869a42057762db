"""Gradient-boosted trees as plain arrays: fitted by scikit-learn, asked without it, so that
nothing is ever unpickled."""

from typing import Any

import numpy as np

from trueup.records import Value

__all__ = ["Tree", "fit_trees", "tree_margins"]


class Tree(Value):
    """One tree: node 0 is its root. A row goes left where its value is at most the threshold."""

    column: tuple[int, ...]
    threshold: tuple[float, ...]
    missing_goes_left: tuple[bool, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    is_leaf: tuple[bool, ...]
    value: tuple[float, ...]


def fit_trees(x_NC: np.ndarray, y_N: np.ndarray, *, rounds: int) -> tuple[list[Tree], float]:
    """Small trees, slowly; returns them and the log-odds they start from."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    # a column that nobody has would be refused
    x_NC = np.where(np.isnan(x_NC).all(axis=0), 0.0, x_NC)

    made: Any = HistGradientBoostingClassifier
    model = made(
        max_iter=rounds,
        learning_rate=0.05,
        max_leaf_nodes=6,
        min_samples_leaf=min(20, max(2, len(y_N) // 10)),
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    ).fit(x_NC, y_N)
    trees = [_plain(step[0].nodes) for step in model._predictors]
    return trees, float(np.ravel(model._baseline_prediction)[0])


def tree_margins(trees: list[Tree], start: float, x_NC: np.ndarray) -> np.ndarray:
    """Log-odds of each row, shape (N,)."""
    return start + sum((_values(tree, x_NC) for tree in trees), np.zeros(len(x_NC)))


def _plain(nodes: np.ndarray) -> Tree:
    # the last bin's threshold is infinite, which JSON has no word for
    thresholds = np.clip(nodes["num_threshold"], -1e300, 1e300)
    return Tree(
        column=tuple(nodes["feature_idx"].tolist()),
        threshold=tuple(thresholds.tolist()),
        missing_goes_left=tuple(map(bool, nodes["missing_go_to_left"].tolist())),
        left=tuple(nodes["left"].tolist()),
        right=tuple(nodes["right"].tolist()),
        is_leaf=tuple(map(bool, nodes["is_leaf"].tolist())),
        value=tuple(nodes["value"].tolist()),
    )


def _values(tree: Tree, x_NC: np.ndarray) -> np.ndarray:
    at = np.zeros(len(x_NC), int)
    column, threshold = np.array(tree.column), np.array(tree.threshold)
    left, right = np.array(tree.left), np.array(tree.right)
    missing, is_leaf = np.array(tree.missing_goes_left), np.array(tree.is_leaf)
    rows = np.arange(len(x_NC))
    while not is_leaf[at].all():
        seen = x_NC[rows, column[at]]
        goes_left = np.where(np.isnan(seen), missing[at], seen <= threshold[at])
        at = np.where(is_leaf[at], at, np.where(goes_left, left[at], right[at]))
    return np.array(tree.value)[at]
