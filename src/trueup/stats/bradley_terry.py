"""How strong each release is beside the first, from head-to-heads that not all of them had."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats
from scipy.special import expit

from trueup.stats.intervals import Interval
from trueup.stats.logistic import fit_logistic

__all__ = ["Game", "Strength", "bradley_terry"]


class Game(NamedTuple):
    """One comparison of two players on a prompt."""

    first: str
    second: str
    prompt: str
    points: float
    """Of the first: 1 a win, 1/2 a tie, 0 a loss."""


class Strength(NamedTuple):
    """A player beside the anchor."""

    logit: Interval
    """Log of the odds to beat the anchor."""
    win_rate: Interval
    """Chance to beat the anchor, a tie counted half."""


def bradley_terry(
    games: Sequence[Game], anchor: str, *, confidence: float = 0.95, prior: bool = True
) -> dict[str, Strength]:
    """Strengths of all players that a chain of games links to the anchor, whose own is 0.

        P(i beats j) = 1 / (1 + exp(s_j - s_i))

    Bradley & Terry 1952; ties are half a win for each, as in Arena rankings. Departure: half a win
    and half a loss are added to every pair that met (see `fit_logistic`), so that a player that
    won all its games is not certain to win the next. The intervals are
    robust to what games on one prompt share, which the chain's weeks do, with Student's t over
    prompts. The model is transitive by construction: it says what the chain adds up to, and only
    a game against the anchor says whether it does.

    Args:
        prior: False for the plain maximum of the likelihood, which few games make a certainty.

    Returns:
        Nothing for a player without a link: its strength is unknown, not 0.
    """
    linked = _linked(games, anchor)
    played = [g for g in games if g.first in linked]
    players = sorted(linked - {anchor})
    prompts, clusters = np.unique([g.prompt for g in played], return_inverse=True)
    if len(prompts) < 2:
        return {}
    place = {name: k for k, name in enumerate(players)}
    x = np.zeros((len(played), len(players)))
    for i, game in enumerate(played):
        for name, sign in ((game.first, 1.0), (game.second, -1.0)):
            if name != anchor:
                x[i, place[name]] += sign
    points = np.array([g.points for g in played], float)
    fit = fit_logistic(x, points, clusters, prior=_pairs(x) if prior else None)
    quantile = float(scipy_stats.t.ppf(0.5 + confidence / 2, len(prompts) - 1))
    errors = np.sqrt(np.diag(fit.covariance))
    return {
        name: _strength(float(fit.beta[k]), quantile * float(errors[k]))
        for name, k in place.items()
    }


def _pairs(x: np.ndarray) -> np.ndarray:
    """The rows of `x` that differ, one for a pair, whoever is first."""
    first = x[np.arange(len(x)), (x != 0).argmax(axis=1)]
    return np.unique(x * first[:, None], axis=0)


def _strength(logit: float, half: float) -> Strength:
    interval = Interval(logit, logit - half, logit + half)
    return Strength(interval, Interval(*(float(expit(one)) for one in interval)))


def _linked(games: Sequence[Game], anchor: str) -> set[str]:
    """Everybody a chain of games leads to."""
    found, grew = {anchor}, True
    while grew:
        before = len(found)
        for game in games:
            if (game.first in found) != (game.second in found):
                found |= {game.first, game.second}
        grew = len(found) > before
    return found
