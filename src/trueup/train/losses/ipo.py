"""The IPO losses: a margin to reach and not to pass. Summed as in the paper, and per token."""

from torch import Tensor

from trueup.train.losses.dpo import PreferenceLoss

__all__ = ["ipo_loss", "ipo_norm_loss"]


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Bring every pair's margin over the reference to the same finite value, and keep it there.

        h    = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
        loss = (h - 1 / (2 * beta)) ** 2

    Azar et al. 2023, arXiv:2310.12036, Eq. 17; beta is tau there.
    Departs from the paper: no mean here, as in `dpo_loss`. The log-ratios are sums, as in the
    paper and unlike what TRL's DPOTrainer calls "ipo", which is `ipo_norm_loss`.

    Args:
        policy_chosen_logps: this and the other three as in `dpo_loss`: sums in nats, shape (B,).
        beta: pull towards the reference, > 0. The target margin is 1 / (2 * beta) nats.

    Returns:
        Losses, in nats squared, and the rewards beta * (policy - ref), detached.

    Holds:
        h = 0 costs (1 / (2 * beta)) ** 2: 25 for beta 0.1.
        The loss is 0 at h = 1 / (2 * beta), where the reward margin is 1/2, and nowhere else.
        Beyond it the gradient turns: a pair learnt too well is pulled back.
        Swapping chosen and rejected raises the loss by 2 * h / beta.

    Watch:
        Gradients grow with the distance from the target, so a beta of 0.01 (target 50 nats) needs
        a far smaller learning rate, or a norm to clip at.

    Worked example: policy -9, -12 against ref -10, -11 with beta 0.1 give h = 2 and
    (2 - 5) ** 2 = 9.
    """
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    h = chosen_logratios - rejected_logratios
    losses = (h - 1 / (2 * beta)) ** 2  # Eq. 17
    return PreferenceLoss(
        losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    )


def ipo_norm_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """IPO on log-ratios per token, so that long answers do not reach the target margin first.

        h    = (policy_chosen - ref_chosen) / chosen_length
               - (policy_rejected - ref_rejected) / rejected_length
        loss = (h - 1 / (2 * beta)) ** 2

    Azar et al. 2023, arXiv:2310.12036, Eq. 17, on averages.
    Departs from the paper: log-ratios are divided by the completion's tokens. TRL's DPOTrainer
    does so under the name "ipo", and reports that the authors agree. No mean over pairs.

    Args:
        policy_chosen_logps: this and the other three as in `dpo_loss`: sums in nats, shape (B,).
        chosen_lengths: tokens of each completion, the end token included, >= 1. Shape (B,).
        beta: pull towards the reference, > 0. The target is 1 / (2 * beta) nats *per token*, so
            usual values are above those of `ipo_loss`.

    Returns:
        Losses, and the rewards beta * (policy - ref) / length, detached.

    Holds:
        Policy equal to reference costs (1 / (2 * beta)) ** 2: 25 for beta 0.1.
        Lengths of 1 give `ipo_loss`.
        Repeating an answer, its log-probs and its length n times changes nothing.

    Watch:
        With beta 0.1 the target is 5 nats per token, which no fluent answer reaches: the loss
        then pushes throughout, with a nearly constant force.

    Worked example: policy -9, -12 against ref -10, -11, lengths 4 and 2, beta 0.1: the averages
    are 0.25 and -0.5, h = 0.75, and the loss is (0.75 - 5) ** 2 = 18.0625.
    """
    chosen_logratios = (policy_chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected_logratios = (policy_rejected_logps - ref_rejected_logps) / rejected_lengths
    h = chosen_logratios - rejected_logratios
    losses = (h - 1 / (2 * beta)) ** 2  # Eq. 17
    return PreferenceLoss(
        losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    )
