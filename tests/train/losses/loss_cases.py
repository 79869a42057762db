"""Every preference loss beside a slow version of it, and random pairs to try both on.

The slow versions take one pair, as lists of token log-probs, and speak of probabilities where the
losses speak of logarithms: P(chosen wins) = exp(r_w) / (exp(r_w) + exp(r_l)).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trueup.train.losses import (
    PreferenceLoss,
    dpo_loss,
    dpop_loss,
    hinge_loss,
    ipo_loss,
    ipo_norm_loss,
    ld_dpo_loss,
    ln_dpo_loss,
    orpo_loss,
    rdpo_loss,
    robust_dpo_loss,
    rpo_loss,
    simpo_loss,
    soft_dpo_loss,
)

Tokens = list[float]
Logps = tuple[Tensor, Tensor, Tensor, Tensor]
"""Policy chosen, policy rejected, ref chosen, ref rejected; what most losses take first."""


class Pair(NamedTuple):
    """One pair, in plain numbers."""

    policy_chosen: Tokens
    policy_rejected: Tokens
    ref_chosen: Tokens
    ref_rejected: Tokens
    margin: float


class Batch(NamedTuple):
    """Pairs as token log-probs; what a loss takes is made from them."""

    policy_chosen: list[Tensor]
    policy_rejected: list[Tensor]
    ref_chosen: list[Tensor]
    ref_rejected: list[Tensor]
    margins: Tensor

    @property
    def policy(self) -> tuple[Tensor, Tensor]:
        return sums(self.policy_chosen), sums(self.policy_rejected)

    @property
    def logps(self) -> Logps:
        return (*self.policy, sums(self.ref_chosen), sums(self.ref_rejected))

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        return (
            torch.tensor([len(one) for one in self.policy_chosen]),
            torch.tensor([len(one) for one in self.policy_rejected]),
        )

    @property
    def pairs(self) -> list[Pair]:
        sides = [[one.tolist() for one in side] for side in self[:4]]
        return [Pair(*row) for row in zip(*sides, self.margins.tolist(), strict=True)]

    def at_the_start(self) -> "Batch":
        """The same with the policy equal to the reference."""
        return self._replace(
            policy_chosen=[one.clone() for one in self.ref_chosen],
            policy_rejected=[one.clone() for one in self.ref_rejected],
        )

    def learning(self) -> "Batch":
        """The same with gradients: all four sides are leaves, the policy's are to be learnt."""
        sides = [[one.detach().clone().requires_grad_() for one in side] for side in self[:4]]
        return Batch._make((*sides, self.margins))

    def only(self, i: int) -> "Batch":
        return Batch._make((*([side[i]] for side in self[:4]), self.margins[i : i + 1]))

    def single_precision(self) -> "Batch":
        sides = [[one.float() for one in side] for side in self[:4]]
        return Batch._make((*sides, self.margins.float()))


def sums(side: list[Tensor]) -> Tensor:
    return torch.stack([one.sum() for one in side])


def one_pair(
    policy_chosen: float, policy_rejected: float, ref_chosen: float, ref_rejected: float
) -> Logps:
    return (
        torch.tensor([float(policy_chosen)]),
        torch.tensor([float(policy_rejected)]),
        torch.tensor([float(ref_chosen)]),
        torch.tensor([float(ref_rejected)]),
    )


def times(n: int, logps: Logps) -> Logps:
    """The sums of answers said n times over."""
    return n * logps[0], n * logps[1], n * logps[2], n * logps[3]


EXAMPLE = one_pair(-9, -12, -10, -11)
"""That of the docstrings: h = 2."""


