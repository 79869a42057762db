"""Losses that hold the chosen answer up: DPO alone lets both sides of a pair sink together."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trueup.train.losses.dpo import PreferenceLoss, dpo_loss

__all__ = ["dpop_loss", "nll_loss", "rpo_loss"]


def dpop_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    penalty: float,
) -> PreferenceLoss:
    """DPO that charges a pair for every nat its chosen answer lost against the reference.

        h    = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
        lost = max(0, ref_chosen - policy_chosen)
        loss = -log sigmoid(beta * (h - penalty * lost))

    Pal et al. 2024 (DPO-Positive), arXiv:2402.13228; penalty is lambda there.
    Departs from the paper: no mean here, as in `dpo_loss`.

    Args:
        policy_chosen_logps: this and the other three as in `dpo_loss`: sums in nats, shape (B,).
        beta: pull towards the reference, > 0.
        penalty: margin taken away per nat lost, >= 0. Usual 0.5 to 50.

    Returns:
        Losses, and the rewards beta * (policy - ref), detached: without the penalty.

    Holds:
        While the chosen answer is at or above the reference this is `dpo_loss`.
        Once it is below, its gradient is (1 + penalty) times as large, the rejected one's is not.
        Sinking both sides by the same amount costs more; in DPO it costs nothing.

    Watch:
        A large penalty freezes learning: most steps dip a little before they gain.

    Worked example: policy -11, -12 against ref -10, -10, beta 0.1 and penalty 5: h = 1, one nat
    lost, -log sigmoid(0.1 * (1 - 5)) = 0.913015.
    """
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    h = chosen_logratios - rejected_logratios
    lost = torch.relu(-chosen_logratios)
    losses = -F.logsigmoid(beta * (h - penalty * lost))
    return PreferenceLoss(
        losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    )


def nll_loss(policy_chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """Imitate the chosen answers: negative log-likelihood per token, each answer counting once.

        loss = -policy_chosen / chosen_length

    The loss of supervised fine-tuning. TRL's "sft" averages over all tokens of a batch instead,
    so that long answers weigh more and the value of an answer depends on its neighbours.

    Args:
        policy_chosen_logps: log p(chosen | prompt), summed over completion tokens, in nats. Shape
            (B,), carries the gradient.
        chosen_lengths: tokens of each completion, the end token included, >= 1. Shape (B,).

    Returns:
        Losses of shape (B,), in nats per token; exp of one is the answer's perplexity.

    Holds:
        Never negative; 0 only for an answer that is certain.
        The gradient with respect to the log-prob is -1 / length.
        Weighted by the lengths, the mean is that over all tokens.

    Worked example: -9 over 4 tokens costs 2.25.
    """
    return -policy_chosen_logps / chosen_lengths


def rpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    *,
    beta: float,
    nll_weight: float,
) -> PreferenceLoss:
    """DPO that also imitates the chosen answer, so that its own likelihood is kept up.

        loss = dpo_loss + nll_weight * nll_loss

    Pang et al. 2024 (iterative reasoning preference optimisation), arXiv:2404.19733.
    Departs from the paper: the weight is on the likelihood term, not on DPO's, so that
    nll_weight 0 is DPO; lengths are those of the completion. No mean here, as in `dpo_loss`.

    Args:
        policy_chosen_logps: this and the other three as in `dpo_loss`: sums in nats, shape (B,).
        chosen_lengths: tokens of the chosen completions, the end token included, >= 1.
        beta: pull towards the reference, > 0.
        nll_weight: weight of the likelihood term, >= 0. Usual 0.1 to 1.

    Returns:
        Losses, and the rewards beta * (policy - ref), detached: DPO's, without the second term.

    Holds:
        nll_weight 0 gives `dpo_loss`.
        The gradient of the chosen log-prob is larger in size by nll_weight / length; that of the
        rejected one is DPO's.
        However large the margin, the chosen answer is still pushed up.

    Watch:
        The second term pulls towards the data also where the reference was better: worth it for
        answers from a strong writer or the policy itself, not for any text at hand.

    Worked example: policy -9, -12 against ref -10, -11, 4 chosen tokens, beta 0.1, nll_weight
    0.2: 0.598139 + 0.2 * 2.25 = 1.048139.
    """
    losses, chosen_rewards, rejected_rewards = dpo_loss(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta
    )
    losses = losses + nll_weight * nll_loss(policy_chosen_logps, chosen_lengths)
    return PreferenceLoss(losses, chosen_rewards, rejected_rewards)
