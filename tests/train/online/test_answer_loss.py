"""One answer's loss beside slow versions of the papers' formulas, and what importance weights
take away: an engine's distribution in place of the policy's, counted out on tables."""

import math
from typing import Any

import pytest
import torch
from tabular import Table
from torch import Tensor

from trueup.train.online.config import OnlineConfig
from trueup.train.online.objectives import Answer, answer_loss
from trueup.train.online.rollouts import importance_weights


def answer(seed: int, size: int = 6, **given: Any) -> Answer:
    random = torch.Generator().manual_seed(seed)
    old, moved, away, entropies = torch.rand(4, size, generator=random, dtype=torch.float64)
    advantage = float(torch.randn(1, generator=random))
    parts = {
        "logprobs": (-3 * old + 0.6 * (moved - 0.5)).requires_grad_(),
        "old_logprobs": -3 * old,
        "ref_logprobs": -3 * old + (away - 0.5),
        "advantages": torch.full((size,), advantage, dtype=torch.float64),
        "weights": torch.full((size,), 0.5 + float(away[0]), dtype=torch.float64),
        "entropies": entropies,
    }
    return Answer(**(parts | given))


def slow_loss(method: str, one: Answer, beta: float, bonus: float) -> float:
    """Token by token in plain numbers; RLOO's only token is the answer."""
    now, old, ref, by, w, entropies = ([] if x is None else x.detach().tolist() for x in one)
    if method == "rloo":
        now, old, ref, entropies = ([math.fsum(x)] for x in (now, old, ref, entropies))
    each = []
    for t in range(len(now)):
        ratio = math.exp(now[t] - old[t])
        held = min(max(ratio, 0.8), 1.3)
        loss = -min(ratio * by[t], held * by[t]) - bonus * entropies[t]
        if method in ("grpo", "dr_grpo"):
            away = math.exp(ref[t]) / math.exp(now[t])
            loss += beta * (away - 1 - math.log(away))
        each.append(w[t] * loss)
    return math.fsum(each) / (len(each) if method == "grpo" else 1)


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("seed", range(4))
def test_an_answers_loss_is_the_slow_one(method: str, seed: int) -> None:
    one = answer(seed, size=1 + 3 * seed)
    config = OnlineConfig(clip_low=0.2, clip_high=0.3, entropy_coef=0.1)
    found = answer_loss(method, one, config, 0.3).loss
    assert found.item() == pytest.approx(slow_loss(method, one, 0.3, 0.1), abs=1e-12)


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo", "dr_grpo"])
def test_a_better_answer_becomes_likelier_and_more_entropy_cheaper(method: str) -> None:
    config = OnlineConfig(entropy_coef=0.1)
    for advantage in (1.0, -1.0):
        start = answer(0)
        entropies = torch.ones(6, dtype=torch.float64, requires_grad=True)
        one = start._replace(
            old_logprobs=start.logprobs.detach(),
            advantages=torch.full((6,), advantage, dtype=torch.float64),
            entropies=entropies,
        )
        loss = answer_loss(method, one, config, 0.0).loss
        gradients = torch.autograd.grad(loss, [one.logprobs, entropies])
        assert (gradients[0].sign() == -advantage).all() and (gradients[1] < 0).all()


def test_rloo_moves_all_tokens_of_an_answer_alike() -> None:
    one = answer(1)
    loss = answer_loss("rloo", one, OnlineConfig(), 0.0).loss
    (gradient,) = torch.autograd.grad(loss, one.logprobs)
    assert len(set(gradient.tolist())) == 1


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_rloo_pays_for_the_whole_answer_when_it_pays_in_the_loss(estimator: Any) -> None:
    one = answer(2)
    config = OnlineConfig(kl_in="loss", kl_estimator=estimator)
    paid, free = (answer_loss("rloo", one, config, beta).loss.item() for beta in (0.3, 0.0))
    d = float((one.logprobs.detach() - one.ref_logprobs).sum())
    price = d * d / 2 if estimator == "k2" else math.exp(-d) - 1 + d
    assert paid - free == pytest.approx(0.3 * price * float(one.weights[0]))


