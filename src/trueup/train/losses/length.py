"""DPO that does not learn to be long: per token, with a price on length, or with a light tail."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from trueup.train.losses.dpo import PreferenceLoss, dpo_loss

__all__ = ["ld_dpo_loss", "ln_dpo_loss", "rdpo_loss"]


def ln_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """DPO on log-ratios per token, so that an answer earns nothing by being long.

        h    = (policy_chosen - ref_chosen) / chosen_length
               - (policy_rejected - ref_rejected) / rejected_length
        loss = -log sigmoid(beta * h)

    Length-normalised DPO, as in Tülu 3: Lambert et al. 2024, arXiv:2411.15124. TRL's
    "sigmoid_norm".
    Departs from the paper: no mean over pairs, as in `dpo_loss`.

    Args:
        policy_chosen_logps: this and the other three as in `dpo_loss`: sums in nats, shape (B,).
        chosen_lengths: tokens of each completion, the end token included, >= 1. Shape (B,).
        beta: pull towards the reference, > 0. As it weighs averages, usual values are about the
            length of an answer times those of DPO: 2 to 10.

    Returns:
        Losses, and the rewards beta * (policy - ref) / length, detached.

    Holds:
        Policy equal to reference costs log 2, whatever beta and the lengths.
        Lengths of 1 give `dpo_loss`; equal lengths n give it with beta / n.
        Repeating an answer, its log-probs and its length n times changes nothing.

    Watch:
        The gradient of a token is weighted by 1 / length: short answers learn faster per token.

    Worked example: policy -9, -12 against ref -10, -11, lengths 4 and 2, beta 2: the averages are
    0.25 and -0.5, h = 0.75, the loss is -log sigmoid(1.5) = 0.201413, the rewards 0.5 and -1.
    """
    chosen_logratios = (policy_chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected_logratios = (policy_rejected_logps - ref_rejected_logps) / rejected_lengths
    h = chosen_logratios - rejected_logratios
    losses = -F.logsigmoid(beta * h)
    return PreferenceLoss(
        losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    )


def rdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    alpha: float,
) -> PreferenceLoss:
    """DPO for the reward minus a price per token: length explains part of the preference away.

        h    = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
        loss = -log sigmoid(beta * h + alpha * (chosen_length - rejected_length))

    Park et al. 2024 (R-DPO), arXiv:2403.19159. Why plus: the policy that is best for the reward
    r - alpha * length is proportional to ref * exp((r - alpha * length) / beta), hence
    r = beta * log(policy / ref) + alpha * length + a constant of the prompt; Bradley-Terry on
    that r is the loss above.
    Departs from the paper: no mean here, as in `dpo_loss`.

    Args:
        policy_chosen_logps: this and the other three as in `dpo_loss`: sums in nats, shape (B,).
        chosen_lengths: tokens of each completion, the end token included. Shape (B,).
        beta: pull towards the reference, > 0.
        alpha: price of a token, in units of reward, >= 0. Usual 0.005 to 0.5: start from the
            coefficient of length in a logistic regression on the labels.

    Returns:
        Losses, and the rewards beta * (policy - ref), detached: what the policy moved, without
        the length term, so that both are 0 at the start.

    Holds:
        alpha = 0, or equal lengths, give `dpo_loss`.
        The longer the winner, the smaller its gradient: -beta * sigmoid(-beta * h - alpha * d)
        for d tokens more, which falls as d grows.
        At policy = reference a winner longer by d tokens costs log(1 + exp(-alpha * d)).

    Watch:
        With the sign the other way round training runs as smoothly and answers get longer.

    Worked example: policy -9, -12 against ref -10, -11, lengths 4 and 2, beta 0.1 and alpha 0.05:
    -log sigmoid(0.2 + 0.1) = 0.554355.
    """
    chosen_logratios = policy_chosen_logps - ref_chosen_logps
    rejected_logratios = policy_rejected_logps - ref_rejected_logps
    h = chosen_logratios - rejected_logratios
    longer_by = (chosen_lengths - rejected_lengths).to(
        h
    )  # a count times a float is single precision
    losses = -F.logsigmoid(beta * h + alpha * longer_by)
    return PreferenceLoss(
        losses, beta * chosen_logratios.detach(), beta * rejected_logratios.detach()
    )


def ld_dpo_loss(
    policy_chosen: Sequence[Tensor],
    policy_rejected: Sequence[Tensor],
    ref_chosen: Sequence[Tensor],
    ref_rejected: Sequence[Tensor],
    *,
    beta: float,
    alpha: float,
) -> PreferenceLoss:
    """DPO in which what the longer answer says beyond the shorter one's length counts less.

        n    = min(chosen_length, rejected_length)
        logp = sum of the first n token log-probs + alpha * sum of the others
        loss = DPO on these logps, policy and reference alike

    Liu et al. 2024 (LD-DPO), arXiv:2409.06411; TRL's `ld_alpha`.
    Departs from the paper: no mean here, as in `dpo_loss`.

    Args:
        policy_chosen: log-probs of each pair's completion tokens, in nats: B tensors of shape
            (tokens of that completion,), as `completion_logprobs` gives them. The policy's carry
            the gradient, the reference's none; reference and policy have the same lengths.
        beta: pull towards the reference, > 0.
        alpha: weight of the tail, in [0, 1]. Usual 0.5.

    Returns:
        Losses, and the rewards beta * (policy - ref) of the weighted logps, detached.

    Holds:
        alpha = 1, or answers of equal length, give `dpo_loss` on the sums.
        alpha = 0: no token beyond the shorter answer's length has any gradient.
        The gradient of a tail token is alpha times that of a token before it.

    Watch:
        The end token of the longer answer lies in the tail: with alpha near 0, when to stop is
        learnt from shorter answers alone.

    Worked example: chosen tokens -1, -2, -6 against -2, -2, -8, rejected -12 against -11, beta
    0.1 and alpha 0.5: n = 1, h = (1 + 0.5 * 2) - (-1) = 3 and -log sigmoid(0.3) = 0.554355.
    """
    return dpo_loss(
        _decayed(policy_chosen, policy_rejected, alpha),
        _decayed(policy_rejected, policy_chosen, alpha),
        _decayed(ref_chosen, ref_rejected, alpha),
        _decayed(ref_rejected, ref_chosen, alpha),
        beta=beta,
    )


def _decayed(completions: Sequence[Tensor], others: Sequence[Tensor], alpha: float) -> Tensor:
    """Summed log-probs, those past the other side's length times alpha. Shape (B,)."""
    return torch.stack(
        [
            one[: len(other)].sum() + alpha * one[len(other) :].sum()
            for one, other in zip(completions, others, strict=True)
        ]
    )
