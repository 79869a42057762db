"""What flaggers are worth on answers whose truth is known, by cross-validation.

Everything that is learned is learned inside the training folds: which way a figure points (are
long answers weak, or short ones?), which single figure is best, what is usual traffic, the learned
flagger, its kind and its calibration. Measured is on the fold that none of it has seen. Scores are
replaced by their ranks within that fold, because two folds' scores have no common scale.

The intervals are a bootstrap over prompts at these folds: they do not count that other folds, or
other training rows, would give other flaggers.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from trueup.flag.calibrate import sigmoid
from trueup.flag.config import FlagConfig
from trueup.flag.features import COLUMNS, TELLS_TRUTH, Known, columns
from trueup.flag.labelled import Labelled
from trueup.flag.learn import Learned, folds_of, learn
from trueup.flag.signals import SIGNALS, Population, Rating
from trueup.progress import task
from trueup.records import Messages, content_hash
from trueup.stats.intervals import Interval
from trueup.stats.ranking import (
    Ranking,
    auroc,
    brier,
    calibration_error,
    ranking,
    ranking_difference,
    resampled_weights,
)

__all__ = ["BASELINES", "Comparison", "Curve", "FlaggerScore", "Trial", "cross_validate"]

BASELINES = ("length", "perplexity", "random")
LEARNED, BEST = "learned", "best single"
CURVE_POINTS = 60


class Span(BaseModel):
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, interval: Interval) -> "Span":
        return cls(**interval._asdict())


class Curve(BaseModel):
    """Points of a curve, from the highest scores down."""

    false_positive_rate: list[float]
    recall: list[float]
    precision: list[float]


class FlaggerScore(BaseModel):
    """How well one flagger puts weak answers first."""

    name: str
    kind: str
    """`baseline`, `signal` or `learned`."""
    auroc: Span
    auprc: Span
    directions: list[int]
    """+1 where high was weak in a fold's training rows, -1 where low was."""
    curve: Curve


class Comparison(BaseModel):
    """The learned flagger less the best single one, on the same rows."""

    against: str
    chosen: list[str]
    """The best single figure of each fold's training rows."""
    auroc: Span
    auprc: Span


class Calibrated(BaseModel):
    """How far the learned flagger's chances can be believed, out of fold."""

    brier_before: float
    brier_after: float
    brier_of_base_rate: float
    ece_before: float
    ece_after: float


class Trial(BaseModel):
    """What came out."""

    rows: int
    weak: int
    base_rate: float
    """AUPRC of scores without any sense."""
    prompts: int
    folds: int
    resamples: int
    model: str
    """What perplexity is of; empty where none was asked."""
    embedder: str
    flaggers: list[FlaggerScore]
    comparison: Comparison
    calibration: Calibrated
    recipes: list[str]
    """What was learned in each fold."""
    left_out: dict[str, str]
    """Signals that could not be measured here, and why."""


class _Fold(NamedTuple):
    """What one fold gave its test rows."""

    scores: dict[str, np.ndarray]
    signs: dict[str, int]
    best: str
    learned: Learned
    chances: np.ndarray
    uncalibrated: np.ndarray


def cross_validate(
    rows: Sequence[Labelled],
    config: FlagConfig,
    *,
    ratings: Sequence[Rating | None],
    vectors_ND: np.ndarray,
    model: str = "",
    embedder: str = "",
    num_folds: int = 5,
    resamples: int = 2000,
    seed: int = 0,
) -> Trial:
    """Each flagger, the baselines, and the learned one, out of fold.

    Args:
        ratings: a model's log-probs of each answer, None where there are none.
        vectors_ND: of each row, see `features.vectors`.
        model: id of what the ratings are by.
    """
    weak = np.array([row.is_weak for row in rows], int)
    groups = [_group(row.interaction.prompt) for row in rows]
    places = list(folds_of(weak, groups, num_folds, seed=seed))
    found: list[_Fold] = []
    with task("cross-validate", num_folds) as advance:
        for train, test in places:
            known = _known(rows, config, ratings, vectors_ND, train)
            found.append(_fold(rows, known, weak, groups, train, test, embedder, seed))
            advance(1)
    names = list(dict.fromkeys(name for fold in found for name in fold.scores))
    scores = {name: np.zeros(len(rows)) for name in names}
    chances, uncalibrated = np.zeros(len(rows)), np.zeros(len(rows))
    for (_, test), fold in zip(places, found, strict=True):
        for name in names:
            scores[name][test] = _ranks(fold.scores.get(name, np.zeros(len(test))))
        chances[test], uncalibrated[test] = fold.chances, fold.uncalibrated
    left_out = _left_out(found)
    weights = resampled_weights(weak > 0, groups, resamples=resamples, seed=seed)
    told = [n for n in names if n not in left_out]
    return Trial(
        rows=len(rows),
        weak=int(weak.sum()),
        base_rate=float(weak.mean()),
        prompts=len(set(groups)),
        folds=num_folds,
        resamples=resamples,
        model=model,
        embedder=embedder,
        flaggers=[
            _score(n, scores[n], weak, weights, [f.signs.get(n, 1) for f in found]) for n in told
        ],
        comparison=_comparison(scores, weak, weights, [fold.best for fold in found]),
        calibration=Calibrated(
            brier_before=brier(uncalibrated, weak > 0),
            brier_after=brier(chances, weak > 0),
            brier_of_base_rate=brier(np.full(len(rows), weak.mean()), weak > 0),
            ece_before=calibration_error(uncalibrated, weak > 0),
            ece_after=calibration_error(chances, weak > 0),
        ),
        recipes=[fold.learned.recipe for fold in found],
        left_out=left_out,
    )


