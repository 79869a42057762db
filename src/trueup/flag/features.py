"""What a learned flagger looks at: the signals, figures behind them, the answer's shape, vectors.

Feedback and errors are not among them: what says that an answer is weak may not also predict it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from trueup.flag.config import FlagConfig
from trueup.flag.remembered import Remembered
from trueup.flag.signals import SIGNALS, Context, Population, Rating, score
from trueup.flag.signals.likelihood import entropy, mean, share_under, worst
from trueup.judges import text
from trueup.models.embedder import Embedder
from trueup.records import Interaction

__all__ = ["COLUMNS", "TELLS_TRUTH", "Known", "columns", "vectors"]

TELLS_TRUTH = ("feedback", "error")
_HEDGES = frozenset(("could", "generally", "likely", "may", "maybe", "might", "perhaps"))


def _words(interaction: Interaction, rating: Rating | None) -> float:
    return float(np.log1p(len(text.words(interaction.completion.text))))


def _prompt_words(interaction: Interaction, rating: Rating | None) -> float:
    return float(np.log1p(sum(len(text.words(m.content)) for m in interaction.prompt)))


def _variety(interaction: Interaction, rating: Rating | None) -> float:
    said = text.words(interaction.completion.text)
    return len(set(said)) / max(1, len(said))


def _digits(interaction: Interaction, rating: Rating | None) -> float:
    said = text.words(interaction.completion.text)
    return sum(w[0].isdigit() for w in said) / max(1, len(said))


def _names(interaction: Interaction, rating: Rating | None) -> float:
    """Share of words with a capital that do not begin a sentence: names, mostly."""
    said = [w for s in text.sentences(interaction.completion.text) for w in s.split()[1:]]
    return sum(w[:1].isupper() for w in said) / max(1, len(said))


def _lines(interaction: Interaction, rating: Rating | None) -> float:
    return float(np.log1p(interaction.completion.text.count("\n")))


def _marks(interaction: Interaction, rating: Rating | None) -> float:
    said = interaction.completion.text
    odd = sum(not (c.isalnum() or c.isspace()) for c in said)
    return odd / max(1, len(said))


def _hedges(interaction: Interaction, rating: Rating | None) -> float:
    said = text.words(interaction.completion.text)
    return sum(w in _HEDGES for w in said) / max(1, len(said))


def _of_rating(of: Callable[[Rating], float | None]) -> "Column":
    def value(interaction: Interaction, rating: Rating | None) -> float | None:
        return of(rating) if rating else None

    return value


Column = Callable[[Interaction, Rating | None], float | None]

SHAPE: dict[str, Column] = {
    "log words": _words,
    "log words of prompt": _prompt_words,
    "share of different words": _variety,
    "share of numbers": _digits,
    "share of names": _names,
    "log lines": _lines,
    "share of marks": _marks,
    "share of hedges": _hedges,
    "mean log-prob": _of_rating(mean),
    "lowest log-prob": _of_rating(worst),
    "share of surprises": _of_rating(share_under),
    "mean entropy": _of_rating(entropy),
}

COLUMNS = tuple([s.name for s in SIGNALS if s.name not in TELLS_TRUTH] + list(SHAPE))
"""Names of all columns but the vectors'."""


class Known(NamedTuple):
    """What is known of answers: columns by `COLUMNS`, NaN where one cannot be had, and vectors."""

    columns_NC: np.ndarray
    vectors_ND: np.ndarray
    """Prompt and answer, one after the other; (N, 0) without an embedder."""

    def rows(self, places: Sequence[int] | np.ndarray) -> "Known":
        """Those at these places."""
        return Known(self.columns_NC[places], self.vectors_ND[places])


def columns(
    interactions: Sequence[Interaction],
    ratings: Sequence[Rating | None],
    population: Population,
    config: FlagConfig,
    contexts: Sequence[Context] | None = None,
) -> np.ndarray:
    """Shape (N, C).

    Args:
        contexts: of each interaction, where signals were given more than ratings.
    """
    known = contexts or [Context(population, config, rating=rating) for rating in ratings]
    rows = []
    for one, context in zip(interactions, known, strict=True):
        found: dict[str, float | None] = dict(score(one, context))
        found |= {name: of(one, context.rating) for name, of in SHAPE.items()}
        rows.append([np.nan if (v := found.get(name)) is None else v for name in COLUMNS])
    return np.array(rows, float).reshape(-1, len(COLUMNS))


def vectors(
    interactions: Sequence[Interaction], embedder: Embedder | None, remembered: Remembered
) -> np.ndarray:
    """The vectors of what was asked last and of the answer, side by side; shape (N, 2 D)."""
    if embedder is None:
        return np.zeros((len(interactions), 0))
    asked = [i.prompt[-1].content if i.prompt else "" for i in interactions]
    texts = [*asked, *(i.completion.text for i in interactions)]

    def make(places: Sequence[int]) -> list[np.ndarray]:
        return list(embedder([texts[place] for place in places]))

    found = np.array(remembered.get("embed", embedder.id, texts, make))
    return np.hstack([found[: len(asked)], found[len(asked) :]])
