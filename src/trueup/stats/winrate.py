"""The win rate, and what would be left of it if both sides answered at the same length.

Judges like long answers (people choose the longer one in 64 % of pairs, GPT-4 in 68 %), so a
candidate can win by writing more. How much a judge gives for length is a property of the judge:
it is learned from every contest the judge has decided, and taken out of each.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from scipy.special import expit, logit

from trueup.stats.intervals import Interval
from trueup.stats.logistic import LogisticFit, fit_logistic

__all__ = ["LengthControl", "Vote", "length_controlled"]

Floats = NDArray[np.float64]

DIFFICULTY_SD = 1.0
"""How far prompts differ in how hard they are for the candidate, in logits."""


SAME_LENGTH = 0.1
"""Mean of the length term up to which a contest is one of equal lengths."""

MIN_POINTS = 1.0
"""Points that either side of any other contest must have."""

MIN_VARIANCE = 0.05
"""Of the length term within contests, of which 0.4 is usual; answers that are longer by two
standard deviations everywhere have 0.03."""

NEAR = 0.25
"""The length term up to which an answer that is longer counts as about as long."""

MIN_NEAR = 0.05
"""Share of the judge's votes that must be about as long, or differ the other way."""


class Vote(NamedTuple):
    """One comparison: candidate against champion on a prompt."""

    contest: str
    """Whose candidate against whose champion."""
    prompt: str
    points: float
    """1 a win of the candidate, 1/2 a tie, 0 a loss."""
    length_difference: float
    """Candidate minus champion, in characters or tokens; the same unit in every vote."""


class LengthControl(NamedTuple):
    """A contest's win rate at equal length, and what was learned of the judge on the way."""

    win_rate: Interval
    length_coefficient: Interval
    """Logits for a longer answer, at tanh of the difference over `scale`; above 0 likes length."""
    scale: float
    """The standard deviation of the length differences, in their unit."""
    num_contests: int


def length_controlled(
    votes: Sequence[Vote], contest: str, *, confidence: float = 0.95
) -> LengthControl | None:
    """The win rate of a contest, predicted at zero length difference.

        logit P(win) = theta_contest + phi tanh(length difference / scale) + difficulty_prompt

    After Dubois et al. 2024, arXiv:2404.04475. Departures: phi is POOLED over contests, one number
    a judge, because fitted to one contest it is off by 6.5 points in the mean and over-corrects
    terse models; `scale` is pooled with it, so that the same words weigh the same everywhere; the
    difficulty of a prompt is learned from the votes themselves, as an effect held by a normal
    prior, instead of a table that was fitted to other models; it is not scaled by contest; half a
    win and half a loss are added to each contest, and to length (see `fit_logistic`), so that few
    votes that agree are no certainty.

    The interval is by the delta method on estimating equations with a term a prompt, so it is
    robust to whatever the votes on a prompt share, across contests too; on the logit, so that it
    stays within 0 and 1.

    Args:
        votes: of one judge, on any number of contests.
        contest: whose win rate is wanted.

    Returns:
        None where nothing is known at equal length: fewer than two prompts of the contest; or
        answers that differ in length on the whole, and less than a point for one side, a length
        difference so nearly the same everywhere that what it is worth cannot be told from what the
        contest is worth, or nearly no vote of this judge on answers about as long or the other way
        round, so that equal length is only ever guessed at from afar.
    """
    mine = [i for i, vote in enumerate(votes) if vote.contest == contest]
    prompts, at = np.unique([vote.prompt for vote in votes], return_inverse=True)
    if len(set(at[mine].tolist())) < 2:
        return None
    contests, which = np.unique([vote.contest for vote in votes], return_inverse=True)
    lengths = np.array([vote.length_difference for vote in votes], float)
    scale = float(lengths.std()) or 1.0
    x = np.zeros((len(votes), len(contests) + 1))
    x[np.arange(len(votes)), which] = 1
    x[:, -1] = np.tanh(lengths / scale)
    points = np.array([vote.points for vote in votes], float)
    if _is_unidentified(x[:, -1], points, which, mine):
        return None
    fit = fit_logistic(x, points, at, effect_sd=DIFFICULTY_SD, prior=np.eye(x.shape[1]))
    place = int(np.flatnonzero(contests == contest)[0])
    own = np.bincount(at[mine], minlength=len(prompts)).astype(float)
    quantile = float(scipy_stats.t.ppf(0.5 + confidence / 2, len(set(at[mine].tolist())) - 1))
    coefficient, error = fit.beta[-1], math.sqrt(fit.covariance[-1, -1])
    return LengthControl(
        _at_equal_length(fit, place, own, quantile),
        Interval(coefficient, coefficient - quantile * error, coefficient + quantile * error),
        scale,
        len(contests),
    )


def _is_unidentified(x: Floats, points: Floats, which: NDArray[np.int_], mine: list[int]) -> bool:
    """True where the contest's answers differ in length and merit cannot be told from it."""
    lean = float(x[mine].mean())
    if abs(lean) < SAME_LENGTH:
        return False
    won = float(points[mine].sum())
    near = float(np.mean(x * np.sign(lean) <= NEAR))
    sums, counts = np.bincount(which, x), np.bincount(which)
    variance = float(np.mean((x - (sums / counts)[which]) ** 2))  # only there its worth shows
    is_separated = min(won, len(mine) - won) < MIN_POINTS
    return is_separated or near < MIN_NEAR or variance < MIN_VARIANCE


def _at_equal_length(fit: LogisticFit, place: int, own: Floats, quantile: float) -> Interval:
    """Mean over the contest's prompts, weighted by their votes, of the chance to win there."""
    share = own / own.sum()
    chance = expit(fit.beta[place] + fit.effects)
    rate = float(share @ chance)
    steepness = share * chance * (1 - chance)
    gradient = steepness @ fit.slopes
    gradient[place] += steepness.sum()
    influence = share * (chance - rate) + fit.influence @ gradient
    groups = int((own > 0).sum())
    doubt = fit.doubt @ gradient
    error = math.sqrt(groups / (groups - 1) * float(influence @ influence) + float(doubt @ doubt))
    # on the logit, where the interval cannot leave [0, 1]
    middle = float(logit(np.clip(rate, 1e-9, 1 - 1e-9)))
    half = quantile * error / max(rate * (1 - rate), 1e-9)
    return Interval(rate, float(expit(middle - half)), float(expit(middle + half)))
