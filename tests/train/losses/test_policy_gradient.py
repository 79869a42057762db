"""Losses of a policy that learns from its own samples: by hand, by their promises, by sign, and
beside slow versions that speak of probabilities where the losses speak of logarithms."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from trueup.train.losses import Estimator, clipped_policy_loss, clipped_value_loss, kl_estimate

ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")


class Tokens(NamedTuple):
    """Of one answer, float64."""

    logprobs: Tensor
    old: Tensor
    advantages: Tensor


def random_tokens(seed: int, size: int = 64) -> Tokens:
    random = torch.Generator().manual_seed(seed)
    old = -4 * torch.rand(size, generator=random, dtype=torch.float64) - 1e-3
    moved = 0.4 * torch.randn(size, generator=random, dtype=torch.float64)
    advantages = torch.randn(size, generator=random, dtype=torch.float64)
    return Tokens((old + moved).requires_grad_(), old, advantages)


# --- KL -------------------------------------------------------------------------------------------


def test_the_estimates_by_hand() -> None:
    logprobs, ref = torch.tensor([-1.0]), torch.tensor([-2.0])
    found = {one: kl_estimate(logprobs, ref, one).item() for one in ESTIMATORS}
    assert found == pytest.approx({"k1": 1.0, "k2": 0.5, "k3": 0.367879}, abs=5e-7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_where_policy_and_reference_agree_nothing_is_paid(estimator: Estimator) -> None:
    _, old, _ = random_tokens(0)
    assert torch.equal(kl_estimate(old, old, estimator), torch.zeros_like(old))


@pytest.mark.parametrize("seed", range(3))
def test_k2_and_k3_are_never_negative(seed: int) -> None:
    logprobs, old, _ = random_tokens(seed, 500)
    assert (kl_estimate(logprobs, old, "k2") >= 0).all()
    assert (kl_estimate(logprobs, old, "k3") >= 0).all()
    assert (kl_estimate(logprobs, old, "k1") < 0).any()


def two_policies(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of a policy, with gradient, and log-probs of a reference, over seven tokens."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, generator=random, dtype=torch.float64).requires_grad_()
    ref = torch.log_softmax(torch.randn(7, generator=random, dtype=torch.float64), 0)
    return logits, ref


@pytest.mark.parametrize("seed", range(3))
def test_over_all_tokens_k1_and_k3_are_the_divergence(seed: int) -> None:
    logits, ref = two_policies(seed)
    logprobs = torch.log_softmax(logits, 0).detach()
    divergence = float((logprobs.exp() * (logprobs - ref)).sum())
    for estimator in ("k1", "k3"):
        mean = float((logprobs.exp() * kl_estimate(logprobs, ref, estimator)).sum())
        assert mean == pytest.approx(divergence, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_as_a_loss_k1_pulls_nowhere_k2_to_the_optimum_and_k3_to_another(seed: int) -> None:
    """Mean gradients on the policy's own samples: zero, that of KL(policy || ref), and that of
    KL(ref || policy)."""
    logits, ref = two_policies(seed)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits)[0]

    def of_samples(estimator: Estimator) -> Tensor:
        logprobs = torch.log_softmax(logits, 0)
        return gradient((logprobs.exp().detach() * kl_estimate(logprobs, ref, estimator)).sum())

    logprobs = torch.log_softmax(logits, 0)
    forward = gradient((logprobs.exp() * (logprobs - ref)).sum())
    backward = gradient((ref.exp() * (ref - torch.log_softmax(logits, 0))).sum())
    assert torch.allclose(of_samples("k1"), torch.zeros_like(ref), atol=1e-12)
    assert torch.allclose(of_samples("k2"), forward, atol=1e-12)
    assert torch.allclose(of_samples("k3"), backward, atol=1e-12)
    assert not torch.allclose(forward, backward, atol=1e-2)


def test_no_gradient_flows_into_the_reference() -> None:
    logprobs, old, _ = random_tokens(1)
    ref = old.clone().requires_grad_()
    kl_estimate(logprobs, ref, "k3").sum().backward()
    assert ref.grad is None and logprobs.grad is not None


# --- the policy -----------------------------------------------------------------------------------


def slow_policy_loss(tokens: Tokens, low: float, high: float) -> list[float]:
    """Eq. 7 token by token, in probabilities."""
    found = []
    for now, old, advantage in zip(*(one.tolist() for one in tokens), strict=True):
        ratio = math.exp(now) / math.exp(old)
        held = min(max(ratio, 1 - low), 1 + high)
        found.append(-min(ratio * advantage, held * advantage))
    return found


def gradient_of(tokens: Tokens, **clips: float) -> Tensor:
    loss = clipped_policy_loss(*tokens, **clips).losses.sum()
    return torch.autograd.grad(loss, tokens.logprobs)[0]


def test_the_clipped_loss_by_hand() -> None:
    now, old = (torch.tensor([one] * 2, dtype=torch.float64) for one in (-1.0, -1.5))
    found = clipped_policy_loss(now, old, torch.tensor([2.0, -2.0], dtype=torch.float64))
    assert found.ratios.tolist() == pytest.approx([1.648721] * 2, abs=5e-7)
    assert found.losses.tolist() == pytest.approx([-2.4, 3.297443], abs=5e-7)
    assert found.is_clipped.tolist() == [True, False]


@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.2, 0.28), (0.05, 3.0)])
@pytest.mark.parametrize("seed", range(3))
def test_the_clipped_loss_is_the_slow_one(seed: int, clips: tuple[float, float]) -> None:
    tokens = random_tokens(seed)
    found = clipped_policy_loss(*tokens, clip_low=clips[0], clip_high=clips[1]).losses
    assert found.tolist() == pytest.approx(slow_policy_loss(tokens, *clips), abs=1e-12)


def test_at_the_policy_that_drew_it_is_reinforce() -> None:
    tokens = random_tokens(2)
    start = tokens._replace(logprobs=tokens.old.clone().requires_grad_())
    found = clipped_policy_loss(*start)
    assert torch.equal(found.losses, -tokens.advantages) and not found.is_clipped.any()
    assert torch.equal(found.ratios, torch.ones_like(tokens.old))
    assert torch.allclose(gradient_of(start), -tokens.advantages, atol=1e-15)


def test_what_turned_out_better_becomes_likelier_and_what_turned_out_worse_less() -> None:
    tokens = random_tokens(3)
    gradient, clipped = gradient_of(tokens), clipped_policy_loss(*tokens).is_clipped
    assert clipped.any() and not clipped.all()
    assert torch.equal(gradient[clipped], torch.zeros_like(gradient[clipped]))
    assert torch.equal(-gradient[~clipped].sign(), tokens.advantages[~clipped].sign())


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [(1.25, 1.0, False), (0.7, -1.0, False), (1.25, -1.0, True), (0.7, 1.0, True)],
)
def test_the_gradient_stops_only_on_the_way_out(
    ratio: float, advantage: float, flows: bool
) -> None:
    """A ratio that has gone too far may always come back."""
    now = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    tokens = Tokens(now, torch.zeros_like(now).detach(), torch.full_like(now, advantage).detach())
    assert bool(gradient_of(tokens).any()) == flows
    assert bool(clipped_policy_loss(*tokens).is_clipped) != flows


def test_clip_higher_lets_a_probability_rise_further_and_fall_as_before() -> None:
    def at(ratio: float, advantage: float) -> bool:
        now = torch.tensor([math.log(ratio)])
        found = clipped_policy_loss(
            now, torch.zeros(1), torch.tensor([advantage]), clip_low=0.2, clip_high=0.28
        )
        return bool(found.is_clipped)

    assert not at(1.25, 1.0) and at(1.3, 1.0)
    assert not at(0.85, -1.0) and at(0.75, -1.0)


# --- the value function ---------------------------------------------------------------------------


def slow_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> list:
    found = []
    for value, before, target in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
        held = value if clip is None else before + max(-clip, min(clip, value - before))
        found.append(max((value - target) ** 2, (held - target) ** 2) / 2)
    return found


def random_values(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    old, moved, returns = torch.randn(3, 64, generator=random, dtype=torch.float64)
    return (old + 0.4 * moved).requires_grad_(), old, returns


def test_the_value_loss_by_hand() -> None:
    found = clipped_value_loss(torch.ones(1), torch.zeros(1), torch.full((1,), 2.0), clip=0.2)
    assert found.losses.item() == pytest.approx(1.62) and found.is_clipped.item()


@pytest.mark.parametrize("clip", [0.2, 1.0, None])
@pytest.mark.parametrize("seed", range(3))
def test_the_value_loss_is_the_slow_one(seed: int, clip: float | None) -> None:
    values = random_values(seed)
    found = clipped_value_loss(*values, clip=clip)
    assert found.losses.tolist() == pytest.approx(slow_value_loss(*values, clip), abs=1e-12)


def test_unmoved_values_cost_half_the_squared_error_clipped_or_not() -> None:
    _, old, returns = random_values(0)
    expected = (old - returns).square() / 2
    for clip in (0.2, None):
        found = clipped_value_loss(old, old, returns, clip=clip)
        assert torch.equal(found.losses, expected) and not found.is_clipped.any()


def test_clipping_never_makes_a_value_cheaper() -> None:
    values = random_values(1)
    plain = clipped_value_loss(*values, clip=None).losses
    assert (clipped_value_loss(*values, clip=0.2).losses >= plain).all()


def test_a_value_moves_towards_its_return_unless_it_has_moved_enough() -> None:
    values, old, returns = random_values(2)
    found = clipped_value_loss(values, old, returns, clip=0.2)
    (gradient,) = torch.autograd.grad(found.losses.sum(), values)
    moved = ~found.is_clipped
    assert torch.equal(gradient[moved].sign(), (values - returns)[moved].sign())
    assert found.is_clipped.any() and not gradient[found.is_clipped].any()
