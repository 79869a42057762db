"""Conservative DPO: what label smoothing adds to the loss of tests/train/test_dpo_loss.py."""

import math

import pytest
import torch
from loss_cases import EXAMPLE, random_batch

from trueup.train.losses import dpo_loss

LOGPS = random_batch(11).logps
H = (LOGPS[0] - LOGPS[2]) - (LOGPS[1] - LOGPS[3])


def test_the_worked_example_of_the_docstring() -> None:
    """e moves the loss by e * beta * h = 0.1 * 0.1 * 2: 0.598139 + 0.02."""
    loss = dpo_loss(*EXAMPLE, beta=0.1, label_smoothing=0.1).losses
    assert loss.item() == pytest.approx(0.618139, abs=1e-6)


def test_no_smoothing_is_dpo_to_the_bit() -> None:
    plain, zero = dpo_loss(*LOGPS, beta=0.1), dpo_loss(*LOGPS, beta=0.1, label_smoothing=0.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, zero, strict=True))


@pytest.mark.parametrize("e", [0.0, 0.1, 0.4])
def test_swapping_the_pair_raises_the_loss_by_beta_h_less_two_shares(e: float) -> None:
    swapped = (LOGPS[1], LOGPS[0], LOGPS[3], LOGPS[2])
    raised = (
        dpo_loss(*swapped, beta=0.2, label_smoothing=e).losses
        - dpo_loss(*LOGPS, beta=0.2, label_smoothing=e).losses
    )
    assert torch.allclose(raised, (1 - 2 * e) * 0.2 * H, atol=1e-10, rtol=0)


@pytest.mark.parametrize("e", [0.01, 0.1, 0.4])
def test_the_loss_is_lowest_at_the_odds_of_a_right_label(e: float) -> None:
    best = math.log((1 - e) / e) / 0.2
    policy = torch.tensor([best - 1, best, best + 1], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(3, dtype=torch.float64)
    losses = dpo_loss(policy, zero, zero, zero, beta=0.2, label_smoothing=e).losses
    losses.sum().backward()
    assert losses[1] < losses[0] and losses[1] < losses[2]
    assert policy.grad is not None
    assert policy.grad.tolist()[0] < 0 < policy.grad.tolist()[2]
    assert policy.grad[1].item() == pytest.approx(0, abs=1e-12)
