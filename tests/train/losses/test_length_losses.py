"""DPO against learning to be long: per token, with a price on tokens, with a light tail."""

import math

import pytest
import torch
from loss_cases import EXAMPLE, Logps, random_batch, times
from torch import Tensor

from trueup.train.losses import PreferenceLoss, dpo_loss, ld_dpo_loss, ln_dpo_loss, rdpo_loss

BATCH = random_batch(41)
LOGPS, LENGTHS = BATCH.logps, BATCH.lengths
FOUR_AND_TWO = (torch.tensor([4]), torch.tensor([2]))


def same(a: PreferenceLoss, b: PreferenceLoss) -> bool:
    return all(torch.allclose(x, y, atol=1e-12, rtol=1e-12) for x, y in zip(a, b, strict=True))


# --- per token ------------------------------------------------------------------------------------


def test_the_worked_example_of_ln_dpo() -> None:
    """Averages 0.25 and -0.5; log(1 + exp(-1.5))."""
    loss = ln_dpo_loss(*EXAMPLE, *FOUR_AND_TWO, beta=2.0)
    assert [part.item() for part in loss] == pytest.approx([0.201413, 0.5, -1.0], abs=1e-6)


@pytest.mark.parametrize("n", [1, 7])
def test_equal_lengths_make_ln_dpo_dpo_with_a_smaller_beta(n: int) -> None:
    lengths = torch.full((len(LOGPS[0]),), n)
    assert same(ln_dpo_loss(*LOGPS, lengths, lengths, beta=2.0), dpo_loss(*LOGPS, beta=2.0 / n))


def test_repeating_the_answers_leaves_ln_dpo_as_it_is() -> None:
    repeated, lengths = times(3, LOGPS), (3 * LENGTHS[0], 3 * LENGTHS[1])
    assert same(ln_dpo_loss(*LOGPS, *LENGTHS, beta=2.0), ln_dpo_loss(*repeated, *lengths, beta=2.0))


# --- a price on tokens ----------------------------------------------------------------------------


def test_the_worked_example_of_rdpo() -> None:
    """log(1 + exp(-0.3))."""
    loss = rdpo_loss(*EXAMPLE, *FOUR_AND_TWO, beta=0.1, alpha=0.05)
    assert [part.item() for part in loss] == pytest.approx([0.554355, 0.1, -0.1], abs=1e-6)


def test_without_a_price_or_a_difference_in_length_rdpo_is_dpo() -> None:
    same_lengths = LENGTHS[0], LENGTHS[0]
    assert same(rdpo_loss(*LOGPS, *LENGTHS, beta=0.2, alpha=0.0), dpo_loss(*LOGPS, beta=0.2))
    assert same(rdpo_loss(*LOGPS, *same_lengths, beta=0.2, alpha=0.3), dpo_loss(*LOGPS, beta=0.2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.01, 0.2])
def test_a_longer_winner_gets_a_smaller_gradient(alpha: float, seed: int) -> None:
    """The sign that is easy to get wrong: the same log-probs, only the winner's length grows."""
    first, *others = (one[:1].repeat(30) for one in random_batch(seed).logps)
    chosen = torch.arange(1, 31)
    leaf = first.requires_grad_()
    rejected, ref_chosen, ref_rejected = others
    losses = rdpo_loss(
        leaf,
        rejected,
        ref_chosen,
        ref_rejected,
        chosen,
        torch.full_like(chosen, 10),
        beta=0.1,
        alpha=alpha,
    ).losses
    strength = -torch.autograd.grad(losses.sum(), leaf)[0]
    assert bool((strength > 0).all())
    assert bool((strength.diff() < 0).all())


def test_the_best_policy_for_a_reward_with_a_price_reproduces_its_labels() -> None:
    """Three answers, their rewards, and the tabular optimum of reward - price - beta * KL: R-DPO
    on labels drawn from the rewards has no gradient there, DPO does."""
    reward = torch.tensor([0.3, 1.0, -0.5], dtype=torch.float64)
    length = torch.tensor([2.0, 9.0, 5.0], dtype=torch.float64)
    ref = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    beta, alpha = 0.4, 0.15
    logits = (ref + (reward - alpha * length) / beta).requires_grad_()

    def expected_loss(alpha: float) -> Tensor:
        policy = logits.log_softmax(0)
        parts = []
        for win, lose in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]:
            logps: Logps = (policy[[win]], policy[[lose]], ref[[win]], ref[[lose]])
            lengths = length[[win]], length[[lose]]
            loss = rdpo_loss(*logps, *lengths, beta=beta, alpha=alpha).losses
            parts.append(torch.sigmoid(reward[win] - reward[lose]) * loss[0])
        return torch.stack(parts).sum()

    assert torch.autograd.grad(expected_loss(alpha), logits)[0].abs().max() < 1e-12
    assert torch.autograd.grad(expected_loss(0.0), logits)[0].abs().max() > 1e-2
    assert torch.autograd.grad(expected_loss(-alpha), logits)[0].abs().max() > 1e-2


def test_a_longer_winner_costs_less_at_the_start() -> None:
    policy = LOGPS[:2]
    losses = rdpo_loss(*policy, *policy, *LENGTHS, beta=0.2, alpha=0.3).losses
    for found, longer_by in zip(losses.tolist(), (LENGTHS[0] - LENGTHS[1]).tolist(), strict=True):
        assert found == pytest.approx(math.log1p(math.exp(-0.3 * longer_by)), abs=1e-12)


# --- a light tail ---------------------------------------------------------------------------------


def test_the_worked_example_of_ld_dpo() -> None:
    """One shared token; h = (1 + 0.5 * 2) + 1 = 3; log(1 + exp(-0.3))."""
    loss = ld_dpo_loss(
        [torch.tensor([-1.0, -2.0, -6.0])],
        [torch.tensor([-12.0])],
        [torch.tensor([-2.0, -2.0, -8.0])],
        [torch.tensor([-11.0])],
        beta=0.1,
        alpha=0.5,
    )
    assert [part.item() for part in loss] == pytest.approx([0.554355, 0.2, -0.1], abs=1e-6)


def test_a_full_weight_on_the_tail_makes_ld_dpo_dpo() -> None:
    assert same(ld_dpo_loss(*BATCH[:4], beta=0.2, alpha=1.0), dpo_loss(*LOGPS, beta=0.2))


def test_answers_of_equal_length_have_no_tail() -> None:
    sides = [[one[:1] for one in side] for side in BATCH[:4]]
    logps = [torch.cat(side) for side in sides]
    assert same(ld_dpo_loss(*sides, beta=0.2, alpha=0.0), dpo_loss(*logps, beta=0.2))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_a_tail_token_learns_alpha_times_as_much(alpha: float) -> None:
    batch = BATCH.learning()
    ld_dpo_loss(*batch[:4], beta=0.2, alpha=alpha).losses.sum().backward()
    tails = 0
    for one, other in zip(batch.policy_chosen, batch.policy_rejected, strict=True):
        assert one.grad is not None
        shared, tail = one.grad[: len(other)], one.grad[len(other) :]
        assert torch.allclose(shared, shared[0].expand_as(shared))
        assert torch.allclose(tail, alpha * shared[0].expand_as(tail), atol=1e-15)
        tails += len(tail)
    assert tails > 20
