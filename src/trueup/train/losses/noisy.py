"""DPO for labels that are not certain: known to be noisy, or sure to different degrees."""

from torch import Tensor
from torch.nn import functional as F

from trueup.train.losses.dpo import PreferenceLoss

__all__ = ["robust_dpo_loss", "soft_dpo_loss"]


def robust_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> PreferenceLoss:
    """Undo a known rate of flipped labels: on average over flips, this is DPO on true labels.

        h    = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
        loss = (-(1 - e) * log sigmoid(beta * h) + e * log sigmoid(-beta * h)) / (1 - 2e)

    Chowdhury et al. 2024, arXiv:2403.00409, Sec. 3.1.
    Departs from the paper: no mean here, as in `dpo_loss`.

    Args:
        policy_chosen_logps: this and the other three as in `dpo_loss`: sums in nats, shape (B,).
        beta: pull towards the reference, > 0.
        label_smoothing: the share e of labels that are flipped, in (0, 0.5); measure it, by
            labelling some pairs twice.

    Returns:
        Losses, which may be negative, and the rewards beta * (policy - ref), detached.

    Holds:
        h = 0 costs log 2, whatever beta and e.
        (1 - e) times the loss of a pair plus e times that of the swapped pair is its DPO loss.
        Swapping chosen and rejected raises the loss by beta * h / (1 - 2e).
        The gradient with respect to h is never above -beta * e / (1 - 2e).

    Watch:
        By the last line the push never ends, however well a pair is learnt: the loss has no lower
        bound and the policy drifts further than under DPO. An `e` set too high drifts faster.

    Worked example: policy -9, -12 against ref -10, -11 with beta 0.1 and e = 0.1 give h = 2 and
    (0.9 * 0.598139 - 0.1 * 0.798139) / 0.8 = 0.573139.
    """
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    h = chosen_logratios - rejected_logratios
    e = label_smoothing
    losses = (-(1 - e) * F.logsigmoid(beta * h) + e * F.logsigmoid(-beta * h)) / (1 - 2 * e)
    return PreferenceLoss(
        losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    )


def soft_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    margins: Tensor,
    *,
    beta: float,
    margin_scale: float,
) -> PreferenceLoss:
    """Prefer the chosen answer as surely as the annotators did, and no more.

        p    = sigmoid(margin / margin_scale)
        h    = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
        loss = -p * log sigmoid(beta * h) - (1 - p) * log sigmoid(-beta * h)

    Conservative DPO with a share of its own for each pair, e = 1 - p, as in the baseline of
    Furuta et al. 2024, arXiv:2409.06691; p is the Bradley-Terry probability of the score gap.
    Departs from the paper: the soft label comes from a margin; no mean here, as in `dpo_loss`.

    Args:
        policy_chosen_logps: this and the other three as in `dpo_loss`: sums in nats, shape (B,).
        margins: score of chosen minus score of rejected, in the annotators' unit, >= 0. Shape
            (B,), carries no gradient.
        beta: pull towards the reference, > 0.
        margin_scale: the margin at which chosen wins 73 times in 100, in the same unit, > 0.

    Returns:
        Losses, and the rewards beta * (policy - ref), detached.

    Holds:
        h = 0 costs log 2, whatever the margin.
        The loss is lowest at beta * h = margin / margin_scale: the policy's odds are the label's.
        A margin far above the scale gives DPO; margins all alike give conservative DPO.
        Swapping the pair and the sign of its margin changes nothing.

    Watch:
        Scores of different annotators share a scale only if somebody made them.

    Worked example: policy -9, -12 against ref -10, -11 with beta 0.1 and a margin of one scale
    give h = 2, p = 0.731059 and 0.598139 + 0.268941 * 0.2 = 0.651927.
    """
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    h = chosen_logratios - rejected_logratios
    p = (margins / margin_scale).sigmoid()
    losses = -p * F.logsigmoid(beta * h) - (1 - p) * F.logsigmoid(-beta * h)
    return PreferenceLoss(
        losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    )
