"""How the learning rate goes over a run."""

import math
from typing import Literal

__all__ = ["learning_rate"]


def learning_rate(
    step: int,
    total: int,
    *,
    peak: float,
    warmup: float,
    schedule: Literal["linear", "cosine", "constant"],
) -> float:
    """The rate of a step: a linear rise over the first `warmup` share of the steps, then a fall
    that would reach zero one step after the last.

    Args:
        step: from 0.
        total: steps of the run; a function of it alone, so a resumed run goes on as it was.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return peak * (step + 1) / rising
    left = (total - step) / (total - rising + 1)  # from just under 1 to just over 0
    if schedule == "linear":
        return peak * left
    if schedule == "cosine":
        return peak * 0.5 * (1 - math.cos(math.pi * left))
    return peak
