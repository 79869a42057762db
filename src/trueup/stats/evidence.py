"""Evidence that stays valid however often one looks: an e-value, and an interval, after each vote.

Both bet against what they would disprove. Wealth that grows large while betting that the mean is
above m says that m is too small; the interval holds the m that no bet has ruined.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trueup.stats.intervals import Interval

__all__ = ["betting_evalue", "confidence_sequence", "evidence_path"]

Floats = NDArray[np.float64]

BETS: Floats = (np.arange(100) + 0.5) / 50
"""On a grid in (0, 2), so that no wealth becomes negative at a mean of 1/2."""

NEWTON_STEPS = 60


def betting_evalue(outcomes: Sequence[float]) -> float:
    """Evidence that the mean of outcomes in [0, 1] is above 1/2, valid at any stopping time.

        E_t = average over bets l of prod_i (1 + l (x_i - 1/2)),   l on a grid in (0, 2)

    Waudby-Smith & Ramdas 2023, arXiv:2010.09686, with a uniform mixture in place of their
    adaptive bets. A win is 1, a tie 1/2, a loss 0; outcomes within a prompt are averaged first.
    Under "not better" the chance that E ever reaches 1/a is at most a, however often one looks.
    E of no outcomes is 1: no evidence either way.
    """
    values = np.asarray(outcomes, float)
    logs = np.log1p(BETS[:, None] * (values[None, :] - 0.5)).sum(axis=1)
    return float(_stored(_log_mean(logs)))


def evidence_path(outcomes: Sequence[float]) -> list[float]:
    """`betting_evalue` after each outcome, in one pass."""
    values = np.asarray(outcomes, float)
    logs = np.log1p(BETS * (values[:, None] - 0.5)).cumsum(axis=0)
    return _stored(_log_mean(logs)).tolist() if len(values) else []


def confidence_sequence(outcomes: Sequence[float], *, confidence: float = 0.95) -> list[Interval]:
    """An interval for the mean of outcomes in [0, 1] after each of them; all hold at once.

    The chance that the mean is ever outside is at most 1 - confidence, so one may stop whenever
    the interval says enough. Waudby-Smith & Ramdas 2023, Theorem 3, with the mixture above in
    place of adaptive bets: the lower end is the smallest m at which the wealth of the bets that
    the mean is above m,

        average over c in (0, 1) of prod_i (1 + c (x_i / m - 1)),

    is below 2 / (1 - confidence), and the upper end the same of 1 - x. Ends never widen again
    (running intersection). At m = 1/2 the bets are those of `betting_evalue`: the lower end is
    above 1/2 as soon as the e-value has reached 2 / (1 - confidence).
    """
    if not len(outcomes):
        return []
    values = np.asarray(outcomes, float)
    means = values.cumsum() / np.arange(1, len(values) + 1)
    wealth = math.log(2 / (1 - confidence))
    lows = np.maximum.accumulate(_lower_ends(values, wealth))
    highs = np.minimum.accumulate(1 - _lower_ends(1 - values, wealth))
    highs = np.maximum(lows, highs)  # both may be wrong at once, once in a great while
    ends = zip(np.clip(means, lows, highs).tolist(), lows.tolist(), highs.tolist(), strict=True)
    return [Interval(*one) for one in ends]


def _lower_ends(values: Floats, wealth: float) -> Floats:
    """After each value the m at which bets on a higher mean have reached this wealth; else 0.

    The log of the wealth falls and is convex in u = log m, a log-sum of exponentials of u. So
    Newton's steps from the left never pass the root, and wherever they end is ruled out.
    """
    distinct, which = np.unique(values, return_inverse=True)
    counts = np.zeros((len(values), len(distinct)))
    counts[np.arange(len(values)), which] = 1
    counts = counts.cumsum(axis=0)
    lows = np.zeros(len(values))
    rows = max(1, 500_000 // (len(distinct) * len(BETS)))  # keeps the tables at a few MB
    for at in range(0, len(values), rows):
        part = slice(at, at + rows)
        u = np.full(len(lows[part]), -35.0)
        for _ in range(NEWTON_STEPS):
            logs, slopes = _log_wealth(counts[part], distinct, u)
            above = np.maximum(logs - wealth, 0.0)
            u -= np.divide(above, slopes, out=np.zeros_like(u), where=slopes < 0)
            if (above < 1e-9).all():
                break
        lows[part] = np.where(u > -35.0, np.exp(u), 0.0)
    return lows


def _log_wealth(counts: Floats, distinct: Floats, u: Floats) -> tuple[Floats, Floats]:
    """Log of the wealth of bets against a mean of exp(u), and its slope in u; both (T,).

    Args:
        counts: (T, K), how often each of the K distinct values has come.
    """
    bets = BETS / 2
    gains = (distinct * np.exp(-u)[:, None])[:, :, None] * bets  # (T, K, bets)
    grown = gains + (1 - bets)
    logs = np.einsum("tk,tkc->tc", counts, np.log(grown))
    slopes = -np.einsum("tk,tkc->tc", counts, gains / grown)
    share = np.exp(logs - logs.max(axis=-1, keepdims=True))
    return _log_mean(logs), (share * slopes).sum(axis=-1) / share.sum(axis=-1)


def _log_mean(logs: Floats) -> Floats:
    """Log of the mean of exp(logs) over the last axis, without overflow."""
    peak = logs.max(axis=-1)
    return peak + np.log(np.exp(logs - peak[..., None]).mean(axis=-1))


def _stored(logs: Floats) -> Floats:
    """As a number a file can hold: JSON has no infinity."""
    return np.exp(np.minimum(logs, 709.0))
