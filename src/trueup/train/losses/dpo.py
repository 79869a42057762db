"""The DPO loss."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

__all__ = ["PreferenceLoss", "dpo_loss"]


class PreferenceLoss(NamedTuple):
    """Per-pair loss, and the implicit rewards to log. All of shape (B,)."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """Raise the chosen answer over the rejected one by more than the reference already does.

        h    = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
        loss = -(1 - e) * log sigmoid(beta * h) - e * log sigmoid(-beta * h)

    Rafailov et al. 2023, arXiv:2305.18290, Eq. 7, which has e = 0. With e > 0 it is conservative
    DPO: Mitchell 2023, *A note on DPO with noisy preferences and relationship to IPO*.
    Departs from the paper: no mean here; the caller divides by the pairs of the whole step, so
    that splitting a step into passes changes nothing.

    Args:
        policy_chosen_logps: log p(chosen | prompt), summed over completion tokens, in nats. Shape
            (B,), carries the gradient, as does the rejected one. The two `ref_` ones come from
            the frozen reference and carry none.
        beta: pull towards the reference, > 0. Usual 0.05 to 0.5. Larger stays closer.
        label_smoothing: the share e of labels believed to be the wrong way round, in [0, 0.5).

    Returns:
        Losses, and the rewards beta * (policy - ref), detached.

    Holds:
        h = 0 costs log 2, whatever beta and e.
        Swapping chosen and rejected raises the loss by exactly (1 - 2e) * beta * h.
        A constant added to policy and reference of one side changes nothing.
        e = 0: the gradient with respect to h is -beta * sigmoid(-beta * h), never positive.
        e > 0: the loss is lowest at h = log((1 - e) / e) / beta, not at infinity.

    Watch:
        The loss also falls when both log-probabilities sink, the chosen one more slowly. The
        loop logs the chosen one's own change for that reason.

    Worked example: policy -9, -12 against ref -10, -11 with beta 0.1 give h = 2, a loss of
    -log sigmoid(0.2) = 0.598139, and rewards 0.1 and -0.1. With e = 0.1 the loss is higher by
    e * beta * h = 0.02: 0.618139.
    """
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    h = chosen_logratios - rejected_logratios
    e = label_smoothing
    losses = -(1 - e) * F.logsigmoid(beta * h) - e * F.logsigmoid(-beta * h)  # Eq. 7 at e = 0
    return PreferenceLoss(
        losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    )
