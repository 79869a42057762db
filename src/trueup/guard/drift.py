"""How far the candidate went: KL on its own samples, and what became of the chosen answers.

KL is estimated by Schulman's k3 ("Approximating KL divergence", 2020): unbiased on samples of the
candidate and never negative, token by token. Monitored, never differentiated.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from trueup.guard.answers import Answers
from trueup.models import chat
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.progress import task
from trueup.records import Completion, Messages
from trueup.stats import Interval

if TYPE_CHECKING:
    from torch import Tensor

    from trueup.models.stored import StoredModel

__all__ = ["Change", "chosen_changes", "per_token", "sequence_kl"]


class Change(NamedTuple):
    """Nats that an answer moved by, and its tokens."""

    nats: float
    tokens: int


def sequence_kl(
    candidate: "StoredModel",
    reference: "StoredModel",
    prompts: Sequence[Messages],
    answers: Answers,
) -> list[float]:
    """KL(candidate || reference) in nats per answer, estimated for each prompt on the candidate's
    own samples by k3 = r - 1 - log r summed over tokens, r = reference / candidate."""
    import torch

    estimates = []
    backbone = candidate.backbone
    with torch.no_grad(), reference.acting() as model, task("drift", len(answers)) as advance:
        for prompt, group in zip(prompts, answers, strict=True):
            ids = chat.prompt_ids(backbone.tokenizer, prompt)
            row = Branches(ids, [c.token_ids or () for c in group])
            estimates.append(_k3(group, completion_logprobs(model, [row])[0]))
            advance(1)
    return estimates


def _k3(group: Sequence[Completion], theirs: Sequence["Tensor"]) -> float:
    total = 0.0
    for completion, reference in zip(group, theirs, strict=True):
        for ours, ref in zip(completion.logprobs or (), reference.tolist(), strict=True):
            log_ratio = ref - ours
            total += math.expm1(log_ratio) - log_ratio
    return total / len(group)


def chosen_changes(
    candidate: "StoredModel", champion: "StoredModel", chosen: Sequence[tuple[Messages, Completion]]
) -> list[Change]:
    """What became of each chosen answer: log p(candidate) - log p(champion), summed over tokens.

    Below zero the candidate unlearns what it was taught (likelihood displacement: Razin et al.
    2024, arXiv:2410.08847; Pal et al. 2024, arXiv:2402.13228).
    """
    before, after = (_logps(model, chosen) for model in (champion, candidate))
    return [Change(sum(new) - sum(old), len(new)) for old, new in zip(before, after, strict=True)]


def _logps(
    model: "StoredModel", chosen: Sequence[tuple[Messages, Completion]]
) -> list[list[float]]:
    """Log-prob of every token of every answer."""
    import torch

    tokenizer, found = model.backbone.tokenizer, []
    with torch.no_grad(), model.acting() as network, task("chosen", len(chosen)) as advance:
        for prompt, completion in chosen:
            ids = chat.completion_ids(tokenizer, completion)
            row = Branches(chat.prompt_ids(tokenizer, prompt), [ids])
            found.append(completion_logprobs(network, [row])[0][0].tolist())
            advance(1)
    return found


def per_token(changes: Sequence[Change], *, tokens: int = 1) -> Interval | None:
    """Nats per `tokens` tokens with a 95 % interval: all nats over all tokens, so that short
    answers do not weigh more than they hold; its error by linearising the ratio.

    None for fewer than two answers, or none with a token.
    """
    from trueup.stats import mean_interval

    total = sum(one.tokens for one in changes)
    if len(changes) < 2 or not total:
        return None
    rate, mean = sum(one.nats for one in changes) / total, total / len(changes)
    spread = mean_interval([(one.nats - rate * one.tokens) / mean for one in changes])
    assert spread is not None, "there are two"
    return Interval(*(tokens * (rate + side) for side in (0.0, spread.low, spread.high)))
