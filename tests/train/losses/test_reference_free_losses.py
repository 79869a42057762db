"""SimPO and ORPO: no reference, log-probs per token."""

import math

import pytest
import torch
from loss_cases import random_batch

from trueup.train.losses import nll_loss, orpo_loss, simpo_loss

BATCH = random_batch(61)
POLICY, LENGTHS = BATCH.policy, BATCH.lengths
MEANS = POLICY[0] / LENGTHS[0], POLICY[1] / LENGTHS[1]


# --- SimPO ----------------------------------------------------------------------------------------


def test_the_worked_example_of_simpo() -> None:
    """2 * (-2.25 + 6) - 0.5 = 7; log(1 + exp(-7))."""
    sides = torch.tensor([-9.0]), torch.tensor([-12.0])
    loss = simpo_loss(*sides, torch.tensor([4]), torch.tensor([2]), beta=2.0, gamma=0.5)
    assert [part.item() for part in loss] == pytest.approx([0.000911, -4.5, -12.0], abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_answers_equally_likely_per_token_cost_the_margin(gamma: float) -> None:
    rejected = MEANS[0] * LENGTHS[1]
    losses = simpo_loss(POLICY[0], rejected, *LENGTHS, beta=2.0, gamma=gamma).losses
    expected = torch.full_like(losses, math.log1p(math.exp(gamma)))
    assert torch.allclose(losses, expected, atol=1e-9, rtol=0)


def test_swapping_a_simpo_pair_without_margin_raises_the_loss_by_beta_h() -> None:
    there = simpo_loss(*POLICY, *LENGTHS, beta=2.0, gamma=0.0).losses
    back = simpo_loss(*POLICY[::-1], *LENGTHS[::-1], beta=2.0, gamma=0.0).losses
    assert torch.allclose(back - there, 2 * (MEANS[0] - MEANS[1]), atol=1e-10, rtol=0)


def test_repeating_the_answers_changes_neither_loss() -> None:
    sides, lengths = [3 * one for one in POLICY], [3 * one for one in LENGTHS]
    for loss in (
        lambda *given: simpo_loss(*given, beta=2.0, gamma=0.5),
        lambda *given: orpo_loss(*given, beta=0.1),
    ):
        for a, b in zip(loss(*POLICY, *LENGTHS), loss(*sides, *lengths), strict=True):
            assert torch.allclose(a, b)


# --- ORPO -----------------------------------------------------------------------------------------


def test_the_worked_example_of_orpo() -> None:
    """Averages -0.5 and -1: log odds 0.432752 and -0.541325; 0.5 + 0.1 * 0.320300."""
    sides, four = (torch.tensor([-2.0]), torch.tensor([-4.0])), torch.tensor([4])
    loss = orpo_loss(*sides, four, four, beta=0.1)
    assert [part.item() for part in loss] == pytest.approx([0.532030, -0.05, -0.1], abs=1e-6)


def test_answers_equally_likely_per_token_cost_imitation_and_log_2() -> None:
    rejected = MEANS[0] * LENGTHS[1]
    losses = orpo_loss(POLICY[0], rejected, *LENGTHS, beta=0.3).losses
    expected = nll_loss(POLICY[0], LENGTHS[0]) + 0.3 * math.log(2)
    assert torch.allclose(losses, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("mean", [-1e-3, -1e-5])
def test_the_odds_of_an_all_but_certain_answer_keep_their_digits(mean: float) -> None:
    """In single precision, where 1 - exp(-1e-5) alone has lost all but two digits."""
    one = torch.ones(1, dtype=torch.long)
    hard = torch.tensor([mean])
    loss = orpo_loss(torch.tensor([-1.0]), hard, one, one, beta=1.0).losses
    p, q = math.exp(-1.0), math.exp(float(hard))
    ratio = (p / (1 - p)) / (q / -math.expm1(float(hard)))
    assert loss.item() == pytest.approx(1 + math.log1p(1 / ratio), rel=1e-6)


def test_the_gradient_of_an_all_but_certain_rejected_answer_is_one_over_what_is_left() -> None:
    """What the docstring tells the reader to watch."""
    one = torch.ones(1, dtype=torch.long)
    rejected = torch.tensor([-1e-4], dtype=torch.float64, requires_grad=True)
    orpo_loss(torch.tensor([-5.0]), rejected, one, one, beta=1.0).losses.sum().backward()
    assert rejected.grad is not None
    assert rejected.grad.item() == pytest.approx(1e4, rel=1e-3)
