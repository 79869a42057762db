"""Estimates of the KL divergence from samples."""

from typing import Literal

from torch import Tensor

__all__ = ["Estimator", "kl_estimate"]

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator) -> Tensor:
    """KL(policy || ref) at each drawn token, from the log-probs of that token alone.

        d  = log policy - log ref
        k1 = d                      unbiased, may be negative, noisy
        k2 = d^2 / 2                biased, small when the two are close
        k3 = exp(-d) - 1 + d        unbiased, never negative

    Schulman 2020, *Approximating KL divergence*. Unbiased means: on samples of the policy itself.

    As a loss the ranking turns around, because the mean of a gradient is not the gradient of the
    mean (Tang & Munos 2025, arXiv:2506.09477). On the policy's own samples the mean gradient of
    k1 is zero, that of k2 is the gradient of KL(policy || ref), and that of k3 the gradient of
    KL(ref || policy), which has another optimum. Measure with k3; put k1 into the reward or k2
    into the loss where the optimum ref * exp(reward / beta) is wanted.

    Args:
        logprobs: of the drawn tokens under the policy, in nats; any shape.
        ref_logprobs: of the same tokens under the reference; no gradient flows into them.

    Returns:
        The same shape, in nats.

    Holds:
        All three are 0 where the two agree.
        k3 >= 0 and k2 >= 0.
        Over all tokens with the policy's weights, k1 and k3 sum to the KL divergence.

    Worked example: log-probs -1 and -2 under policy and reference give k1 = 1, k2 = 0.5,
    k3 = exp(-1) = 0.367879.
    """
    d = logprobs - ref_logprobs.detach()
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    return (-d).exp() - 1 + d
