"""Signs in the model's own log-probs: an answer that was unlikely among all of this traffic.

Models differ in how sure they are, so that no fixed line would do: each figure is held against the
traffic's own median, in robust standard deviations, and 0.5 is at `flag.outlier_z` of them.

The mean log-prob is minus the logarithm of perplexity, and an estimate of minus the entropy where
the answer was drawn at temperature 1. The entropy itself needs the whole distribution at each
token, which a capture does not bring and a pass of a local model does.
"""

import math
from collections.abc import Callable

from trueup.flag.signals.base import Context, Rating
from trueup.records import Interaction

__all__ = ["LIKELIHOOD", "Outlier", "entropy", "mean", "perplexity", "share_under", "worst"]

LINE = math.log(0.01)
"""Under this log-prob a token is a surprise."""


def mean(rating: Rating) -> float | None:
    """Nats a token."""
    return sum(rating.logprobs) / len(rating.logprobs) if rating.logprobs else None


def worst(rating: Rating) -> float | None:
    """The least likely token's log-prob, in nats."""
    return min(rating.logprobs, default=None)


def share_under(rating: Rating) -> float | None:
    """Minus the share of tokens less likely than one in a hundred, so that low is weak."""
    if not rating.logprobs:
        return None
    return -sum(one < LINE for one in rating.logprobs) / len(rating.logprobs)


def entropy(rating: Rating) -> float | None:
    """Minus the mean entropy before each token, in nats, so that low is weak."""
    return -sum(rating.entropies) / len(rating.entropies) if rating.entropies else None


def perplexity(rating: Rating) -> float | None:
    """exp(- mean log-prob); infinite for what no float can hold."""
    nats = mean(rating)
    if nats is None:
        return None
    return math.exp(-nats) if nats > -700 else math.inf


class Outlier:
    """A figure of the rating far under its median over all traffic."""

    def __init__(self, name: str, of: Callable[[Rating], float | None]) -> None:
        self.name, self.version, self.of = name, 1, of

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """0.5 z / outlier_z, between 0 and 1; only the low side is suspicious."""
        usual = context.population.usual(self) if context.rating else None
        value = self.of(context.rating) if context.rating else None
        if usual is None or value is None:
            return None
        z = (usual.centre - value) / usual.spread
        return min(1.0, max(0.0, 0.5 * z / context.config.outlier_z))


LIKELIHOOD = (
    Outlier("unlikely", mean),
    Outlier("unlikely_token", worst),
    Outlier("unlikely_share", share_under),
    Outlier("uncertain", entropy),
)
