"""What a signal is, and what it may look at besides the interaction."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, Protocol

from trueup.flag.config import FlagConfig
from trueup.records import Feedback, Interaction

if TYPE_CHECKING:
    from trueup.models.embedder import Embedder
    from trueup.models.entailment import Entailment

__all__ = ["Context", "Population", "Rating", "Signal", "mean_logprob", "rating_of"]


class Rating(NamedTuple):
    """What a model thought of an answer's tokens, in nats: one value a token."""

    logprobs: Sequence[float]
    entropies: Sequence[float] | None = None
    """Of the distribution before each token; a captured answer brings its log-probs alone."""


def rating_of(interaction: Interaction) -> Rating | None:
    """The log-probs that were captured with an answer."""
    logprobs = interaction.completion.logprobs
    return Rating(logprobs) if logprobs else None


def mean_logprob(interaction: Interaction) -> float | None:
    """Nats per token; None where log-probs were not captured."""
    rating = rating_of(interaction)
    return sum(rating.logprobs) / len(rating.logprobs) if rating else None


class Usual(NamedTuple):
    """The middle of a figure over all traffic, and a robust standard deviation."""

    centre: float
    spread: float


class Population:
    """The usual figures of this traffic, so that an outlier can be told. It keeps a few numbers of
    an interaction and not the interaction: there may be millions."""

    def __init__(
        self, interactions: Iterable[Interaction], ratings: Sequence[Rating | None] | None = None
    ) -> None:
        """
        Args:
            ratings: of each interaction; by default the captured ones.
        """
        from trueup.flag.signals.likelihood import LIKELIHOOD  # which is made of this module

        self._values = {figure.name: array("d") for figure in LIKELIHOOD}
        for rating in ratings or map(rating_of, interactions):
            if rating is None or not rating.logprobs:
                continue
            for figure in LIKELIHOOD:
                if (value := figure.of(rating)) is not None:
                    self._values[figure.name].append(value)
        self._known: dict[str, Usual | None] = {}

    def usual(self, figure: "Figure") -> Usual | None:
        """None where nobody has the figure or all have the same."""
        if figure.name not in self._known:
            self._known[figure.name] = _usual(self._values[figure.name])
        return self._known[figure.name]


class Figure(Protocol):
    """A number that a rating gives."""

    @property
    def name(self) -> str: ...

    def of(self, rating: Rating, /) -> float | None:
        """None where the rating lacks what it takes."""
        ...


def _usual(values: Sequence[float]) -> Usual | None:
    if not values:
        return None
    centre = median(values)
    # 1.4826 turns the median absolute deviation into a standard deviation for normal data
    spread = 1.4826 * median(abs(v - centre) for v in values)
    return Usual(centre, spread) if spread > 0 else None


@dataclass(frozen=True)
class Context:
    """What is known beside the interaction. What is None or empty leaves signals out."""

    population: Population
    config: FlagConfig
    feedback: Sequence[Feedback] = ()
    rating: Rating | None = None
    embedder: "Embedder | None" = None
    entailment: "Entailment | None" = None
    samples: Sequence[str] = field(default=())
    """Further answers to the same prompt."""


class Signal(Protocol):
    """One way to see that an answer is weak."""

    name: str
    version: int
    """Raised with every change of what it says, and `FLAGGER` with it."""

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """In [0, 1], with 0.5 where a label is worth it; None where it cannot be known."""
        ...
