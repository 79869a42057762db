"""Evidence that stays valid however often one looks."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["betting_evalue"]


def betting_evalue(outcomes: Sequence[float]) -> float:
    """Evidence that the mean of outcomes in [0, 1] is above 1/2, valid at any stopping time.

        E_t = average over bets l of prod_i (1 + l (x_i - 1/2)),   l on a grid in (0, 2)

    Waudby-Smith & Ramdas 2023, arXiv:2010.09686, with a uniform mixture in place of their
    adaptive bets. A win is 1, a tie 1/2, a loss 0; outcomes within a prompt are averaged first.
    Under "not better" the chance that E ever reaches 1/a is at most a, however often one looks.
    E of no outcomes is 1: no evidence either way.
    """
    bets = (np.arange(100) + 0.5) / 50
    values = np.asarray(outcomes, float)
    logs = np.log1p(bets[:, None] * (values[None, :] - 0.5)).sum(axis=1)
    peak = logs.max() if len(values) else 0.0
    log_mean = peak + math.log(np.exp(logs - peak).mean())
    return math.exp(min(log_mean, 709.0))  # JSON has no infinity
