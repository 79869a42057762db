"""Losses that need no reference model: half the memory, and nothing that holds the policy back."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trueup.train.losses.anchored import nll_loss
from trueup.train.losses.dpo import PreferenceLoss

__all__ = ["orpo_loss", "simpo_loss"]


def simpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    gamma: float,
) -> PreferenceLoss:
    """Make the chosen answer likelier per token than the rejected one, by a margin.

        h    = policy_chosen / chosen_length - policy_rejected / rejected_length
        loss = -log sigmoid(beta * h - gamma)

    Meng et al. 2024 (SimPO), arXiv:2405.14734, Eq. 6.
    Departs from the paper: no mean over pairs, as in `dpo_loss`.

    Args:
        policy_chosen_logps: log p(chosen | prompt), summed over completion tokens, in nats. Shape
            (B,), carries the gradient, as does the rejected one.
        chosen_lengths: tokens of each completion, the end token included, >= 1. Shape (B,).
        beta: scale of the rewards, > 0. Usual 2 to 10, as it weighs averages.
        gamma: the reward margin to reach, >= 0. Usual 0.25 to 0.5 times beta.

    Returns:
        Losses, and the rewards beta * policy / length, detached.

    Holds:
        Answers equally likely per token cost log(1 + exp(gamma)).
        With gamma 0, swapping chosen and rejected raises the loss by beta * h.
        Repeating an answer, its log-probs and its length n times changes nothing.
        The loss falls as chosen gets likelier and as rejected gets less likely, always.

    Watch:
        Nothing ties the policy to where it began: watch drift, and keep learning rates low.

    Worked example: policy -9 over 4 tokens and -12 over 2, beta 2 and gamma 0.5: h = -2.25 + 6 =
    3.75, -log sigmoid(7) = 0.000911, rewards -4.5 and -12.
    """
    chosen_means = policy_chosen_logps / chosen_lengths
    rejected_means = policy_rejected_logps / rejected_lengths
    h = chosen_means - rejected_means
    losses = -F.logsigmoid(beta * h - gamma)  # Eq. 6
    return PreferenceLoss(losses, beta * chosen_means.detach(), beta * rejected_means.detach())


def orpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Imitate the chosen answer, and raise its odds over those of the rejected one.

        p    = exp(policy / length), the geometric mean of an answer's token probabilities
        odds = p / (1 - p)
        loss = nll_loss - beta * log sigmoid(log odds_chosen - log odds_rejected)

    Hong et al. 2024 (ORPO), arXiv:2403.07691, Eq. 6 and 7; beta is lambda there.
    Departs from the paper: no mean over pairs. TRL's ORPOTrainer also imitates the prompt; here,
    as in the paper, only the answer.

    Args:
        policy_chosen_logps: log p(chosen | prompt), summed over completion tokens, in nats. Shape
            (B,), carries the gradient, as does the rejected one.
        chosen_lengths: tokens of each completion, the end token included, >= 1. Shape (B,).
        beta: weight of the odds term, > 0. Usual 0.1.

    Returns:
        Losses, and the rewards beta * policy / length, detached.

    Holds:
        Answers equally likely per token cost nll + beta * log 2.
        The odds stay exact as p nears 1, and finite at 1: nothing cancels.
        The loss falls as chosen gets likelier and as rejected gets less likely, always.

    Watch:
        A rejected answer the policy is certain of has an unbounded gradient, 1 / (1 - p) per
        nat: clip the norm. Nothing ties the policy to where it began.

    Worked example: policy -2 over 4 tokens and -4 over 4, beta 0.1: p = 0.606531 and 0.367879,
    log odds 0.432752 and -0.541325, loss 0.5 - 0.1 * log sigmoid(0.974077) = 0.532030.
    """
    chosen_means = policy_chosen_logps / chosen_lengths
    rejected_means = policy_rejected_logps / rejected_lengths
    log_odds_ratio = (chosen_means - _log1mexp(chosen_means)) - (
        rejected_means - _log1mexp(rejected_means)
    )
    nll = nll_loss(policy_chosen_logps, chosen_lengths)
    losses = nll - beta * F.logsigmoid(log_odds_ratio)  # Eq. 6, 7
    return PreferenceLoss(losses, beta * chosen_means.detach(), beta * rejected_means.detach())


def _log1mexp(logps: Tensor) -> Tensor:
    """log(1 - p) from log p, exact also where p is all but 1."""
    # expm1 keeps what 1 - exp would cancel; the clamp keeps value and gradient finite at p = 1
    return torch.log(-torch.expm1(logps.clamp(max=-torch.finfo(logps.dtype).eps)))
