"""What holds of every loss on pairs: nothing is reduced, and it is what the slow version says."""

import pytest
import torch
from loss_cases import CASES, Batch, Case, Pair, random_batch
from torch import Tensor

from trueup.train import losses
from trueup.train.losses import PreferenceLoss

every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def gradients(side: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros_like(one) if one.grad is None else one.grad for one in side])


def test_every_loss_on_pairs_is_in_the_table() -> None:
    """`*_loss` functions that are not in it take scores, single answers or one side only."""
    tested = {name for one in CASES.values() for name in one.loss.__code__.co_names}
    others = {"bradley_terry_loss", "kto_loss", "nll_loss"}
    others |= {"clipped_policy_loss", "clipped_value_loss"}
    assert {name for name in losses.__all__ if name.endswith("_loss")} == others | {
        name for name in tested if name.endswith("_loss")
    }


def test_the_list_of_names_is_sorted_and_complete() -> None:
    assert losses.__all__ == sorted(losses.__all__)
    assert all(hasattr(losses, name) for name in losses.__all__)


@every_loss
def test_it_equals_the_slow_version(case: Case) -> None:
    batch = random_batch(1)
    loss = case.loss(batch)
    assert isinstance(loss, PreferenceLoss)
    for i, pair in enumerate(batch.pairs):
        found = tuple(float(part[i]) for part in loss)
        assert found == pytest.approx(case.slow(pair), abs=1e-10, rel=1e-10)


@every_loss
def test_single_precision_agrees_with_double(case: Case) -> None:
    batch = random_batch(2)
    for single, double in zip(case.loss(batch.single_precision()), case.loss(batch), strict=True):
        assert single.dtype == torch.float32
        assert torch.allclose(single.double(), double, atol=1e-5, rtol=1e-5)


@every_loss
def test_a_pair_does_not_know_its_neighbours(case: Case) -> None:
    """So that splitting a step into passes changes nothing."""
    batch = random_batch(3, n=6)
    together = case.loss(batch)
    assert [part.shape for part in together] == [(6,), (6,), (6,)]
    for i in range(6):
        for whole, alone in zip(together, case.loss(batch.only(i)), strict=True):
            assert torch.equal(whole[i : i + 1], alone)


@every_loss
def test_rewards_carry_no_gradient(case: Case) -> None:
    loss = case.loss(random_batch(4).learning())
    assert loss.losses.requires_grad
    assert not loss.chosen_rewards.requires_grad and not loss.rejected_rewards.requires_grad


@every_loss
def test_the_cost_where_policy_and_reference_are_the_same(case: Case) -> None:
    """Known without a model: log 2, 1 for the hinge, (1 / 2 beta) ** 2 for IPO."""
    batch = random_batch(5).at_the_start()
    found = case.loss(batch)
    if case.at_the_start is not None:
        expected = torch.full_like(found.losses, case.at_the_start)
        assert torch.allclose(found.losses, expected, atol=1e-6, rtol=0)
        assert not found.chosen_rewards.any() and not found.rejected_rewards.any()


@every_loss
def test_the_first_step_raises_chosen_and_lowers_rejected(case: Case) -> None:
    batch = random_batch(6).at_the_start().learning()
    case.loss(batch).losses.sum().backward()
    assert bool((gradients(batch.policy_chosen) < 0).all())
    assert bool((gradients(batch.policy_rejected) > 0).all())


@every_loss
def test_no_step_ever_pushes_the_wrong_way(case: Case) -> None:
    """But for the losses with a margin to keep to, which pull back from beyond it."""
    batch = random_batch(7, n=400).learning()
    case.loss(batch).losses.sum().backward()
    wrong = (gradients(batch.policy_chosen) > 0).any() | (
        gradients(batch.policy_rejected) < 0
    ).any()
    assert bool(wrong) is not case.always_apart


@every_loss
@pytest.mark.parametrize("chosen", [-1e4, -1e-7, 0.0])
@pytest.mark.parametrize("rejected", [-1e4, -1e-7, 0.0])
def test_extreme_answers_give_finite_losses_and_gradients(
    case: Case, chosen: float, rejected: float
) -> None:
    """All but certain, certain, and hopeless, in single precision, against a moderate reference."""
    sides = ([torch.tensor([one])] for one in (chosen, rejected, -3.0, -2.0))
    batch = Batch._make((*sides, torch.tensor([1.0]))).learning()
    losses = case.loss(batch).losses
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradients(batch.policy_chosen)).all()
    assert torch.isfinite(gradients(batch.policy_rejected)).all()


@every_loss
def test_the_gradient_is_that_of_finite_differences(case: Case) -> None:
    """Of the slow version, moved a little both ways in one token."""
    batch = random_batch(8, n=12).learning()
    case.loss(batch).losses.sum().backward()
    step = 1e-6
    for i, pair in enumerate(batch.pairs):
        for name in ("policy_chosen", "policy_rejected"):

            def moved(by: float, pair: Pair = pair, name: str = name) -> float:
                first, *others = getattr(pair, name)
                return case.slow(pair._replace(**{name: [first + by, *others]}))[0]

            slope = (moved(step) - moved(-step)) / (2 * step)
            grad = getattr(batch, name)[i].grad
            assert grad is not None
            assert float(grad[0]) == pytest.approx(slope, abs=1e-6, rel=1e-6)