# --- importance weights ---------------------------------------------------------------------------


def test_importance_weights_by_hand() -> None:
    engine = torch.tensor([-1.5, -2.0])
    near, far = torch.tensor([-1.0, -2.0]), torch.tensor([-0.2, -2.0])

    def of(trainer: Tensor, level: str) -> list[float]:
        return importance_weights(trainer, engine, level, 2.0).tolist()

    assert of(near, "token") == pytest.approx([1.648721, 1.0], abs=1e-6)
    assert of(near, "sequence") == pytest.approx([1.648721, 1.648721], abs=1e-6)
    assert of(far, "sequence") == [2.0, 2.0] and of(far, "token") == [2.0, 1.0]
    assert math.exp(1.3) == pytest.approx(3.669297, abs=5e-7)
    assert of(near, "none") == [1.0, 1.0]


@pytest.mark.parametrize("level", ["none", "token", "sequence"])
def test_an_engine_that_agrees_weighs_one(level: str) -> None:
    logprobs = torch.tensor([-1.0, -0.3])
    assert importance_weights(logprobs, logprobs, level, 2.0).tolist() == [1.0, 1.0]


HEAT = 1.6
"""The planted mismatch: the engine draws at another temperature than the policy's, and says so."""


def expected_gradient(
    method: str, table: Table, level: str, *, cap: float = 1e9, engine_draws: bool = True
) -> Tensor:
    """Of the logits, over every answer with the probability that the engine draws it; without
    `engine_draws` the policy does. Advantages are the rewards."""
    config = OnlineConfig(max_tokens=1)
    now = table.by_token(table.logits)
    trainer = table.by_token(table.logits.detach())
    engine = table.by_token(table.logits.detach() / HEAT) if engine_draws else trainer
    ref, total = table.by_token(table.ref_logits), torch.zeros((), dtype=torch.float64)
    for i, reward in enumerate(table.rewards.tolist()):
        old = trainer[i] if level != "none" else engine[i]
        one = Answer(
            now[i],
            old,
            ref[i],
            torch.full_like(old, reward),
            importance_weights(old, engine[i], level, cap),
        )
        loss = answer_loss(method, one, config, 0.2).loss
        total = total + float(engine[i].sum().exp()) * loss
    return torch.autograd.grad(total, table.logits)[0]


def moved(length: int) -> Table:
    table = Table(4, length, seed=2)
    with torch.no_grad():
        table.logits *= 2.0
    return table


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("length", [1, 2])
def test_weighed_by_answers_the_engines_distribution_is_gone_to_the_last_digit(
    method: str, length: int
) -> None:
    """The price in the loss and all."""
    table = moved(length)
    wanted = expected_gradient(method, table, "none", engine_draws=False)
    found = expected_gradient(method, table, "sequence")
    assert torch.allclose(found, wanted, atol=1e-12, rtol=0)
    planted = expected_gradient(method, table, "none")
    assert (planted - wanted).norm() > 0.05 * wanted.norm(), "it was there without weights"


@pytest.mark.parametrize("method", ["ppo", "grpo", "dr_grpo"])
def test_weighed_by_tokens_it_is_gone_from_one_token_and_less_from_two(method: str) -> None:
    """What stands before a token is still the engine's."""
    one = moved(1)
    wanted = expected_gradient(method, one, "none", engine_draws=False)
    assert torch.allclose(expected_gradient(method, one, "token"), wanted, atol=1e-12, rtol=0)
    two = moved(2)
    wanted = expected_gradient(method, two, "none", engine_draws=False)
    left = (expected_gradient(method, two, "token") - wanted).norm()
    assert 1e-3 < left / wanted.norm() < 1


def test_a_cap_leaves_a_bias_that_falls_as_it_rises() -> None:
    table = moved(2)
    wanted = expected_gradient("rloo", table, "none", engine_draws=False)
    left = [
        float((expected_gradient("rloo", table, "sequence", cap=cap) - wanted).norm())
        for cap in (1.0, 1.3, 2.0, 1e3)
    ]
    assert left == sorted(left, reverse=True) and left[0] > 0.01 and left[-1] < 1e-12
