"""Weights of pairs: how likely the policy is to write them, against what it writes as a rule."""

import math

import pytest
import torch
from torch import Tensor

from trueup.train.losses import wpo_weights

VOCABULARY = 11


def positions(seed: int, lengths: list[int], *, scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs of random tokens under random distributions, and those distributions (T, V)."""
    random = torch.Generator().manual_seed(seed)
    tables = [
        torch.log_softmax(
            scale * torch.randn(n, VOCABULARY, generator=random, dtype=torch.float64), -1
        )
        for n in lengths
    ]
    tokens = [torch.randint(VOCABULARY, (n, 1), generator=random) for n in lengths]
    return [t.gather(-1, k)[:, 0] for t, k in zip(tables, tokens, strict=True)], tables


def collisions(tables: list[Tensor]) -> list[Tensor]:
    return [(2 * table).logsumexp(-1) for table in tables]


def slow(logprobs: list[float], table: list[list[float]]) -> float:
    """The geometric mean of p(token) over the expected p of a draw, token by token."""
    product = 1.0
    for logprob, row in zip(logprobs, table, strict=True):
        product *= math.exp(logprob) / math.fsum(math.exp(x) ** 2 for x in row)
    return product ** (1 / len(logprobs))


CHOSEN, CHOSEN_TABLES = positions(1, [3, 1, 8, 5], scale=2.0)
REJECTED, REJECTED_TABLES = positions(2, [2, 6, 8, 1], scale=2.0)
SIDES = CHOSEN, REJECTED, collisions(CHOSEN_TABLES), collisions(REJECTED_TABLES)


def test_the_worked_example_of_the_docstring() -> None:
    """Ratios 1, 0.2 and 0.4: sqrt(0.2) * 0.4."""
    half = math.log(0.5)
    found = wpo_weights(
        [torch.tensor([0.5, 0.1]).log()],
        [torch.tensor([0.2]).log()],
        [torch.tensor([half, half])],
        [torch.tensor([half])],
    )
    assert found.tolist() == pytest.approx([0.178885], abs=1e-6)


def test_it_equals_the_slow_version() -> None:
    found = wpo_weights(*SIDES)
    assert found.shape == (4,)
    for i in range(4):
        chosen = slow(CHOSEN[i].tolist(), CHOSEN_TABLES[i].tolist())
        rejected = slow(REJECTED[i].tolist(), REJECTED_TABLES[i].tolist())
        assert float(found[i]) == pytest.approx(min(1.0, chosen * rejected), abs=1e-12)
    assert bool((found < 1).any())


def test_a_uniform_policy_weighs_every_pair_one() -> None:
    logprobs = [torch.full((n,), -math.log(VOCABULARY)) for n in (1, 4)]
    found = wpo_weights(logprobs, logprobs, logprobs, logprobs)  # sum of p^2 = 1 / V = p
    assert found.tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_weights_lie_above_zero_and_at_most_at_one(scale: float) -> None:
    """The best token is likelier than a draw: greedy answers would weigh more than 1."""
    drawn, tables = positions(3, [4] * 200, scale=scale)
    greedy = [table.max(-1).values for table in tables]
    found = wpo_weights(drawn, drawn, collisions(tables), collisions(tables))
    assert bool((found > 0).all()) and bool((found <= 1).all())
    bounded = wpo_weights(greedy, greedy, collisions(tables), collisions(tables))
    assert bool((bounded == 1).all())


def test_swapping_the_sides_changes_nothing() -> None:
    swapped = wpo_weights(SIDES[1], SIDES[0], SIDES[3], SIDES[2])
    assert torch.allclose(swapped, wpo_weights(*SIDES))


def test_repeating_an_answers_tokens_changes_nothing() -> None:
    twice = [[torch.cat([one, one]) for one in side] for side in SIDES]
    assert torch.allclose(wpo_weights(*twice), wpo_weights(*SIDES))


def test_an_answer_half_as_likely_per_token_halves_the_weight() -> None:
    rarer = [one - 3 for one in CHOSEN]
    rarest = [one - math.log(2) for one in rarer]
    before = wpo_weights(rarer, *SIDES[1:])
    assert bool((before < 1).all())
    assert torch.allclose(wpo_weights(rarest, *SIDES[1:]), before / 2)


def test_the_policy_does_not_learn_to_lower_its_weights() -> None:
    learning = [one.clone().requires_grad_() for one in CHOSEN]
    assert not wpo_weights(learning, *SIDES[1:]).requires_grad
