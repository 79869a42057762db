"""Losses with a margin to reach: IPO keeps a pair there, the hinge lets it go."""

import pytest
import torch
from loss_cases import EXAMPLE, random_batch, times
from torch import Tensor

from trueup.train.losses import hinge_loss, ipo_loss, ipo_norm_loss

BATCH = random_batch(31)
LOGPS = BATCH.logps
SWAPPED = (LOGPS[1], LOGPS[0], LOGPS[3], LOGPS[2])
H = (LOGPS[0] - LOGPS[2]) - (LOGPS[1] - LOGPS[3])


def gradient(of: Tensor, values: Tensor) -> list[float]:
    return torch.autograd.grad(of.sum(), values)[0].tolist()


# --- IPO ------------------------------------------------------------------------------------------


def test_the_worked_example_of_ipo() -> None:
    """(2 - 5) squared."""
    assert ipo_loss(*EXAMPLE, beta=0.1).losses.item() == pytest.approx(9.0, abs=1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_ipo_is_zero_at_its_target_and_pulls_back_from_beyond(beta: float) -> None:
    target = 1 / (2 * beta)
    policy = torch.tensor([target - 1, target, target + 1], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(3, dtype=torch.float64)
    loss = ipo_loss(policy, zero, zero, zero, beta=beta)
    assert loss.losses.tolist() == pytest.approx([1, 0, 1])
    assert gradient(loss.losses, policy) == pytest.approx([-2, 0, 2])
    assert loss.chosen_rewards[1].item() == pytest.approx(0.5)


def test_swapping_an_ipo_pair_raises_the_loss_by_two_h_over_beta() -> None:
    raised = ipo_loss(*SWAPPED, beta=0.1).losses - ipo_loss(*LOGPS, beta=0.1).losses
    assert torch.allclose(raised, 2 * H / 0.1, atol=1e-9, rtol=0)


def test_the_worked_example_of_ipo_per_token() -> None:
    """Averages 1 / 4 and -1 / 2: (0.75 - 5) squared."""
    loss = ipo_norm_loss(*EXAMPLE, torch.tensor([4]), torch.tensor([2]), beta=0.1)
    assert loss.losses.item() == pytest.approx(18.0625, abs=1e-5)
    assert loss.chosen_rewards.item() == pytest.approx(0.025)
    assert loss.rejected_rewards.item() == pytest.approx(-0.05)


def test_answers_of_one_token_make_both_ipo_losses_the_same() -> None:
    ones = torch.ones(len(H), dtype=torch.long)
    for a, b in zip(
        ipo_norm_loss(*LOGPS, ones, ones, beta=0.1), ipo_loss(*LOGPS, beta=0.1), strict=True
    ):
        assert torch.allclose(a, b)


def test_repeating_the_answers_leaves_ipo_per_token_as_it_is() -> None:
    chosen, rejected = BATCH.lengths
    repeated = times(3, LOGPS)
    for a, b in zip(
        ipo_norm_loss(*LOGPS, chosen, rejected, beta=0.1),
        ipo_norm_loss(*repeated, 3 * chosen, 3 * rejected, beta=0.1),
        strict=True,
    ):
        assert torch.allclose(a, b)


# --- the hinge ------------------------------------------------------------------------------------


def test_the_worked_example_of_the_hinge() -> None:
    assert hinge_loss(*EXAMPLE, beta=0.1).losses.item() == pytest.approx(0.8)


def test_the_hinge_pushes_with_a_constant_force_and_lets_go_at_one_over_beta() -> None:
    policy = torch.tensor([-1e4, 0.0, 9.9, 10.1, 1e4], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(5, dtype=torch.float64)
    losses = hinge_loss(policy, zero, zero, zero, beta=0.1).losses
    assert losses.tolist() == pytest.approx([1001, 1, 0.01, 0, 0])
    assert gradient(losses, policy) == pytest.approx([-0.1, -0.1, -0.1, 0, 0])
