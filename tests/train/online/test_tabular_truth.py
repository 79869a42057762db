"""Where the methods end, when nothing is left to chance.

A policy that earns r and pays beta a nat has one optimum, ref * exp(r / beta) / Z. On tables, with
exact expectations, PPO, RLOO and both kinds of DPO reach it; the others reach the fixed points that
are solved for here by other means. TV is total variation, from 0 to 1.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, least_squares
from tabular import Table, apart, descend, expected_loss
from torch import Tensor

from trueup.train.losses import clipped_value_loss, dpo_loss, kl_estimate
from trueup.train.online.config import OnlineConfig
from trueup.train.online.pairs import OwnPairs
from trueup.train.online.rollouts import Group

BETA = 0.5
NEAR = 0.01


def settings(**given: object) -> OnlineConfig:
    return OnlineConfig.model_validate(
        {"kl_coef": BETA, "max_tokens": 1, "whiten": False, "lam": 1.0} | given
    )


@pytest.fixture
def bandit() -> Table:
    """Three answers of one token."""
    table = Table(3, 1, seed=4)
    table.rewards = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
    return table


def tree() -> Table:
    """Nine answers of two tokens out of three."""
    return Table(3, 2, seed=1)


# --- PPO ------------------------------------------------------------------------------------------


def true_values(table: Table) -> dict[tuple[int, ...], float]:
    """What is to come after each beginning of an answer: the reward, less the price."""
    now, ref = (torch.log_softmax(x.detach(), 1) for x in (table.logits, table.ref_logits))
    values = {one: float(r) for one, r in zip(table.answers, table.rewards, strict=True)}
    for prefix in sorted(table.row_of, key=len, reverse=True):
        row = table.row_of[prefix]
        values[prefix] = sum(
            float(now[row, token].exp())
            * (values[(*prefix, token)] - BETA * float(now[row, token] - ref[row, token]))
            for token in range(now.shape[1])
        )
    return values


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_ppo_with_the_true_value_function_reaches_the_optimum(lam: float) -> None:
    """With the truth for a value function any lambda is unbiased."""
    table, config = tree(), settings(lam=lam)

    def loss() -> Tensor:
        values = true_values(table)

        def fill(group: Group, picked: tuple[int, ...]) -> None:
            one = table.answers[picked[0]]
            known = [values[one[:at]] for at in range(len(one))]
            group.values = [torch.tensor(known, dtype=torch.float64)]

        return expected_loss("ppo", table, config, 1, fill=fill)

    assert apart(table.probs, table.optimum(BETA)) > 0.1
    descend([table.logits], loss, steps=60, rate=2.0)
    assert apart(table.probs, table.optimum(BETA)) < NEAR


def test_ppo_with_a_value_function_that_learns_reaches_the_optimum_and_the_truth() -> None:
    table, config = tree(), settings()
    values = torch.zeros(len(table.row_of), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        made: list[tuple[Group, int]] = []

        def fill(group: Group, picked: tuple[int, ...]) -> None:
            one = table.answers[picked[0]]
            rows = [table.row_of[one[:at]] for at in range(len(one))]
            group.values = [values.detach()[rows]]
            made.append((group, picked[0]))

        policy = expected_loss("ppo", table, config, 1, fill=fill)
        for group, i in made:
            rows = [table.row_of[table.answers[i][:at]] for at in range(2)]
            old, returns = group.values[0], group.returns[0]
            each = clipped_value_loss(values[rows], old, returns, clip=0.2).losses
            policy = policy + float(table.probs[i]) * each.sum() / 4
        return policy

    descend([table.logits, values], loss, steps=90, rate=2.0)
    assert apart(table.probs, table.optimum(BETA)) < NEAR
    truth = true_values(table)
    learned = values.detach()
    found = {prefix: float(learned[row]) for prefix, row in table.row_of.items()}
    assert found[()] == pytest.approx(truth[()], abs=0.02)
    assert max(abs(found[one] - truth[one]) for one in found) < 0.2


# --- RLOO and the GRPOs ---------------------------------------------------------------------------


def test_rloo_reaches_the_optimum(bandit: Table) -> None:
    descend(
        [bandit.logits], lambda: expected_loss("rloo", bandit, settings(), 2), steps=60, rate=3.0
    )
    assert apart(bandit.probs, bandit.optimum(BETA)) < NEAR


def test_rloo_reaches_the_optimum_over_two_tokens() -> None:
    table = Table(2, 2, seed=3)
    descend([table.logits], lambda: expected_loss("rloo", table, settings(), 2), steps=60, rate=3)
    assert apart(table.probs, table.optimum(BETA)) < NEAR


@pytest.mark.parametrize("size", [2, 3])
def test_dr_grpo_settles_where_the_price_is_size_over_size_less_one(
    bandit: Table, size: int
) -> None:
    """The answer is in the mean it is compared with, which weakens the reward beside the price."""
    config = settings(kl_estimator="k2")
    descend(
        [bandit.logits], lambda: expected_loss("dr_grpo", bandit, config, size), steps=60, rate=3.0
    )
    assert apart(bandit.probs, bandit.optimum(BETA * size / (size - 1))) < NEAR
    assert apart(bandit.probs, bandit.optimum(BETA)) > 0.05


def test_k3_in_the_loss_settles_elsewhere(bandit: Table) -> None:
    """Its gradient is that of KL(ref || policy), so that policy_a (R - r_a) = beta' ref_a for some
    R above all rewards: one unknown, found by bisection."""
    descend(
        [bandit.logits], lambda: expected_loss("dr_grpo", bandit, settings(), 2), steps=80, rate=3.0
    )
    beta = 2 * BETA
    ref, rewards = bandit.ref.exp().numpy(), bandit.rewards.numpy()
    top = float(rewards.max())
    level = brentq(lambda x: float((beta * ref / (x - rewards)).sum()) - 1, top + 1e-9, top + 99)
    fixed = torch.tensor(beta * ref / (level - rewards))
    assert apart(bandit.probs, fixed) < NEAR
    assert apart(fixed, bandit.optimum(beta)) > 0.02


def test_division_by_the_deviation_settles_elsewhere(bandit: Table) -> None:
    """Solved for in numpy, group by group: the unit of the reward is gone."""
    config = settings(kl_estimator="k2")
    descend([bandit.logits], lambda: expected_loss("grpo", bandit, config, 2), steps=80, rate=1.5)
    ref, rewards = bandit.ref.numpy(), bandit.rewards.numpy()

    def stationary(free: np.ndarray) -> np.ndarray:
        logits = np.array([*free, 0.0])
        probs = np.exp(logits) / np.exp(logits).sum()
        pull = np.zeros(3)
        for i, j in itertools.product(range(3), repeat=2):
            two = rewards[[i, j]]
            by = (two - two.mean()) / (two.std(ddof=1) + 1e-4)
            for a, advantage in zip((i, j), by, strict=True):
                pull += probs[i] * probs[j] * advantage * (np.eye(3)[a] - probs) / 2
        leaving = np.log(probs) - ref
        return (pull - BETA * probs * (leaving - probs @ leaving))[:2]

    solved = least_squares(stationary, np.zeros(2), xtol=1e-12, ftol=1e-12, gtol=1e-12)
    logits = np.array([*solved.x, 0.0])
    fixed = torch.tensor(np.exp(logits) / np.exp(logits).sum())
    assert np.abs(stationary(solved.x)).max() < 1e-8
    assert apart(bandit.probs, fixed) < NEAR
    assert apart(fixed, bandit.optimum(BETA)) > 0.03
    scaled = Table(3, 1, seed=4)
    scaled.rewards = 10 * bandit.rewards
    descend([scaled.logits], lambda: expected_loss("grpo", scaled, config, 2), steps=80, rate=1.5)
    assert apart(scaled.probs, bandit.probs) < NEAR, "ten times the reward ends at the same place"
    assert apart(scaled.probs, scaled.optimum(BETA)) > 0.2


def test_k1_in_the_loss_moves_nowhere(bandit: Table) -> None:
    with torch.no_grad():
        bandit.logits += torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    start = bandit.probs

    def price() -> Tensor:
        logprobs = bandit.logprobs(bandit.logits)
        return (logprobs.exp().detach() * kl_estimate(logprobs, bandit.ref, "k1")).sum()

    descend([bandit.logits], price, steps=50, rate=3.0)
    assert apart(bandit.probs, start) < 1e-12
    assert apart(start, bandit.ref.exp()) > 0.2, "though it is far from the reference"


# --- DPO ------------------------------------------------------------------------------------------


def preferred(table: Table, i: int, j: int) -> float:
    """How often Bradley and Terry prefer answer i to j."""
    return float(torch.sigmoid(table.rewards[i] - table.rewards[j]))


def of_pair(table: Table, logprobs: Tensor, chosen: int, rejected: int) -> Tensor:
    sides = (logprobs[[chosen]], logprobs[[rejected]])
    return dpo_loss(*sides, table.ref[[chosen]], table.ref[[rejected]], beta=BETA).losses[0]


@pytest.mark.parametrize("drawn_by", ["policy", "reference"])
def test_dpo_on_labels_that_err_as_bradley_and_terry_have_it_reaches_the_optimum(
    bandit: Table, drawn_by: str
) -> None:
    """Online, on pairs of the policy's own, and offline, on the reference's."""
    labelled = []
    for i, j in itertools.permutations(range(3), 2):
        pairs = OwnPairs([bandit.group([i, j])], [[1.0, 0.0]])  # the label says i
        (row,) = pairs.rows
        assert torch.equal(torch.cat(pairs.of(row)), bandit.ref[[i, j]])
        labelled.append((*(one[0] for one in row.branches.completions), preferred(bandit, i, j)))

    def loss() -> Tensor:
        logprobs = bandit.logprobs(bandit.logits)
        drawn = bandit.probs if drawn_by == "policy" else bandit.ref.exp()
        return sum(
            (
                2 * float(drawn[i] * drawn[j]) * chance * of_pair(bandit, logprobs, i, j)
                for i, j, chance in labelled
            ),
            torch.zeros((), dtype=torch.float64),
        )

    descend([bandit.logits], loss, steps=120, rate=8.0)
    assert apart(bandit.probs, bandit.optimum(BETA)) < NEAR


def test_dpo_on_labels_that_never_err_goes_on_for_ever(bandit: Table) -> None:
    """Beta is no price then: the better answer of every pair is raised without end."""

    def loss() -> Tensor:
        logprobs = bandit.logprobs(bandit.logits)
        return sum(
            (of_pair(bandit, logprobs, i, j) for i, j in itertools.combinations(range(3), 2)),
            torch.zeros((), dtype=torch.float64),
        )

    best = []
    for _ in range(3):
        descend([bandit.logits], loss, steps=60, rate=8.0)
        best.append(float(bandit.probs[0]))
    assert float(bandit.optimum(BETA)[0]) < best[0] < best[1] < best[2] and best[2] > 0.99
