"""The DPO loss: numbers worked by hand, what its docstring holds, the gradient, a slow version."""

import math

import pytest
import torch
from torch import Tensor

from trueup.train.losses import PreferenceLoss, dpo_loss


def tensors(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def random_logps(seed: int, n: int = 64) -> list[Tensor]:
    """Policy chosen, policy rejected, ref chosen, ref rejected; as far apart as training gets."""
    random = torch.Generator().manual_seed(seed)
    return [-30 * torch.rand(n, generator=random, dtype=torch.float64) for _ in range(4)]


def margin(logps: list[Tensor]) -> Tensor:
    return (logps[0] - logps[2]) - (logps[1] - logps[3])


# --- 1: worked by hand ----------------------------------------------------------------------------


def test_the_worked_example_of_the_docstring() -> None:
    """h = (-9 + 10) - (-12 + 11) = 2; the loss is log(1 + exp(-0.2)) = log 1.818731 = 0.598139."""
    losses, chosen, rejected = dpo_loss(*tensors(-9, -12, -10, -11), beta=0.1)
    assert losses.item() == pytest.approx(0.598139, abs=5e-7)
    assert (chosen.item(), rejected.item()) == pytest.approx((0.1, -0.1))


def test_a_pair_the_policy_got_wrong_costs_more_than_log_2() -> None:
    """h = (-10 + 9) - (-11 + 12) = -2 and beta 0.5: log(1 + e) = 1.313262."""
    loss = dpo_loss(*tensors(-10, -11, -9, -12), beta=0.5)
    assert loss.losses.item() == pytest.approx(1.313262, abs=5e-7)


def test_every_pair_has_its_own_loss_and_none_is_reduced() -> None:
    loss = dpo_loss(*random_logps(0, 5), beta=0.1)
    assert isinstance(loss, PreferenceLoss)
    assert [part.shape for part in loss] == [(5,), (5,), (5,)]


# --- 2: what it holds -----------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 3.0])
def test_a_margin_of_zero_costs_log_2_whatever_beta(beta: float) -> None:
    policy = random_logps(1)[:2]
    losses = dpo_loss(*policy, *policy, beta=beta).losses
    assert torch.allclose(losses, torch.full_like(losses, math.log(2)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_swapping_the_pair_raises_the_loss_by_beta_times_h(beta: float) -> None:
    logps = random_logps(2)
    swapped = [logps[1], logps[0], logps[3], logps[2]]
    raised = dpo_loss(*swapped, beta=beta).losses - dpo_loss(*logps, beta=beta).losses
    assert torch.allclose(raised, beta * margin(logps), atol=1e-10, rtol=0)


@pytest.mark.parametrize("side", [0, 1])
def test_a_constant_on_policy_and_reference_of_one_side_changes_nothing(side: int) -> None:
    logps = random_logps(3)
    shifted = list(logps)
    shifted[side], shifted[side + 2] = logps[side] - 7.5, logps[side + 2] - 7.5
    for before, after in zip(dpo_loss(*logps, beta=0.1), dpo_loss(*shifted, beta=0.1), strict=True):
        assert torch.allclose(before, after, atol=1e-12, rtol=0)


def test_the_gradient_in_h_is_minus_beta_sigmoid_of_minus_beta_h_and_never_positive() -> None:
    logps, beta = random_logps(4), 0.3
    logps[0].requires_grad_(True)  # dh / d(policy chosen) = 1
    dpo_loss(*logps, beta=beta).losses.sum().backward()
    gradient = logps[0].grad
    assert gradient is not None
    expected = -beta * torch.sigmoid(-beta * margin(logps).detach())
    assert torch.allclose(gradient, expected, atol=1e-12, rtol=0)
    assert bool((gradient <= 0).all())


def test_rewards_are_beta_times_the_move_from_the_reference_and_carry_no_gradient() -> None:
    logps = random_logps(5)
    for one in logps[:2]:
        one.requires_grad_(True)
    loss = dpo_loss(*logps, beta=0.2)
    assert torch.allclose(loss.chosen_rewards, 0.2 * (logps[0] - logps[2]).detach())
    assert torch.allclose(loss.rejected_rewards, 0.2 * (logps[1] - logps[3]).detach())
    assert not loss.chosen_rewards.requires_grad and not loss.rejected_rewards.requires_grad
    assert loss.losses.requires_grad


def test_the_loss_falls_also_when_both_sides_sink() -> None:
    """What the docstring tells the reader to watch."""
    before = dpo_loss(*tensors(-10, -11, -10, -11), beta=0.1).losses
    sunk = dpo_loss(*tensors(-20, -41, -10, -11), beta=0.1).losses
    assert sunk < before


@pytest.mark.parametrize("h", [-1e4, 1e4])
def test_a_margin_far_out_gives_finite_losses_and_gradients(h: float) -> None:
    policy = torch.tensor([h], requires_grad=True)
    zero = torch.zeros(1)
    loss = dpo_loss(policy, zero, zero, zero, beta=0.5).losses
    loss.sum().backward()
    assert loss.item() == pytest.approx(max(0.0, -0.5 * h), abs=1e-6)
    assert policy.grad is not None and torch.isfinite(policy.grad).all()


# --- 3: the direction of learning -----------------------------------------------------------------


def test_a_step_against_the_gradient_raises_chosen_and_lowers_rejected() -> None:
    logps = random_logps(6)
    for one in logps:
        one.requires_grad_(True)
    dpo_loss(*(logps[:2]), *(one.detach() for one in logps[2:]), beta=0.1).losses.sum().backward()
    chosen, rejected = logps[0].grad, logps[1].grad
    assert chosen is not None and rejected is not None
    assert bool((chosen < 0).all()) and bool((rejected > 0).all())
    assert torch.allclose(chosen, -rejected)
    assert logps[2].grad is None and logps[3].grad is None


# --- 4: the slow version --------------------------------------------------------------------------


def slow_loss(
    logits: list[list[list[float]]], tokens: list[list[int]], refs: tuple[float, float], beta: float
) -> float:
    """Token by token in plain Python, from the logits of (chosen, rejected)."""
    sums = []
    for rows, ids in zip(logits, tokens, strict=True):
        total = 0.0
        for row, token in zip(rows, ids, strict=True):
            top = max(row)
            total += row[token] - top - math.log(math.fsum(math.exp(x - top) for x in row))
        sums.append(total)
    h = (sums[0] - refs[0]) - (sums[1] - refs[1])
    return max(0.0, -beta * h) + math.log1p(math.exp(-abs(beta * h)))


def test_it_equals_a_slow_version_with_padding_and_ragged_lengths() -> None:
    """Completions of 1 to 9 tokens in one padded batch, masked sums in, against single rows."""
    random = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 10, (12, 2), generator=random)
    logits = 4 * torch.randn(12, 2, 9, 17, generator=random, dtype=torch.float64)
    tokens = torch.randint(0, 17, (12, 2, 9), generator=random)
    refs = -20 * torch.rand(12, 2, generator=random, dtype=torch.float64)
    logprobs = torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
    mask = torch.arange(9) < lengths[..., None]
    sums = (logprobs * mask).sum(-1)
    found = dpo_loss(sums[:, 0], sums[:, 1], refs[:, 0], refs[:, 1], beta=0.25).losses
    for row in range(12):
        cut = [int(n) for n in lengths[row]]
        expected = slow_loss(
            [logits[row, side, : cut[side]].tolist() for side in (0, 1)],
            [tokens[row, side, : cut[side]].tolist() for side in (0, 1)],
            (float(refs[row, 0]), float(refs[row, 1])),
            0.25,
        )
        assert float(found[row]) == pytest.approx(expected, abs=1e-12)


def test_single_precision_agrees_with_double() -> None:
    logps = random_logps(8)
    double = dpo_loss(*logps, beta=0.1).losses
    single = dpo_loss(*(one.float() for one in logps), beta=0.1).losses
    assert torch.allclose(single.double(), double, atol=1e-6, rtol=1e-5)
