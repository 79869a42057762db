"""Losses for labels that may be wrong, or are sure to different degrees."""

import math

import pytest
import torch
from loss_cases import EXAMPLE, random_batch
from torch import Tensor

from trueup.train.losses import dpo_loss, robust_dpo_loss, soft_dpo_loss

BATCH = random_batch(21)
LOGPS = BATCH.logps
SWAPPED = (LOGPS[1], LOGPS[0], LOGPS[3], LOGPS[2])
H = (LOGPS[0] - LOGPS[2]) - (LOGPS[1] - LOGPS[3])


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-10, rtol=0)


# --- a known rate of flips ------------------------------------------------------------------------


def test_the_worked_example_of_robust_dpo() -> None:
    """(0.9 * 0.598139 - 0.1 * 0.798139) / 0.8."""
    loss = robust_dpo_loss(*EXAMPLE, beta=0.1, label_smoothing=0.1).losses
    assert loss.item() == pytest.approx(0.573139, abs=1e-6)


@pytest.mark.parametrize("e", [0.05, 0.2, 0.45])
def test_on_average_over_the_flips_robust_dpo_is_dpo_on_true_labels(e: float) -> None:
    right = robust_dpo_loss(*LOGPS, beta=0.2, label_smoothing=e).losses
    flipped = robust_dpo_loss(*SWAPPED, beta=0.2, label_smoothing=e).losses
    assert close((1 - e) * right + e * flipped, dpo_loss(*LOGPS, beta=0.2).losses)


@pytest.mark.parametrize("e", [0.05, 0.2, 0.45])
def test_swapping_a_robust_pair_raises_the_loss_by_beta_h_over_what_labels_tell(e: float) -> None:
    right = robust_dpo_loss(*LOGPS, beta=0.2, label_smoothing=e).losses
    flipped = robust_dpo_loss(*SWAPPED, beta=0.2, label_smoothing=e).losses
    assert close(flipped - right, 0.2 * H / (1 - 2 * e))


def test_the_push_of_robust_dpo_never_ends_and_its_loss_has_no_floor() -> None:
    """What the docstring tells the reader to watch."""
    policy = torch.linspace(-1000, 1000, 41, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(policy)
    losses = robust_dpo_loss(policy, zero, zero, zero, beta=0.2, label_smoothing=0.1).losses
    losses.sum().backward()
    assert policy.grad is not None
    assert bool((policy.grad <= -0.2 * 0.1 / 0.8 + 1e-12).all())
    assert losses[-1] < 0


# --- labels with a margin -------------------------------------------------------------------------


def test_the_worked_example_of_soft_dpo() -> None:
    """p = sigmoid(1) = 0.731059; 0.598139 + (1 - p) * 0.2."""
    loss = soft_dpo_loss(*EXAMPLE, torch.tensor([3.0]), beta=0.1, margin_scale=3.0).losses
    assert loss.item() == pytest.approx(0.651927, abs=1e-6)


def test_a_margin_far_above_the_scale_gives_dpo() -> None:
    margins = torch.full_like(H, 1e3)
    soft = soft_dpo_loss(*LOGPS, margins, beta=0.2, margin_scale=1.0)
    assert all(close(a, b) for a, b in zip(soft, dpo_loss(*LOGPS, beta=0.2), strict=True))


def test_margins_all_alike_give_conservative_dpo() -> None:
    e = 1 / (1 + math.exp(0.8))
    soft = soft_dpo_loss(*LOGPS, torch.full_like(H, 2.0), beta=0.2, margin_scale=2.5).losses
    assert close(soft, dpo_loss(*LOGPS, beta=0.2, label_smoothing=e).losses)


def test_the_policy_is_best_where_its_odds_are_the_labels() -> None:
    margins = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    policy = (margins / 1.5 / 0.2).requires_grad_()  # beta * h = margin / scale
    zero = torch.zeros_like(policy)
    loss = soft_dpo_loss(policy, zero, zero, zero, margins, beta=0.2, margin_scale=1.5).losses
    loss.sum().backward()
    assert policy.grad is not None and close(policy.grad, zero)


def test_swapping_the_pair_and_the_sign_of_its_margin_changes_nothing() -> None:
    there = soft_dpo_loss(*LOGPS, BATCH.margins, beta=0.2, margin_scale=1.5).losses
    back = soft_dpo_loss(*SWAPPED, -BATCH.margins, beta=0.2, margin_scale=1.5).losses
    assert close(there, back)
