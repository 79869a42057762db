"""Signs in the form of an answer: none at all, cut off, or going round in circles."""

from collections import Counter

from trueup.flag.signals.base import Context
from trueup.judges import text
from trueup.records import Interaction

__all__ = ["Empty", "Repetitive", "Truncated", "repetition"]


class Empty:
    """No word was said, and no function called."""

    name, version = "empty", 2

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """0 or 1."""
        said = interaction.completion
        return 0.0 if said.tool_calls or text.words(said.text) else 1.0


class Truncated:
    """It ran into its token limit."""

    name, version = "truncated", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """0 or 0.6: an answer may be fine up to there."""
        return 0.6 if interaction.completion.finish_reason == "length" else 0.0


class Repetitive:
    """It says the same again and again."""

    name, version = "repetitive", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """The share that was said before."""
        return repetition(interaction.completion.text)


def repetition(answer: str) -> float:
    """Share of three-word sequences that were said before; 0 for answers of under six words."""
    said = text.words(answer)
    if len(said) < 6:
        return 0.0
    runs = Counter(tuple(said[i : i + 3]) for i in range(len(said) - 2))
    return sum(count - 1 for count in runs.values()) / sum(runs.values())
