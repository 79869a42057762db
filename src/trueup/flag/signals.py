"""Cheap signs of a weak answer. Each is in [0, 1]; 0.5 is the point where a label is worth it."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

from trueup.flag.config import FlagConfig
from trueup.judges import text
from trueup.records import Feedback, Interaction

__all__ = ["Population", "signals"]


class Population:
    """The usual log-prob of this traffic: median and spread, so that an outlier can be told."""

    def __init__(self, interactions: Sequence[Interaction]) -> None:
        values = [v for i in interactions if (v := mean_logprob(i)) is not None]
        self.centre = median(values) if values else 0.0
        # 1.4826 turns the median absolute deviation into a standard deviation for normal data
        self.spread = 1.4826 * median(abs(v - self.centre) for v in values) if values else 0.0


def mean_logprob(interaction: Interaction) -> float | None:
    """Nats per token; None where log-probs were not captured."""
    logprobs = interaction.completion.logprobs
    return sum(logprobs) / len(logprobs) if logprobs else None


def signals(
    interaction: Interaction,
    feedback: Sequence[Feedback],
    population: Population,
    config: FlagConfig,
) -> dict[str, float]:
    """All signals that can be computed for an interaction; a missing one is left out."""
    answer = interaction.completion.text
    found = {
        "empty": 0.0 if text.words(answer) else 1.0,
        "truncated": 0.6 if interaction.completion.finish_reason == "length" else 0.0,
        "repetitive": repetition(answer),
        "feedback": _feedback(feedback),
    }
    context = text.grounding(interaction.prompt).context
    if context:
        found["ungrounded"] = min(
            1.0, 0.5 * _ungrounded(interaction, context) / config.max_ungrounded
        )
    mean = mean_logprob(interaction)
    if mean is not None and population.spread > 0:
        surprise = (population.centre - mean) / population.spread
        found["unlikely"] = min(1.0, max(0.0, 0.5 * surprise / config.outlier_z))
    return {name: round(value, 4) for name, value in found.items()}


def repetition(answer: str) -> float:
    """Share of three-word sequences that were said before; 0 for answers of under six words."""
    said = text.words(answer)
    if len(said) < 6:
        return 0.0
    runs = Counter(tuple(said[i : i + 3]) for i in range(len(said) - 2))
    return sum(count - 1 for count in runs.values()) / sum(runs.values())


def _ungrounded(interaction: Interaction, context: str) -> float:
    """Share of the answer's content words that stand neither in the prompt nor in the context."""
    said = text.content_words(interaction.completion.text)
    known = {w for m in interaction.prompt for w in text.content_words(m.content)}
    known |= set(text.content_words(context))
    return sum(w not in known for w in said) / len(said) if said else 0.0


def _feedback(feedback: Sequence[Feedback]) -> float:
    """A thumb down or an edit calls for a label whatever the text looks like."""
    return 1.0 if any(f.rating == -1 or f.edit for f in feedback) else 0.0
