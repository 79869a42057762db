"""The hinge loss: pairs that are far enough apart are left alone."""

import torch
from torch import Tensor

from trueup.train.losses.dpo import PreferenceLoss

__all__ = ["hinge_loss"]


def hinge_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Push a pair apart with a constant force until its margin is 1 / beta nats, then let go.

        h    = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
        loss = max(0, 1 - beta * h)

    Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425; on log-ratios as in Liu et al. 2023 (RSO),
    arXiv:2309.06657.
    Departs from the papers: SLiC-HF has no reference in the margin, and adds a likelihood term
    on a target answer; here the log-ratios keep the policy near, and nothing is added. No mean.

    Args:
        policy_chosen_logps: this and the other three as in `dpo_loss`: sums in nats, shape (B,).
        beta: pull towards the reference, > 0: one over the margin to reach, in nats.

    Returns:
        Losses, and the rewards beta * (policy - ref), detached.

    Holds:
        h = 0 costs 1, whatever beta.
        The loss is never negative, and 0 from h = 1 / beta on.
        The gradient with respect to h is -beta before that point and 0 after it.

    Watch:
        A wrong label pulls exactly as hard as a right one, and is never let go.

    Worked example: policy -9, -12 against ref -10, -11 with beta 0.1 give h = 2 and
    1 - 0.2 = 0.8.
    """
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    h = chosen_logratios - rejected_logratios
    losses = torch.relu(1 - beta * h)
    return PreferenceLoss(
        losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    )
