"""From rewards to advantages: how much better an answer, or a token, was than expected.

GAE expects what a value function says; the group methods expect what the other answers to the
same prompt got. All are pure functions without a gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Advantages",
    "centered_advantages",
    "gae",
    "grpo_advantages",
    "rloo_advantages",
    "whiten",
]


class Advantages(NamedTuple):
    """Both of shape (T,)."""

    advantages: Tensor
    returns: Tensor
    """What the value function should have said: advantages + values."""


def gae(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation over one completion.

        delta_t = reward_t + gamma * V_{t+1} - V_t          V is 0 after the last token
        A_t     = delta_t + gamma * lam * A_{t+1}

    Schulman et al. 2015, arXiv:1506.02438, Eq. 16.

    Args:
        rewards: what each token earned; the answer's own score stands on its last token. (T,).
        values: V before each token, shape (T,).
        gamma: discount, in (0, 1]; 1 for answers, where later words count like earlier ones.
        lam: 0 trusts the value function alone, 1 the rewards alone.

    Holds:
        gamma = lam = 1: returns are the sum of rewards from here on, whatever the values.
        lam = 0: A_t = delta_t.

    Worked example: rewards 0, 1, values 0.5, 0.25, gamma 1, lam 0.5: deltas -0.25, 0.75,
    advantages 0.125, 0.75, returns 0.625, 1.
    """
    advantages, ahead, value_ahead = torch.zeros_like(rewards), 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = float(rewards[t]) + gamma * value_ahead - float(values[t])
        ahead = delta + gamma * lam * ahead
        advantages[t], value_ahead = ahead, float(values[t])
    return Advantages(advantages, advantages + values)


def rloo_advantages(rewards_N: Tensor) -> Tensor:
    """Each answer against the mean of the others to the same prompt; shape (N,), N >= 2.

        A_i = R_i - mean of R_j over j != i  =  N / (N - 1) * (R_i - mean R)

    Ahmadian et al. 2024, arXiv:2402.14740, Eq. 6. Unbiased: the baseline does not know the answer.

    Holds: sums to 0 within the group.

    Worked example: 1, 2, 6 give -3, -1.5, 4.5.
    """
    count = len(rewards_N)
    return (rewards_N - rewards_N.mean()) * count / (count - 1)


def centered_advantages(rewards_N: Tensor) -> Tensor:
    """Each answer against the mean of all, itself included; shape (N,).

        A_i = R_i - mean R  =  (N - 1) / N * RLOO's

    Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO). The factor shortens the step; where a KL penalty
    stands beside it in the loss, it also weakens the reward, and the policy settles at
    beta * N / (N - 1) in place of beta.

    Worked example: 1, 2, 6 give -2, -1, 3.
    """
    return rewards_N - rewards_N.mean()


def grpo_advantages(rewards_N: Tensor, *, eps: float = 1e-4) -> Tensor:
    """As `centered_advantages`, in standard deviations of the group; shape (N,).

        A_i = (R_i - mean R) / (std R + eps)                std with N - 1

    Shao et al. 2024, arXiv:2402.03300, Sec. 4.1.2; eps as in TRL. Every prompt pulls alike, hard or
    easy, so the unit of the reward no longer sets the distance from the reference: there is no
    optimum ref * exp(reward / beta) that this approaches.

    Worked example: 1, 2, 6 have deviation sqrt(7) and give -0.755929, -0.377964, 1.133893 (eps 0).
    """
    return (rewards_N - rewards_N.mean()) / (rewards_N.std() + eps)


def whiten(pieces: Sequence[Tensor], *, eps: float = 1e-8) -> list[Tensor]:
    """Advantages of a whole batch on mean 0 and deviation 1 over all tokens; the pieces keep
    their shapes. A batch of one token, or of equal ones, gives zeros; one of nothing, nothing."""
    if not pieces:
        return []
    flat = torch.cat(list(pieces)).double()  # equal ones must not differ by their mean's rounding
    mean, spread = flat.mean(), flat.std(unbiased=False)
    return [((one - mean) / (spread + eps)).to(one.dtype) for one in pieces]
