"""From rewards to advantages: by hand, by their promises, and beside slow versions."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, pstdev, stdev

import pytest
import torch
from torch import Tensor

from trueup.train.online.advantages import (
    centered_advantages,
    gae,
    grpo_advantages,
    rloo_advantages,
    whiten,
)

GROUPS: dict[str, Callable[[Tensor], Tensor]] = {
    "rloo": rloo_advantages,
    "centered": centered_advantages,
    "grpo": grpo_advantages,
}


def drawn(seed: int, size: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(size, generator=random, dtype=torch.float64)


# --- over tokens ----------------------------------------------------------------------------------


def slow_gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float
) -> list[float]:
    """The sum that defines it: (gamma lam)^k times the k-th error from here on."""
    ahead = [*values[1:], 0.0]
    errors = [r + gamma * v - now for r, v, now in zip(rewards, ahead, values, strict=True)]
    return [
        math.fsum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors)))
        for t in range(len(errors))
    ]


def test_gae_by_hand() -> None:
    found = gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), gamma=1.0, lam=0.5)
    assert found.advantages.tolist() == [0.125, 0.75]
    assert found.returns.tolist() == [0.625, 1.0]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("size", [1, 2, 17])
def test_gae_is_the_sum_that_defines_it(gamma: float, lam: float, size: int) -> None:
    rewards, values = drawn(0, size), drawn(1, size)
    found = gae(rewards, values, gamma=gamma, lam=lam)
    expected = slow_gae(rewards.tolist(), values.tolist(), gamma, lam)
    assert found.advantages.tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(found.returns, found.advantages + values)


def test_without_discounts_returns_are_the_rewards_to_come_whatever_the_values() -> None:
    rewards = drawn(2, 9)
    to_come = rewards.flip(0).cumsum(0).flip(0)
    for values in (torch.zeros(9, dtype=torch.float64), drawn(3, 9)):
        assert torch.allclose(gae(rewards, values, gamma=1.0, lam=1.0).returns, to_come)


def test_lambda_0_trusts_the_value_function_alone() -> None:
    rewards, values = drawn(4, 9), drawn(5, 9)
    ahead = torch.cat([values[1:], torch.zeros(1, dtype=torch.float64)])
    found = gae(rewards, values, gamma=0.9, lam=0.0).advantages
    assert torch.allclose(found, rewards + 0.9 * ahead - values)


# --- within a group -------------------------------------------------------------------------------


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0])
    assert rloo_advantages(rewards).tolist() == [-3, -1.5, 4.5]
    assert centered_advantages(rewards).tolist() == [-2, -1, 3]
    found = grpo_advantages(rewards, eps=0.0).tolist()
    assert found == pytest.approx([-0.755929, -0.377964, 1.133893], abs=5e-7)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_group_advantages_are_the_slow_ones(size: int) -> None:
    rewards = drawn(6, size)
    plain = rewards.tolist()
    others = [fmean(plain[:i] + plain[i + 1 :]) for i in range(size)]
    mean, spread = fmean(plain), stdev(plain) + 1e-4
    assert rloo_advantages(rewards).tolist() == pytest.approx(
        [r - b for r, b in zip(plain, others, strict=True)], abs=1e-12
    )
    assert grpo_advantages(rewards).tolist() == pytest.approx(
        [(r - mean) / spread for r in plain], abs=1e-12
    )
    assert torch.allclose(
        centered_advantages(rewards) * size / (size - 1), rloo_advantages(rewards)
    )


@pytest.mark.parametrize("name", GROUPS)
def test_advantages_of_a_group_sum_to_zero_keep_the_order_and_forget_a_constant(name: str) -> None:
    of, rewards = GROUPS[name], drawn(7, 6)
    assert float(of(rewards).sum()) == pytest.approx(0, abs=1e-12)
    assert of(rewards).argsort().tolist() == rewards.argsort().tolist()
    assert torch.allclose(of(rewards + 5), of(rewards))


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("reward", [0.0, 0.1, -1234.567])
def test_equal_rewards_say_nothing(name: str, reward: float) -> None:
    """Not even by the rounding of their mean, which a deviation of nothing would blow up."""
    equal = torch.full((3,), reward, dtype=torch.float64)
    assert GROUPS[name](equal).abs().max() < 1e-6


def test_only_grpo_forgets_the_unit_of_the_reward() -> None:
    rewards = drawn(8, 6)
    for name, of in GROUPS.items():
        ratio = (of(10 * rewards) / of(rewards)).mean()
        assert float(ratio) == pytest.approx(1.0 if name == "grpo" else 10.0, rel=1e-3)


# --- over a batch ---------------------------------------------------------------------------------


def test_whitened_advantages_have_mean_0_and_deviation_1_over_all_tokens() -> None:
    pieces = [drawn(9, 3), drawn(10, 5), drawn(11, 1)]
    found = whiten(pieces)
    assert [len(one) for one in found] == [3, 5, 1]
    before, after = ([x for one in some for x in one.tolist()] for some in (pieces, found))
    mean, spread = fmean(before), pstdev(before)
    assert after == pytest.approx([(x - mean) / spread for x in before], abs=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_token_or_equal_ones_are_whitened_to_nothing(value: float, dtype: torch.dtype) -> None:
    for sizes in ([1], [2, 1], [7, 3]):
        found = whiten([torch.full((size,), value, dtype=dtype) for size in sizes])
        assert all(one.dtype == dtype and one.abs().max() < 1e-4 for one in found)
