"""Importance weights of stored answers: how likely the policy is to write what another wrote.

    w = p(policy) / p(behaviour)      of a whole answer, from log-probs stored when it was drawn

Two figures, blind to different things. The overlap is the mean of min(w, 1) over the writer's
answers, an unbiased estimate of the chance mass that both have in common, 1 less their total
variation distance. It sees a writer who keeps to a corner that the policy seldom visits, which
the effective share does not: that is normalised by the weights themselves.

The effective share of n answers is (sum w)^2 / (n sum w^2), in (0, 1] (Kong 1992; Owen 2013,
*Monte Carlo theory, methods and examples*, Eq. 9.13): 1 where the policy drew them itself. Weights
of sequences degenerate with length, so two kinder figures stand beside it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["LogRatio", "Shares", "effective_share", "shares"]


class LogRatio(NamedTuple):
    """log p(policy) - log p(behaviour) of an answer, in nats, and its tokens."""

    nats: float
    tokens: int


class Shares(NamedTuple):
    """Effective shares of a set of answers, each in (0, 1]."""

    plain: float
    per_token: float
    """With the geometric mean over tokens for a weight: does not degenerate with length, and no
    longer estimates anything; for comparing sets."""
    clipped: float
    """With weights cut off at sqrt(n) times their mean (Ionides 2008, *Truncated importance
    sampling*)."""
    overlap: float
    """Chance mass in common, in [0, 1]; not an effective share."""


def effective_share(log_weights: Sequence[float]) -> float | None:
    """(sum w)^2 / (n sum w^2), computed from logs; None for no weights."""
    if not len(log_weights):
        return None
    logs = np.asarray(log_weights, float)
    w = np.exp(logs - logs.max())
    return float(w.sum() ** 2 / (len(w) * (w * w).sum()))


def shares(ratios: Sequence[LogRatio]) -> Shares | None:
    """The three shares; None for no answers."""
    logs = [one.nats for one in ratios]
    plain = effective_share(logs)
    if plain is None:
        return None
    per_token = effective_share([one.nats / max(1, one.tokens) for one in ratios])
    peak = max(logs)
    mean = peak + math.log(math.fsum(math.exp(one - peak) for one in logs) / len(logs))
    most = mean + 0.5 * math.log(len(logs))
    clipped = effective_share([min(one, most) for one in logs])
    assert per_token is not None and clipped is not None, "there are weights"
    overlap = math.fsum(math.exp(min(0.0, one)) for one in logs) / len(logs)
    return Shares(plain, per_token, clipped, overlap)
