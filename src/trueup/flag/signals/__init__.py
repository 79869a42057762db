"""Cheap signs of a weak answer, one subject a file. Each is in [0, 1]; 0.5 is the point where a
label is worth it."""

from collections.abc import Sequence

from trueup.flag.config import FlagConfig
from trueup.flag.signals.base import Context, Population, Rating, Signal, mean_logprob, rating_of
from trueup.flag.signals.conduct import BadCall, Broken, Disliked
from trueup.flag.signals.consistency import Inconsistent
from trueup.flag.signals.form import Empty, Repetitive, Truncated, repetition
from trueup.flag.signals.grounding import Distant, NotEntailed, Ungrounded
from trueup.flag.signals.likelihood import LIKELIHOOD
from trueup.flag.signals.refusal import Refusal
from trueup.flag.signals.toxicity import Toxic
from trueup.records import Feedback, Interaction

__all__ = [
    "SIGNALS",
    "Context",
    "Population",
    "Rating",
    "Signal",
    "mean_logprob",
    "rating_of",
    "repetition",
    "score",
    "signals",
]

SIGNALS: tuple[Signal, ...] = (
    Empty(),
    Truncated(),
    Repetitive(),
    Refusal(),
    Toxic(),
    Disliked(),
    Broken(),
    BadCall(),
    Ungrounded(),
    Distant(),
    NotEntailed(),
    *LIKELIHOOD,
    Inconsistent(),
)
"""Every signal, in the order they are told."""

WHATEVER_BROKE = ("feedback", "error")
"""What is looked at where an answer was broken off."""


def score(interaction: Interaction, context: Context) -> dict[str, float]:
    """All signals that can be computed for an interaction; a missing one is left out."""
    asked = [s for s in SIGNALS if not interaction.error or s.name in WHATEVER_BROKE]
    found = {one.name: one.score(interaction, context) for one in asked}
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def signals(
    interaction: Interaction,
    feedback: Sequence[Feedback],
    population: Population,
    config: FlagConfig,
) -> dict[str, float]:
    """As `score`, by what the interaction itself brings: no model is asked."""
    return score(interaction, Context(population, config, feedback, rating_of(interaction)))
