"""Losses of a policy that learns from its own samples, and of the value function beside it."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PolicyLoss", "ValueLoss", "clipped_policy_loss", "clipped_value_loss"]


class PolicyLoss(NamedTuple):
    """One entry a token, or a completion where whole completions are compared."""

    losses: Tensor
    ratios: Tensor
    """policy / old policy, detached."""
    is_clipped: Tensor
    """Where the clipped branch decided, so that no gradient flows."""


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PolicyLoss:
    """Make what turned out better than expected likelier, by a bounded step.

        r    = exp(logprobs - old_logprobs)
        loss = -min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)

    Schulman et al. 2017, arXiv:1707.06347, Eq. 7; a higher `clip_high` than `clip_low` is DAPO's
    clip-higher (Yu et al. 2025, arXiv:2503.14476, Eq. 10). Departs from the paper: no mean here;
    the caller divides by the tokens, or completions, of the whole step.

    Args:
        logprobs: log p of what was drawn, in nats, with the gradient. One entry a token (PPO,
            GRPO), or the sum over a completion (RLOO as TRL and Ahmadian et al. 2024 have it).
        old_logprobs: the same under the policy that drew it. No gradient.
        advantages: how much better than expected it turned out; no gradient.
        clip_low: how far the ratio may fall before the gradient stops, in (0, 1).
        clip_high: how far it may rise, > 0.

    Holds:
        At the policy that drew (r = 1) the gradient is that of -A * logprobs: REINFORCE.
        r = 1 costs -A, and nothing is clipped.
        A > 0 and r > 1 + clip_high, or A < 0 and r < 1 - clip_low: no gradient.

    Worked example: log-probs -1 against old -1.5 give r = 1.648721. With A = 2 the clipped branch
    1.2 * 2 decides: a loss of -2.4. With A = -2 the unclipped one is the worse: 3.297443.
    """
    ratios = (logprobs - old_logprobs).exp()
    free = -ratios * advantages
    held = -ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    return PolicyLoss(torch.maximum(free, held), ratios.detach(), (held > free).detach())


class ValueLoss(NamedTuple):
    """One entry a token."""

    losses: Tensor
    is_clipped: Tensor


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None = 0.2
) -> ValueLoss:
    """Teach the value function what the return turned out to be, by a bounded step.

        held = old_values + clip(values - old_values, -c, c)
        loss = max((values - returns)^2, (held - returns)^2) / 2

    Schulman et al. 2017's reference code; the paper has the plain square, which is `clip=None`.
    Departs from it: no mean here.

    Args:
        values: V of the state before each token, with the gradient. Shape (T,).
        old_values: the same when the completions were drawn. No gradient.
        returns: discounted sum of rewards from here, in the values' unit.
        clip: the most that a value may move within one batch of rollouts, in the same unit.

    Holds:
        values = old_values costs half the squared error, clipped or not.
        Never below the plain loss.

    Worked example: values 1, old 0, return 2, clip 0.2: held is 0.2, the loss
    max(1, 3.24) / 2 = 1.62.
    """
    plain = (values - returns).square()
    if clip is None:
        return ValueLoss(plain / 2, torch.zeros_like(plain, dtype=torch.bool))
    held = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return ValueLoss(torch.maximum(plain, held) / 2, (held > plain).detach())