def _known(
    rows: Sequence[Labelled],
    config: FlagConfig,
    ratings: Sequence[Rating | None],
    vectors_ND: np.ndarray,
    train: np.ndarray,
) -> Known:
    """Columns of all rows; what is usual is told by the training rows alone."""
    interactions = [row.interaction for row in rows]
    population = Population([interactions[i] for i in train], [ratings[i] for i in train])
    return Known(columns(interactions, ratings, population, config), vectors_ND)


def _fold(
    rows: Sequence[Labelled],
    known: Known,
    weak: np.ndarray,
    groups: Sequence[str],
    train: np.ndarray,
    test: np.ndarray,
    embedder: str,
    seed: int,
) -> _Fold:
    figures = _figures(rows, known, seed)
    signs, worth, scores = {}, {}, {}
    for name, figure in figures.items():
        seen = auroc(figure[train], weak[train] > 0)
        signs[name] = 1 if seen >= 0.5 else -1
        worth[name] = abs(seen - 0.5)
        scores[name] = signs[name] * figure[test]
    del worth["random"]
    best = max(worth, key=lambda name: worth[name])
    learned = learn(
        known.rows(train), weak[train], np.asarray(groups)[train].tolist(), embedder=embedder
    )
    margins = learned.margins(known.rows(test))
    scores |= {BEST: scores[best], LEARNED: margins}
    return _Fold(scores, signs, best, learned, learned.calibration(margins), sigmoid(margins))


def _figures(rows: Sequence[Labelled], known: Known, seed: int) -> dict[str, np.ndarray]:
    """Every single figure, as it is: what cannot be known of an answer does not flag it."""
    table = dict(zip(COLUMNS, np.nan_to_num(known.columns_NC).T, strict=True))
    figures = {"length": table["log words"]}
    if not np.isnan(known.columns_NC[:, COLUMNS.index("mean log-prob")]).all():
        figures["perplexity"] = -table["mean log-prob"]
    figures["random"] = np.array([_chance(row.interaction.id, seed) for row in rows])
    told = [signal.name for signal in SIGNALS if signal.name not in TELLS_TRUTH]
    return figures | {name: table[name] for name in told}


def _left_out(found: Sequence[_Fold]) -> dict[str, str]:
    constant = {
        name
        for name in found[0].scores
        if all(len(np.unique(fold.scores[name])) == 1 for fold in found) and name != LEARNED
    }
    why = {name: "the same for every row, or cannot be computed" for name in sorted(constant)}
    return why | {name: "not a property of an answer's text" for name in TELLS_TRUTH}


def _score(
    name: str, scores: np.ndarray, weak: np.ndarray, weights: np.ndarray, signs: list[int]
) -> FlaggerScore:
    kind = "baseline" if name in BASELINES else "learned" if name == LEARNED else "signal"
    found = ranking(scores, weak > 0, weights)
    return FlaggerScore(
        name=name,
        kind=kind,
        auroc=Span.of(found.auroc),
        auprc=Span.of(found.auprc),
        directions=signs,
        curve=_curve(scores, weak),
    )


def _comparison(
    scores: dict[str, np.ndarray], weak: np.ndarray, weights: np.ndarray, chosen: list[str]
) -> Comparison:
    gap: Ranking = ranking_difference(scores[LEARNED], scores[BEST], weak > 0, weights)
    return Comparison(
        against=BEST, chosen=chosen, auroc=Span.of(gap.auroc), auprc=Span.of(gap.auprc)
    )


def _curve(scores: np.ndarray, weak: np.ndarray) -> Curve:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(weak[order])
    seen = np.arange(1, len(order) + 1)
    at = np.unique(np.linspace(0, len(order) - 1, CURVE_POINTS).round().astype(int))
    misses = (seen - hits)[at]
    return Curve(
        false_positive_rate=(misses / max(1, int((weak == 0).sum()))).round(4).tolist(),
        recall=(hits[at] / max(1, int(weak.sum()))).round(4).tolist(),
        precision=(hits[at] / seen[at]).round(4).tolist(),
    )


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Between 0 and 1; equal scores share their rank."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return ((ends - (count - 1) / 2)[place]) / len(scores)


def _group(prompt: Messages) -> str:
    """The same for prompts that differ in case and spaces alone."""
    return content_hash([[m.role, " ".join(m.content.lower().split())] for m in prompt])


def _chance(name: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
