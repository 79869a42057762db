"""How good a toy model is, against the truth: what no real deployment can measure.

Fresh answers at temperature 1 to the same held-out prompts every time, with the same seed, so that
two models are compared on one set of questions. Every mean comes with its standard error over
prompts: the answers to one prompt are averaged first, because they are not independent.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from trueup.models.backbone import Backbone
from trueup.records import Completion, Messages, Sampling
from trueup.toy.language import MAX_TOKENS, copy_correct, copy_prompts, gold, prompts, words

__all__ = ["Estimate", "Figures", "figures", "sampling"]

EVAL_SEED = 20_240
"""Picks the held-out prompts; one for all measurements."""

Answers = Sequence[Sequence[Completion]]
"""For each prompt, its sampled answers."""


class Estimate(NamedTuple):
    """A mean over prompts and its standard error; infinite where there is one prompt only."""

    mean: float
    error: float


class Figures(NamedTuple):
    """What a model does on held-out prompts; all but `copy` on prompts that name two topics."""

    gold: Estimate
    length: Estimate
    """Words per answer."""
    entropy: Estimate
    """Nats per token, the end token counted: minus the mean log-prob of the model's own tokens."""
    unique: float
    """Different answers among all answers, in (0, 1]. Not a mean over prompts, so no error."""
    copy: Estimate
    """Share of right copies."""
    kl: Estimate
    """KL(model || base) in nats per answer: own samples' log p(model) - log p(base), summed over
    tokens, so that single prompts may come out below zero."""


def sampling(seed: int) -> Sampling:
    """How answers of the toy language are drawn: the model's own distribution, to its limit."""
    return Sampling(temperature=1.0, max_tokens=MAX_TOKENS, seed=seed)


def figures(
    backbone: Backbone,
    role: str | None = None,
    *,
    base: Backbone | None = None,
    num_prompts: int = 128,
    num_samples: int = 4,
    seed: int = 0,
) -> Figures:
    """Measure one role of a toy model.

    Args:
        role: an adapter attached to `backbone`; None is the backbone itself.
        base: what KL is held against; by default `backbone` without an adapter. Name it for a
            model that was trained whole.
        num_prompts: of each kind.
        seed: of the answers; the prompts are always the same.
    """
    about = prompts(num_prompts, EVAL_SEED, held_out=True)
    copies = copy_prompts(num_prompts, EVAL_SEED, held_out=True)
    said = _drawn(backbone, role, about, num_samples, seed)
    copied = _drawn(backbone, role, copies, 1, seed)
    texts = [completion.text for group in said for completion in group]
    return Figures(
        gold=_estimate([fmean(gold(p, c.text) for c in g) for p, g in _each(about, said)]),
        length=_estimate([fmean(len(words(c.text)) for c in group) for group in said]),
        entropy=_entropy(said),
        unique=len(set(texts)) / len(texts),
        copy=_estimate([float(copy_correct(p, g[0].text)) for p, g in _each(copies, copied)]),
        kl=_estimate(_log_ratios(base or backbone, about, said)),
    )


def _drawn(
    backbone: Backbone, role: str | None, asked: Sequence[Messages], num_samples: int, seed: int
) -> Answers:
    return backbone.complete(
        asked,
        sampling(seed),
        role=role,
        weights=role or backbone.base_weights,
        num_samples=num_samples,
    )


def _entropy(said: Answers) -> Estimate:
    """Of all tokens alike: a ratio of two sums, its error by linearising the ratio."""
    nats = [-sum(sum(c.logprobs or ()) for c in group) for group in said]
    tokens = [sum(len(c.logprobs or ()) for c in group) for group in said]
    rate = sum(nats) / sum(tokens)
    spread = _estimate([(n - rate * t) / fmean(tokens) for n, t in zip(nats, tokens, strict=True)])
    return Estimate(rate, spread.error)


def _log_ratios(base: Backbone, asked: Sequence[Messages], said: Answers) -> list[float]:
    """For each prompt the mean over its answers of log p(model) - log p(base)."""
    import torch

    from trueup.models import chat
    from trueup.models.logprobs import Branches, completion_logprobs

    rows = [
        Branches(chat.prompt_ids(base.tokenizer, p), [c.token_ids or () for c in group])
        for p, group in _each(asked, said)
    ]
    with torch.no_grad(), base.acting_as(None) as model:
        theirs = completion_logprobs(model, rows)
    return [
        fmean(sum(c.logprobs or ()) - float(b.sum()) for c, b in zip(group, branches, strict=True))
        for group, branches in zip(said, theirs, strict=True)
    ]


def _each(
    asked: Sequence[Messages], said: Answers
) -> Sequence[tuple[Messages, Sequence[Completion]]]:
    return list(zip(asked, said, strict=True))


def _estimate(values: Sequence[float]) -> Estimate:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(fmean(values), error)
