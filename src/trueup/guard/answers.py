"""What the guard looks at: for each prompt, some answers; and their length and entropy.

Every figure is over the same prompts for both models, so a hard prompt weighs on both sides.
"""

from collections.abc import Sequence
from typing import NamedTuple

from trueup.records import Completion, Messages

__all__ = ["Answers", "Both", "entropy", "firsts", "length"]

Answers = Sequence[Sequence[Completion]]
"""For each prompt, its sampled answers."""


class Both(NamedTuple):
    """The same prompts, answered by two models."""

    prompts: Sequence[Messages]
    ours: Answers
    """The candidate's."""
    theirs: Answers
    """The champion's."""

    def at(self, places: Sequence[int]) -> "Both":
        """The prompts at these places."""
        return Both(
            [self.prompts[place] for place in places],
            [self.ours[place] for place in places],
            [self.theirs[place] for place in places],
        )


def length(answers: Answers) -> list[float]:
    """Mean tokens per answer, for each prompt."""
    return [sum(len(c.token_ids or ()) for c in group) / len(group) for group in answers]


def entropy(answers: Answers) -> list[float]:
    """Nats per token, for each prompt: minus the mean log-prob of its own samples at temperature 1,
    which is an unbiased estimate of the entropy along the text."""
    return [
        -sum(sum(c.logprobs or ()) for c in group)
        / max(1, sum(len(c.logprobs or ()) for c in group))
        for group in answers
    ]


def firsts(answers: Answers) -> list[str]:
    """The first answer to each prompt, as text: what is compared across prompts."""
    return [group[0].text for group in answers]