def random_batch(seed: int, n: int = 48) -> Batch:
    """Answers of 1 to 9 tokens at -6 to 0 nats each, policy and reference unrelated."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (2, n), generator=random).tolist()

    def side(which: int) -> list[Tensor]:
        return [
            -6 * torch.rand(k, generator=random, dtype=torch.float64) - 1e-3 for k in lengths[which]
        ]

    margins = 3 * torch.rand(n, generator=random, dtype=torch.float64)
    return Batch(side(0), side(1), side(0), side(1), margins)


# --- the slow versions ----------------------------------------------------------------------------


def win_rate(chosen_reward: float, rejected_reward: float) -> float:
    return math.exp(chosen_reward) / (math.exp(chosen_reward) + math.exp(rejected_reward))


def total(tokens: Tokens) -> float:
    result = 0.0
    for token in tokens:
        result += token
    return result


def rewards(pair: Pair, beta: float) -> tuple[float, float]:
    return (
        beta * (total(pair.policy_chosen) - total(pair.ref_chosen)),
        beta * (total(pair.policy_rejected) - total(pair.ref_rejected)),
    )


def mean_rewards(pair: Pair, beta: float) -> tuple[float, float]:
    chosen, rejected = rewards(pair, beta)
    return chosen / len(pair.policy_chosen), rejected / len(pair.policy_rejected)


def slow_smoothed(pair: Pair, beta: float, e: float) -> tuple[float, float, float]:
    w, l = rewards(pair, beta)  # noqa: E741
    return -(1 - e) * math.log(win_rate(w, l)) - e * math.log(win_rate(l, w)), w, l


def slow_robust(pair: Pair, beta: float, e: float) -> tuple[float, float, float]:
    w, l = rewards(pair, beta)  # noqa: E741
    right, flipped = -math.log(win_rate(w, l)), -math.log(win_rate(l, w))
    return ((1 - e) * right - e * flipped) / (1 - 2 * e), w, l


def slow_soft(pair: Pair, beta: float, scale: float) -> tuple[float, float, float]:
    return slow_smoothed(pair, beta, 1 - win_rate(pair.margin / scale, 0.0))


def slow_ipo(pair: Pair, beta: float) -> tuple[float, float, float]:
    w, l = rewards(pair, beta)  # noqa: E741
    return ((w - l) / beta - 1 / (2 * beta)) ** 2, w, l


def slow_ipo_norm(pair: Pair, beta: float) -> tuple[float, float, float]:
    w, l = mean_rewards(pair, beta)  # noqa: E741
    return ((w - l) / beta - 1 / (2 * beta)) ** 2, w, l


def slow_hinge(pair: Pair, beta: float) -> tuple[float, float, float]:
    w, l = rewards(pair, beta)  # noqa: E741
    return (0.0 if w - l > 1 else 1 - (w - l)), w, l


def slow_ln(pair: Pair, beta: float) -> tuple[float, float, float]:
    w, l = mean_rewards(pair, beta)  # noqa: E741
    return -math.log(win_rate(w, l)), w, l


def slow_rdpo(pair: Pair, beta: float, alpha: float) -> tuple[float, float, float]:
    """Bradley-Terry on the reward whose best policy, at a price of alpha a token, is ours."""
    w, l = rewards(pair, beta)  # noqa: E741
    true_w = w + alpha * len(pair.policy_chosen)
    true_l = l + alpha * len(pair.policy_rejected)
    return -math.log(win_rate(true_w, true_l)), w, l


def slow_ld(pair: Pair, beta: float, alpha: float) -> tuple[float, float, float]:
    shared = min(len(pair.policy_chosen), len(pair.policy_rejected))

    def weighted(tokens: Tokens) -> float:
        return total([t if i < shared else alpha * t for i, t in enumerate(tokens)])

    w = beta * (weighted(pair.policy_chosen) - weighted(pair.ref_chosen))
    l = beta * (weighted(pair.policy_rejected) - weighted(pair.ref_rejected))  # noqa: E741
    return -math.log(win_rate(w, l)), w, l


def slow_dpop(pair: Pair, beta: float, penalty: float) -> tuple[float, float, float]:
    w, l = rewards(pair, beta)  # noqa: E741
    ratio = math.exp(total(pair.ref_chosen)) / math.exp(total(pair.policy_chosen))
    lost = math.log(ratio) if ratio > 1 else 0.0
    return -math.log(win_rate(w, l + beta * penalty * lost)), w, l


def slow_rpo(pair: Pair, beta: float, weight: float) -> tuple[float, float, float]:
    w, l = rewards(pair, beta)  # noqa: E741
    nll = -total(pair.policy_chosen) / len(pair.policy_chosen)
    return -math.log(win_rate(w, l)) + weight * nll, w, l


def slow_simpo(pair: Pair, beta: float, gamma: float) -> tuple[float, float, float]:
    w = beta * total(pair.policy_chosen) / len(pair.policy_chosen)
    l = beta * total(pair.policy_rejected) / len(pair.policy_rejected)  # noqa: E741
    return -math.log(win_rate(w, l + gamma)), w, l


def slow_orpo(pair: Pair, beta: float) -> tuple[float, float, float]:
    w = total(pair.policy_chosen) / len(pair.policy_chosen)
    l = total(pair.policy_rejected) / len(pair.policy_rejected)  # noqa: E741
    odds_ratio = (math.exp(w) / (1 - math.exp(w))) / (math.exp(l) / (1 - math.exp(l)))
    return -w - beta * math.log(odds_ratio / (1 + odds_ratio)), beta * w, beta * l


# --- the table ------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A loss with settings, its slow version, and what it costs while policy = reference."""

    loss: Callable[[Batch], PreferenceLoss]
    slow: Callable[[Pair], tuple[float, float, float]]
    at_the_start: float | None = math.log(2)
    """None where the cost depends on the pair."""
    always_apart: bool = True
    """Whether chosen is pushed up and rejected down wherever the policy is."""


