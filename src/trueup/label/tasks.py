"""From flags to comparisons that people can be asked about."""

import re
from collections.abc import Sequence
from itertools import pairwise

from trueup.records import Completion, Interaction, ReviewTask
from trueup.store import Store

__all__ = ["comparisons", "difference", "tasks_of"]

WORD = re.compile(r"\w+|[^\w\s]")


def comparisons(
    interaction: Interaction, samples: Sequence[Completion], num_pairs: int
) -> list[ReviewTask]:
    """The logged answer against the samples that differ from it most: a comparison of two answers
    that say the same costs a person's time and teaches nothing. None where no sample differs."""
    logged, others = interaction.completion, dict[str, Completion]()
    for one in samples:
        if one.text.strip() and one.text.strip() != logged.text.strip():
            others.setdefault(one.text.strip(), one)
    ranked = sorted(others.values(), key=lambda one: -difference(logged.text, one.text))
    return [
        ReviewTask(
            prompt=interaction.prompt,
            candidates=(logged, one),
            interaction_id=interaction.id,
            source="loop",
        )
        for one in ranked[:num_pairs]
    ]


def difference(first: str, second: str) -> float:
    """How far two texts are apart in [0, 1]: one minus the share of their words, and of their pairs
    of neighbouring words, that both have (Jaccard). Linear in their length."""
    a, b = _pieces(first), _pieces(second)
    return 1 - len(a & b) / len(a | b) if a or b else 0.0


def _pieces(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return {(one,) for one in words} | set(pairwise(words))


def tasks_of(store: Store, *, source: str | None = None) -> list[ReviewTask]:
    """The tasks of two answers, oldest first; of one source, or all."""
    found = store.each(ReviewTask, source=source) if source else store.each(ReviewTask)
    return [one for one in found if len(one.candidates) == 2]
