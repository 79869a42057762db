"""What a reward model is worth, from its scores of held-out pairs.

Accuracy alone hides two things: whether a difference of scores means what it says (calibration),
and whether the model has learned anything beyond "the longer answer wins" (length). What cannot
be known is None, never zero.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from trueup.records import Value
from trueup.stats import wilson

__all__ = ["Bin", "Evaluation", "calibration", "correlation", "evaluate"]

NUM_BINS = 10

Pairs = Sequence[tuple[float, float]]
"""For each pair a figure of the chosen and one of the rejected answer."""


class Bin(Value):
    """Pairs on which the model was about equally sure: those with a confidence in [low, high)."""

    low: float
    high: float
    num_pairs: int
    confidence: float | None
    """Mean of what it said: sigmoid of the difference, for the answer it scored higher."""
    accuracy: float | None
    """Share on which that answer was the chosen one."""


class Evaluation(Value):
    """A reward model on pairs it has not seen. Rates and accuracies are in [0, 1]."""

    num_pairs: int
    accuracy: float | None
    """Share of pairs whose chosen answer has the higher score; equal scores are wrong."""
    accuracy_low: float | None
    """Ends of Wilson's 95 % interval. It takes pairs to be independent: where a prompt has
    several, it is too narrow."""
    accuracy_high: float | None
    margin: float | None
    """Mean difference of the raw scores, chosen minus rejected, in nats."""
    calibration: tuple[Bin, ...]
    ece: float | None
    """Expected calibration error: mean distance of confidence and accuracy over the bins."""
    length_correlation: float | None
    """Pearson's, of an answer's score with its tokens, over all answers."""
    length_correlation_within: float | None
    """The same within prompts: of the difference in score with the difference in tokens."""
    longer_wins_rate: float | None
    """Share of pairs whose chosen answer is the longer one; equal lengths count half. What
    "take the longer one" would score."""
    picks_longer_rate: float | None
    """Share of pairs whose longer answer the model scores higher; equal lengths left out."""
    accuracy_longer: float | None
    """Accuracy where the chosen answer is the longer one."""
    accuracy_shorter: float | None
    """Accuracy where it is the shorter one."""
    length_explains_rate: float | None
    """Share of the accuracy above chance that the better of "take the longer" and "take the
    shorter" reaches alone, at most 1; None where the model is not above chance."""


def evaluate(scores: Pairs, tokens: Sequence[tuple[int, int]]) -> Evaluation:
    """Measure raw scores of pairs, each (chosen, rejected), against the labels and their lengths.

    Args:
        scores: raw, so that a difference is the log-odds of being preferred.
        tokens: lengths of the same answers.
    """
    scores_B2 = np.asarray(scores, float).reshape(-1, 2)
    tokens_B2 = np.asarray(tokens, float).reshape(-1, 2)
    differences, longer = scores_B2[:, 0] - scores_B2[:, 1], tokens_B2[:, 0] - tokens_B2[:, 1]
    right = differences > 0
    interval = wilson(int(right.sum()), len(right))
    bins, ece = calibration(differences.tolist())
    longer_wins = _mean((1 + np.sign(longer)) / 2)
    return Evaluation(
        num_pairs=len(right),
        accuracy=interval and interval.estimate,
        accuracy_low=interval and interval.low,
        accuracy_high=interval and interval.high,
        margin=_mean(differences),
        calibration=bins,
        ece=ece,
        length_correlation=correlation(scores_B2.ravel(), tokens_B2.ravel()),
        length_correlation_within=_uncentred(differences, longer),
        longer_wins_rate=longer_wins,
        picks_longer_rate=_mean((differences * longer > 0)[longer != 0]),
        accuracy_longer=_mean(right[longer > 0]),
        accuracy_shorter=_mean(right[longer < 0]),
        length_explains_rate=_explained(_mean(right), longer_wins),
    )


def calibration(differences: Sequence[float]) -> tuple[tuple[Bin, ...], float | None]:
    """How often the model is right when it says it is sure, and the expected calibration error.

        confidence = sigmoid(|difference|), in [0.5, 1];   right = difference > 0
        ECE = sum over bins of (pairs in the bin / all pairs) * |accuracy - confidence|

    Guo et al. 2017, arXiv:1706.04599, Eq. 3, with ten bins of equal width from 0.5: below it a
    model that compares two answers is never. Equal scores are half right.

    Args:
        differences: raw score of the chosen minus that of the rejected answer.

    Returns:
        Ten bins, and the ECE; None without pairs.
    """
    values = np.asarray(differences, float)
    confidence, right = expit(np.abs(values)), (1 + np.sign(values)) / 2
    edges = np.linspace(0.5, 1.0, NUM_BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, NUM_BINS - 1)
    bins, error = [], 0.0
    for number in range(NUM_BINS):
        inside = place == number
        sure, accuracy = _mean(confidence[inside]), _mean(right[inside])
        if sure is not None and accuracy is not None:
            error += float(inside.mean()) * abs(accuracy - sure)
        bins.append(
            Bin(
                low=round(float(edges[number]), 2),
                high=round(float(edges[number + 1]), 2),
                num_pairs=int(inside.sum()),
                confidence=sure,
                accuracy=accuracy,
            )
        )
    return tuple(bins), error if len(values) else None


def correlation(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> float | None:
    """Pearson's correlation; None for fewer than two values or where one side does not vary."""
    x, y = np.asarray(first, float), np.asarray(second, float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return _uncentred(x - x.mean(), y - y.mean())


def _uncentred(x: np.ndarray, y: np.ndarray) -> float | None:
    """Correlation about zero. Of differences within pairs it does not depend on which answer is
    taken from which: it is Pearson's with every pair counted both ways round."""
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip(x @ y / size, -1, 1)) if size > 0 else None


def _explained(accuracy: float | None, longer_wins: float | None) -> float | None:
    if accuracy is None or longer_wins is None or accuracy <= 0.5:
        return None
    return min(1.0, abs(longer_wins - 0.5) / (accuracy - 0.5))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
