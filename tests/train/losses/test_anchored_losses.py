"""Losses that hold the chosen answer up, and the likelihood term they share with fine-tuning."""

import pytest
import torch
from loss_cases import EXAMPLE, one_pair, random_batch

from trueup.train.losses import PreferenceLoss, dpo_loss, dpop_loss, nll_loss, rpo_loss

BATCH = random_batch(51)
LOGPS = BATCH.logps
CHOSEN_LENGTHS = BATCH.lengths[0]


def same(a: PreferenceLoss, b: PreferenceLoss) -> bool:
    return all(torch.allclose(x, y, atol=1e-12, rtol=1e-12) for x, y in zip(a, b, strict=True))


# --- DPO-Positive ---------------------------------------------------------------------------------


def test_the_worked_example_of_dpop() -> None:
    """h = 1, one nat lost; log(1 + exp(0.4))."""
    loss = dpop_loss(*one_pair(-11, -12, -10, -10), beta=0.1, penalty=5.0)
    assert [part.item() for part in loss] == pytest.approx([0.913015, -0.1, -0.2], abs=1e-6)


def test_dpop_is_dpo_while_the_chosen_answer_keeps_its_likelihood() -> None:
    above = (torch.maximum(LOGPS[0], LOGPS[2]), *LOGPS[1:])
    assert same(dpop_loss(*above, beta=0.2, penalty=50.0), dpo_loss(*above, beta=0.2))


def test_below_the_reference_the_chosen_side_pulls_harder_by_the_penalty() -> None:
    chosen = (LOGPS[2] - 3).requires_grad_()
    rejected = LOGPS[1].clone().requires_grad_()
    losses = dpop_loss(chosen, rejected, *LOGPS[2:], beta=0.2, penalty=4.0).losses
    up, down = torch.autograd.grad(losses.sum(), [chosen, rejected])
    assert torch.allclose(up, -5 * down, rtol=1e-12)


def test_sinking_together_is_free_in_dpo_and_costs_in_dpop() -> None:
    start = LOGPS[2:]
    sunk = start[0] - 5, start[1] - 5
    free = dpo_loss(*sunk, *start, beta=0.2).losses - dpo_loss(*start, *start, beta=0.2).losses
    assert torch.allclose(free, torch.zeros_like(free), atol=1e-12)
    before = dpop_loss(*start, *start, beta=0.2, penalty=1.0).losses
    after = dpop_loss(*sunk, *start, beta=0.2, penalty=1.0).losses
    assert bool((after > before + 0.1).all())


# --- the likelihood of the chosen answer ----------------------------------------------------------


def test_the_worked_example_of_nll() -> None:
    assert nll_loss(torch.tensor([-9.0]), torch.tensor([4])).tolist() == [2.25]


def test_nll_is_never_negative_and_zero_for_a_certain_answer() -> None:
    assert bool((nll_loss(LOGPS[0], CHOSEN_LENGTHS) > 0).all())
    assert nll_loss(torch.zeros(1), torch.tensor([3])).item() == 0


def test_every_token_of_an_answer_pulls_by_one_over_its_length() -> None:
    batch = BATCH.learning()
    nll_loss(batch.policy[0], CHOSEN_LENGTHS).sum().backward()
    for one in batch.policy_chosen:
        assert one.grad is not None
        assert torch.allclose(one.grad, torch.full_like(one, -1 / len(one)))


def test_weighted_by_lengths_it_is_the_mean_over_tokens() -> None:
    losses = nll_loss(LOGPS[0], CHOSEN_LENGTHS)
    by_token = -torch.cat(BATCH.policy_chosen).mean()
    found = (losses * CHOSEN_LENGTHS).sum() / CHOSEN_LENGTHS.sum()
    assert found.item() == pytest.approx(by_token.item(), abs=1e-12)


# --- DPO with that term ---------------------------------------------------------------------------


def test_the_worked_example_of_rpo() -> None:
    """0.598139 + 0.2 * 9 / 4."""
    loss = rpo_loss(*EXAMPLE, torch.tensor([4]), beta=0.1, nll_weight=0.2)
    assert [part.item() for part in loss] == pytest.approx([1.048139, 0.1, -0.1], abs=1e-6)


def test_rpo_without_weight_is_dpo() -> None:
    rpo = rpo_loss(*LOGPS, CHOSEN_LENGTHS, beta=0.2, nll_weight=0.0)
    assert same(rpo, dpo_loss(*LOGPS, beta=0.2))


def test_the_second_term_pulls_on_the_chosen_answer_alone() -> None:
    sides = LOGPS[0].clone().requires_grad_(), LOGPS[1].clone().requires_grad_()
    dpo = torch.autograd.grad(dpo_loss(*sides, *LOGPS[2:], beta=0.2).losses.sum(), sides)
    losses = rpo_loss(*sides, *LOGPS[2:], CHOSEN_LENGTHS, beta=0.2, nll_weight=0.3).losses
    rpo = torch.autograd.grad(losses.sum(), sides)
    assert torch.allclose(rpo[0], dpo[0] - 0.3 / CHOSEN_LENGTHS)
    assert torch.allclose(rpo[1], dpo[1])


def test_a_pair_learnt_long_ago_is_still_imitated() -> None:
    logps = one_pair(-10, -1e4, -10, -10)
    logps[0].requires_grad_()
    loss = rpo_loss(*logps, torch.tensor([5]), beta=0.5, nll_weight=0.2).losses
    assert torch.autograd.grad(loss.sum(), logps[0])[0].item() == pytest.approx(-0.04)
