"""Before the first step: is the model about to be trained the one that is served?

A fresh adapter on the base, a champion loaded from the wrong folder, another chat template or
dropout left on all train without complaint and silently throw away last week's work. Two checks
make that impossible: the starting policy must give the log-probs that were recorded when the
champion served, and where the reference is the starting policy the first loss must be log 2.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from trueup.errors import IdentityError
from trueup.models.logprobs import completion_logprobs
from trueup.models.stored import StoredModel
from trueup.train.data import TokenPair
from trueup.train.losses import dpo_loss
from trueup.train.reference import stored_logprobs

__all__ = ["check_identity"]

SERVED_TOLERANCE = 1e-4  # nats per token, fp32
LOSS_TOLERANCE = 1e-6
NUM_PAIRS = 4


@torch.no_grad()
def check_identity(
    champion: StoredModel, policy: str, rows: Sequence[TokenPair]
) -> dict[str, float]:
    """Stop unless the policy, before its first step, is the champion.

    Args:
        policy: the role about to be trained.
        rows: the run's pairs; those with completions the champion drew are looked at first.

    Returns:
        The figures: largest difference from the served log-probs (absent where no completion of
        the champion's is among the pairs), and the first loss.

    Raises:
        IdentityError: with the likely cause.
    """
    served = [
        r
        for r in rows
        if stored_logprobs(r.chosen, champion.weights)
        or stored_logprobs(r.rejected, champion.weights)
    ]
    picked = (served or list(rows))[:NUM_PAIRS]
    with champion.backbone.acting_as(policy) as model:
        ours = completion_logprobs(model, [r.branches for r in picked])
    with champion.acting() as model:
        theirs = completion_logprobs(model, [r.branches for r in picked])
    tolerance = _tolerance(ours[0][0])
    figures = {"first_loss": _first_loss(ours, theirs), "policy_gap": _gap(ours, theirs)}
    gaps = [
        float((side.cpu().float() - torch.tensor(stored)).abs().max())
        for row, sides in zip(picked, ours, strict=True)
        for side, completion in zip(sides, (row.chosen, row.rejected), strict=True)
        if (stored := stored_logprobs(completion, champion.weights))
    ]
    if gaps:
        figures["served_gap"] = max(gaps)
        if not max(gaps) <= tolerance:
            raise IdentityError(
                "The starting policy is not the model that served",
                got=f"differs by {max(gaps):.2g} nats",
                expected=f"at most {tolerance:g}",
                next="compare what trains with what serves: adapter, chat template, dtype, dropout",
            )
    allowed = LOSS_TOLERANCE if tolerance == SERVED_TOLERANCE else 1e-2
    if not abs(figures["first_loss"] - math.log(2)) <= allowed:
        raise IdentityError(
            "The first DPO loss is not log 2, so the policy does not start at its reference",
            got=figures["first_loss"],
            expected=f"{math.log(2):.6f} within {LOSS_TOLERANCE:g}",
            next="check that policy and reference are the same weights and that dropout is off",
        )
    if not figures["policy_gap"] <= tolerance:
        raise IdentityError(
            "The starting policy is not the champion",
            got=f"log-probs differ by {figures['policy_gap']:.2g} nats",
            expected=f"at most {tolerance:g}",
            next="check which adapter training starts from",
        )
    return figures


def _tolerance(logprobs: torch.Tensor) -> float:
    """fp32 is held to 1e-4; bf16 forward passes agree to about 0.1 nats at best."""
    return (
        SERVED_TOLERANCE
        if logprobs.dtype == torch.float32 and logprobs.device.type == "cpu"
        else 0.25
    )


def _first_loss(ours: list[list[Any]], theirs: list[list[Any]]) -> float:
    """The DPO loss with beta 1: a small beta would hide a difference."""
    sums = [
        torch.stack([row[side].sum() for row in logprobs])
        for logprobs in (ours, theirs)
        for side in (0, 1)
    ]
    return float(dpo_loss(*sums, beta=1.0).losses.mean())


def _gap(ours: list[list[Any]], theirs: list[list[Any]]) -> float:
    """The largest difference of any token's log-prob, in nats."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max()) for x, y in pairs for a, b in zip(x, y, strict=True))
