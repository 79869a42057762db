"""The loss of a reward model: Bradley-Terry on scores, with margins and centring."""

import math

import pytest
import torch
from torch import Tensor

from trueup.train.losses import bradley_terry_loss


def scores(seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(40, generator=random, dtype=torch.float64)


CHOSEN, REJECTED, MARGINS = scores(1), scores(2), scores(3).abs()


def slow(chosen: float, rejected: float, margin: float, centering: float) -> float:
    won = math.exp(chosen) / (math.exp(chosen) + math.exp(rejected + margin))
    return -math.log(won) + centering * (chosen + rejected) ** 2


def test_the_worked_example_of_the_docstring() -> None:
    """log(1 + exp(-0.5)) + 0.01 * 3 squared."""
    given = (torch.tensor([value]) for value in (2.0, 1.0, 0.5))
    assert bradley_terry_loss(*given, centering=0.01).item() == pytest.approx(0.564077, abs=1e-6)


def test_it_equals_the_slow_version() -> None:
    found = bradley_terry_loss(CHOSEN, REJECTED, MARGINS, centering=0.02)
    assert found.shape == (40,)
    for i in range(40):
        expected = slow(float(CHOSEN[i]), float(REJECTED[i]), float(MARGINS[i]), 0.02)
        assert float(found[i]) == pytest.approx(expected, abs=1e-11)


def test_equal_scores_cost_log_2_and_their_distance_from_zero() -> None:
    found = bradley_terry_loss(CHOSEN, CHOSEN, centering=0.02)
    assert torch.allclose(found, math.log(2) + 0.02 * (2 * CHOSEN) ** 2, atol=1e-12)


def test_without_centring_only_the_difference_counts() -> None:
    shifted = bradley_terry_loss(CHOSEN + 5, REJECTED + 5)
    assert torch.allclose(shifted, bradley_terry_loss(CHOSEN, REJECTED), atol=1e-12)


def test_no_margin_is_a_margin_of_zero() -> None:
    zero = bradley_terry_loss(CHOSEN, REJECTED, torch.zeros_like(CHOSEN))
    assert torch.equal(zero, bradley_terry_loss(CHOSEN, REJECTED))


def test_a_margin_costs_what_a_smaller_difference_does() -> None:
    with_margin = bradley_terry_loss(CHOSEN, REJECTED, MARGINS)
    assert torch.allclose(with_margin, bradley_terry_loss(CHOSEN - MARGINS, REJECTED))


def test_swapping_the_pair_raises_the_loss_by_the_difference() -> None:
    raised = bradley_terry_loss(REJECTED, CHOSEN) - bradley_terry_loss(CHOSEN, REJECTED)
    assert torch.allclose(raised, CHOSEN - REJECTED, atol=1e-10)


def test_centring_pulls_the_sum_to_zero_and_leaves_the_difference_alone() -> None:
    def gradients(centering: float) -> tuple[Tensor, Tensor]:
        chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
        bradley_terry_loss(chosen, rejected, centering=centering).sum().backward()
        assert chosen.grad is not None and rejected.grad is not None
        return chosen.grad, rejected.grad

    plain, centred = gradients(0.0), gradients(0.05)
    assert torch.allclose(centred[0] - centred[1], plain[0] - plain[1], atol=1e-12)
    total = centred[0] + centred[1]
    assert torch.allclose(total, 4 * 0.05 * (CHOSEN + REJECTED), atol=1e-12)
    assert bool((plain[0] < 0).all()) and bool((plain[1] > 0).all())


@pytest.mark.parametrize("difference", [-1e4, 1e4])
def test_scores_far_apart_give_finite_losses_and_gradients(difference: float) -> None:
    chosen = torch.tensor([difference], requires_grad=True)
    losses = bradley_terry_loss(chosen, torch.zeros(1), centering=0.01)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert chosen.grad is not None and torch.isfinite(chosen.grad).all()