def soft(batch: Batch) -> PreferenceLoss:
    return soft_dpo_loss(*batch.logps, batch.margins, beta=0.3, margin_scale=1.5)


def rpo(batch: Batch) -> PreferenceLoss:
    return rpo_loss(*batch.logps, batch.lengths[0], beta=0.3, nll_weight=0.2)


def ld(batch: Batch) -> PreferenceLoss:
    return ld_dpo_loss(*batch[:4], beta=0.3, alpha=0.4)


CASES = {
    "dpo": Case(lambda b: dpo_loss(*b.logps, beta=0.3), lambda p: slow_smoothed(p, 0.3, 0.0)),
    "conservative": Case(
        lambda b: dpo_loss(*b.logps, beta=0.3, label_smoothing=0.15),
        lambda p: slow_smoothed(p, 0.3, 0.15),
        always_apart=False,
    ),
    "robust": Case(
        lambda b: robust_dpo_loss(*b.logps, beta=0.3, label_smoothing=0.15),
        lambda p: slow_robust(p, 0.3, 0.15),
    ),
    "soft": Case(soft, lambda p: slow_soft(p, 0.3, 1.5), always_apart=False),
    "ipo": Case(
        lambda b: ipo_loss(*b.logps, beta=0.1),
        lambda p: slow_ipo(p, 0.1),
        at_the_start=25.0,
        always_apart=False,
    ),
    "ipo_norm": Case(
        lambda b: ipo_norm_loss(*b.logps, *b.lengths, beta=0.1),
        lambda p: slow_ipo_norm(p, 0.1),
        at_the_start=25.0,
        always_apart=False,
    ),
    "hinge": Case(
        lambda b: hinge_loss(*b.logps, beta=0.05), lambda p: slow_hinge(p, 0.05), at_the_start=1.0
    ),
    "ln_dpo": Case(
        lambda b: ln_dpo_loss(*b.logps, *b.lengths, beta=2.0), lambda p: slow_ln(p, 2.0)
    ),
    "rdpo": Case(
        lambda b: rdpo_loss(*b.logps, *b.lengths, beta=0.3, alpha=0.2),
        lambda p: slow_rdpo(p, 0.3, 0.2),
        at_the_start=None,
    ),
    "ld_dpo": Case(ld, lambda p: slow_ld(p, 0.3, 0.4)),
    "dpop": Case(
        lambda b: dpop_loss(*b.logps, beta=0.3, penalty=2.0), lambda p: slow_dpop(p, 0.3, 2.0)
    ),
    "rpo": Case(rpo, lambda p: slow_rpo(p, 0.3, 0.2), at_the_start=None),
    "simpo": Case(
        lambda b: simpo_loss(*b.policy, *b.lengths, beta=2.0, gamma=0.7),
        lambda p: slow_simpo(p, 2.0, 0.7),
        at_the_start=None,
    ),
    "orpo": Case(
        lambda b: orpo_loss(*b.policy, *b.lengths, beta=0.1),
        lambda p: slow_orpo(p, 0.1),
        at_the_start=None,
    ),
}
