"""The KTO loss: answers judged one by one, good or not, without a partner."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["KTOLoss", "kto_loss", "kto_reference_point"]


class KTOLoss(NamedTuple):
    """Loss per answer, and the implicit reward to log. Both of shape (B,)."""

    losses: Tensor
    rewards: Tensor


def kto_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    is_desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> KTOLoss:
    """Make good answers likelier and bad ones less likely than the policy's own drift explains.

        gain = beta * (policy - ref - kl)
        loss = desirable_weight * (1 - sigmoid(gain))      for a desirable answer
               undesirable_weight * (1 - sigmoid(-gain))   for an undesirable one

    Ethayarajh et al. 2024 (KTO), arXiv:2402.01306.
    Departs from the paper: the constants that do not train are left out, so that a loss lies
    between 0 and its weight; no mean here, the caller divides by the answers of the whole step.

    Args:
        policy_logps: log p(completion | prompt), summed over completion tokens, in nats. Shape
            (B,), carries the gradient; `ref_logps` carry none.
        is_desirable: True where people wanted the answer. Shape (B,), bool.
        kl: the reference point, from `kto_reference_point`: how far the policy has moved from
            the reference in general. A scalar >= 0; no gradient flows through it.
        beta: pull towards the reference, > 0. Usual 0.1.
        desirable_weight: weight of wanted answers, > 0. With numbers as unequal as d and u, bring
            desirable_weight * d and undesirable_weight * u to about the same.

    Returns:
        Losses, and the rewards beta * (policy - ref), detached: without the reference point.

    Holds:
        Policy equal to reference, kl = 0: every answer costs half its weight.
        The gradient is negative for desirable answers, positive for undesirable ones.
        It vanishes on both far sides: a hopeless answer is given up, as one that is learnt is.
        Calling an answer the opposite turns its loss l into weight - l.

    Watch:
        A gain of 0 is where learning is fastest, so a reference point that is far too high mutes
        the desirable answers. Log `kl`.

    Worked example: policy -9 against ref -10, kl 0.5, beta 0.1: gain 0.05, a loss of 0.487503 if
    desirable and 0.512497 if not; reward 0.1.
    """
    logratios = policy_logps - ref_logps
    gains = beta * (logratios - kl.detach())
    # 1 - sigmoid(x) = sigmoid(-x)
    losses = torch.where(
        is_desirable, desirable_weight * (-gains).sigmoid(), undesirable_weight * gains.sigmoid()
    )
    return KTOLoss(losses, beta * logratios.detach())


def kto_reference_point(policy_mismatched_logps: Tensor, ref_mismatched_logps: Tensor) -> Tensor:
    """How far the policy has moved from the reference on answers to other prompts.

        kl = max(0, mean(policy - ref))

    Ethayarajh et al. 2024 (KTO), arXiv:2402.01306: an estimate, biased but cheap, of the
    divergence of policy from reference, from answers of the batch paired with prompts that are
    not theirs.
    Departs from the paper: none; the paper clamps the mean too.

    Args:
        policy_mismatched_logps: log p(answer i | prompt j), j != i, summed over completion
            tokens, in nats, of all answers of the optimizer step. Shape (any number,).

    Returns:
        A scalar >= 0, detached.

    Holds:
        0 while policy and reference are the same.
        The mean is clamped, not its terms; one answer's fall cancels another's rise.

    Watch:
        The mean is over the whole step: points of its passes, clamped each for itself, do not
        average to it.

    Worked example: policy -8, -12 against ref -10, -11: mean of 2 and -1, 0.5.
    """
    return (policy_mismatched_logps - ref_mismatched_logps).mean().clamp(min=0).detach()
