"""An interval for a figure of a whole set of prompts, such as a Vendi score, which is no mean.

Half of the prompts is drawn again and again, without replacement, the same half for both models.
For a smooth figure the spread over halves is the standard error over the whole: drawing n/2 of n
leaves a variance of s2/(n/2) * (1 - 1/2) = s2/n (the delete-d jackknife, Shao & Wu 1989, Annals of
Statistics 17). A bootstrap would not do here: it repeats prompts, and a repeated prompt looks like
a repeated answer.
"""

import random
from collections.abc import Callable
from statistics import NormalDist, stdev

import numpy as np

from trueup.stats import Interval

__all__ = ["half_sample_interval"]

NUM_HALVES = 100
Z95 = NormalDist().inv_cdf(0.975)


def half_sample_interval(figure: Callable[[np.ndarray], float | None], n: int) -> Interval | None:
    """The figure over all prompts with a 95 % interval, symmetric about it.

    Args:
        figure: of some prompts, by their places in 0 … n - 1; None where it has no answer.

    Returns:
        None where it has no answer, or for fewer than four prompts.
    """
    whole = figure(np.arange(n)) if n >= 4 else None
    if whole is None:
        return None
    chance, values = random.Random(0), []
    for _ in range(NUM_HALVES):
        value = figure(np.array(sorted(chance.sample(range(n), n // 2))))
        if value is not None:
            values.append(value)
    if len(values) < NUM_HALVES / 2:
        return None
    half = Z95 * stdev(values) * (n // 2 / (n - n // 2)) ** 0.5
    return Interval(whole, whole - half, whole + half)
