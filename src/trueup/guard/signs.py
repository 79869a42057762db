"""What is measured: length, entropy, sameness and drift, each against the champion.

Every figure is over the same prompts for both models, so a hard prompt weighs on both sides.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch

from trueup.judges import text
from trueup.models import chat
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import Completion, Messages

__all__ = ["entropy", "length", "same_answer_rate", "sequence_kl"]

Answers = Sequence[Sequence[Completion]]
"""For each prompt, its sampled answers."""


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


def same_answer_rate(answers: Answers) -> float:
    """Share of prompts that received the most common answer, words alone compared."""
    given = Counter[tuple[str, ...]]()
    for group in answers:
        given.update({tuple(text.words(c.text)) for c in group})
    return max(given.values()) / len(answers) if given else 1.0


@torch.no_grad()
def sequence_kl(
    candidate: StoredModel, champion: StoredModel, prompts: Sequence[Messages], answers: Answers
) -> list[float]:
    """KL(candidate || champion) in nats per answer, estimated for each prompt on the candidate's
    own samples by k3 = r - 1 - log r summed over tokens, r = champion / candidate.

    Schulman 2020 ("Approximating KL divergence"): unbiased on on-policy samples and never
    negative, token by token. Monitored, never differentiated.
    """
    estimates = []
    backbone = candidate.backbone
    with champion.acting() as model, task("drift", len(answers)) as advance:
        for prompt, group in zip(prompts, answers, strict=True):
            ids = chat.prompt_ids(backbone.tokenizer, prompt)
            row = Branches(ids, [c.token_ids or () for c in group])
            estimates.append(_k3(group, completion_logprobs(model, [row])[0]))
            advance(1)
    return estimates


def _k3(group: Sequence[Completion], theirs: Sequence[torch.Tensor]) -> float:
    total = 0.0
    for completion, reference in zip(group, theirs, strict=True):
        for ours, ref in zip(completion.logprobs or (), reference.tolist(), strict=True):
            log_ratio = ref - ours
            total += math.expm1(log_ratio) - log_ratio
    return total / len(group)
