"""KTO: answers judged one by one, against how far the policy has moved in general."""

import math

import pytest
import torch
from loss_cases import random_batch
from torch import Tensor

from trueup.train.losses import KTOLoss, kto_loss, kto_reference_point

LOGPS = random_batch(71).logps
POLICY, REF = LOGPS[0], LOGPS[2]
WANTED = torch.arange(len(POLICY)) % 3 > 0
KL = torch.tensor(0.7, dtype=torch.float64)


def slow(policy: float, ref: float, wanted: bool, kl: float, beta: float) -> float:
    """One minus the chance that the answer is better than the reference point says."""
    better = 1 / (1 + math.exp(-beta * (policy - ref - kl)))
    return 1 - better if wanted else 1 - (1 - better)


def test_the_worked_example_of_the_docstring() -> None:
    """sigmoid(-0.05) and sigmoid(0.05)."""
    policy, ref, wanted = (
        torch.full((2,), -9.0),
        torch.full((2,), -10.0),
        torch.tensor([True, False]),
    )
    loss = kto_loss(policy, ref, wanted, torch.tensor(0.5), beta=0.1)
    assert loss.losses.tolist() == pytest.approx([0.487503, 0.512497], abs=1e-6)
    assert loss.rewards.tolist() == pytest.approx([0.1, 0.1])


def test_it_equals_the_slow_version() -> None:
    loss = kto_loss(POLICY, REF, WANTED, KL, beta=0.3, desirable_weight=1.5, undesirable_weight=0.8)
    assert isinstance(loss, KTOLoss)
    for i, wanted in enumerate(WANTED.tolist()):
        weight = 1.5 if wanted else 0.8
        expected = weight * slow(float(POLICY[i]), float(REF[i]), wanted, 0.7, 0.3)
        assert float(loss.losses[i]) == pytest.approx(expected, abs=1e-12)
        assert float(loss.rewards[i]) == pytest.approx(0.3 * float(POLICY[i] - REF[i]))


def test_at_the_start_every_answer_costs_half_its_weight() -> None:
    loss = kto_loss(REF, REF, WANTED, torch.zeros(()), beta=0.1, desirable_weight=3.0)
    assert torch.allclose(loss.losses, torch.where(WANTED, 1.5, 0.5).double(), atol=1e-12)
    assert not loss.rewards.any()


def test_wanted_answers_are_pushed_up_and_others_down() -> None:
    policy = POLICY.clone().requires_grad_()
    kto_loss(policy, REF, WANTED, KL, beta=0.3).losses.sum().backward()
    assert policy.grad is not None
    assert bool((policy.grad[WANTED] < 0).all()) and bool((policy.grad[~WANTED] > 0).all())


def test_hopeless_answers_are_given_up_like_learnt_ones() -> None:
    policy = torch.tensor([-1e4, 0.7, 1e4], requires_grad=True)
    wanted = torch.ones(3, dtype=torch.bool)
    losses = kto_loss(policy, torch.zeros(3), wanted, torch.tensor(0.7), beta=0.1).losses
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([1, 0.5, 0])
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0, -0.1 / 4, 0])


def test_the_opposite_label_costs_what_is_left_of_the_weight() -> None:
    there = kto_loss(POLICY, REF, WANTED, KL, beta=0.3).losses
    back = kto_loss(POLICY, REF, ~WANTED, KL, beta=0.3).losses
    assert torch.allclose(there + back, torch.ones_like(there), atol=1e-12)


def test_neither_the_reference_point_nor_the_rewards_carry_a_gradient() -> None:
    policy, kl = POLICY.clone().requires_grad_(), KL.clone().requires_grad_()
    loss = kto_loss(policy, REF, WANTED, kl, beta=0.3)
    loss.losses.sum().backward()
    assert kl.grad is None and policy.grad is not None
    assert not loss.rewards.requires_grad
    assert not kto_reference_point(policy, REF).requires_grad


# --- the reference point --------------------------------------------------------------------------


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_worked_example_of_the_reference_point() -> None:
    assert kto_reference_point(tensor(-8, -12), tensor(-10, -11)).item() == 0.5


def test_the_mean_is_clamped_and_not_its_terms() -> None:
    assert kto_reference_point(tensor(-8, -20), tensor(-10, -11)).item() == 0
    assert kto_reference_point(tensor(-1, -12), tensor(-10, -11)).item() == 4


def test_the_reference_point_is_zero_at_the_start() -> None:
    found = kto_reference_point(REF, REF)
    assert found.shape == () and found.item() == 0
