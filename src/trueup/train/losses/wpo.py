"""Weights that let pairs count as far as the policy would have written them."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["wpo_weights"]


def wpo_weights(
    chosen_logprobs: Sequence[Tensor],
    rejected_logprobs: Sequence[Tensor],
    chosen_collisions: Sequence[Tensor],
    rejected_collisions: Sequence[Tensor],
) -> Tensor:
    """How likely the policy is to write a pair itself, against what it writes as a rule.

        typical(y) = mean over tokens of (log p(token) - log sum_v p_v ** 2)
        weight     = min(1, exp(typical(chosen) + typical(rejected)))

    Zhou et al. 2024 (WPO), arXiv:2406.11827, with the weights it calls sampled alignment; the
    bound is that of the authors' code. Multiply any preference loss by it.
    Departs from TRL 1.16: its `use_weighting` has no bound, and gives pairs weights above 1.

    Args:
        chosen_logprobs: the policy's log-probs of each completion's tokens, in nats: B tensors of
            shape (tokens of that completion,), each with one token at least.
        chosen_collisions: log sum_v p_v ** 2 at the same positions: the log of the chance that
            two draws agree there.

    Returns:
        Weights in (0, 1], of shape (B,), detached: the policy does not learn to lower them.

    Holds:
        A policy that is uniform at every token weighs every pair 1.
        Both sides count alike: swapping them changes nothing.
        Repeating an answer's tokens changes nothing: it is an average.
        An answer less likely by log 2 per token halves the weight.

    Watch:
        Weights of off-policy pairs are small, and so then is the step: compare runs at equal sums
        of weights, not at equal steps.

    Worked example: chosen tokens at probability 0.5, 0.1 and rejected 0.2, from a policy whose
    sum of squares is 0.5 everywhere: exp((0 + log 0.2) / 2 + log 0.4) = 0.178885.
    """
    with torch.no_grad():
        typical = _typical(chosen_logprobs, chosen_collisions) + _typical(
            rejected_logprobs, rejected_collisions
        )
        return typical.exp().clamp(max=1.0)


def _typical(logprobs: Sequence[Tensor], collisions: Sequence[Tensor]) -> Tensor:
    """Mean log-prob of a completion's tokens over that of a draw like the policy's. Shape (B,)."""
    return torch.stack(
        [(one - draw).mean() for one, draw in zip(logprobs, collisions, strict=True)]
    )
