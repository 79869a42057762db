"""What an online method minimises on a batch of rollouts.

Old log-probs, the reference's and the advantages come with each group; what is computed here is
what depends on the weights that learn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueup.models.logprobs import completion_values, rate_completions
from trueup.models.value import ValueHead
from trueup.train.data import Row
from trueup.train.losses import clipped_policy_loss, clipped_value_loss, kl_estimate
from trueup.train.objectives import Figures
from trueup.train.online.choices import kl_estimator, kl_in
from trueup.train.online.config import Estimator, OnlineConfig
from trueup.train.online.rollouts import Group

__all__ = ["Answer", "AnswerLoss", "PolicyObjective", "ValueObjective", "answer_loss"]


class Answer(NamedTuple):
    """One answer as its loss sees it; every tensor of shape (T,)."""

    logprobs: Tensor
    """Under the policy, with the gradient."""
    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    """Importance weights."""
    entropies: Tensor | None = None


class AnswerLoss(NamedTuple):
    """One answer's share of the step's sum, and what to log."""

    loss: Tensor
    ratios: Tensor
    is_clipped: Tensor


def answer_loss(method: str, answer: Answer, config: OnlineConfig, kl_coef: float) -> AnswerLoss:
    """The policy's loss on one answer.

        ppo      sum over tokens of  w * clipped(r_t, A_t)             over all tokens of the step
        rloo     clipped(product of r_t, A)  times w                   over all answers
        grpo     mean over tokens of  w * (clipped(r_t, A) + KL)       over all answers
        dr_grpo  sum over tokens of   w * (clipped(r_t, A) + KL)       over answers times max_tokens

    PPO: Schulman et al. 2017. RLOO: Ahmadian et al. 2024, the whole answer as one action. GRPO:
    Shao et al. 2024, Eq. 3, whose mean over an answer's own tokens makes long wrong answers
    cheap; Dr. GRPO (Liu et al. 2025) divides by a constant. What stands on the right is the
    caller's divisor, see `PolicyObjective.total`.

    With the price of the reference in the loss, `kl_coef` times the estimate joins every token's
    loss, an entropy bonus likewise; for RLOO the estimate is that of the whole answer. Importance
    weights stand on all of it: the price, too, is one on the policy's answers, not the engine's.
    A price a token does not feel what it does to the tokens behind it; one in the reward does.
    """
    low, high = config.clip_low, config.clip_high
    in_loss = kl_in(method, config) == "loss" and kl_coef > 0
    estimator: Estimator = kl_estimator(method, config)
    logprobs, old, ref = answer.logprobs, answer.old_logprobs, answer.ref_logprobs
    if method == "rloo":
        logprobs, old, ref = (one.sum().reshape(1) for one in (logprobs, old, ref))
    # an answer's own advantage and weight stand on every token of it
    weights, advantages = answer.weights[: len(logprobs)], answer.advantages[: len(logprobs)]
    policy = clipped_policy_loss(logprobs, old, advantages, clip_low=low, clip_high=high)
    each = policy.losses
    if in_loss:
        each = each + kl_coef * kl_estimate(logprobs, ref, estimator)
    if answer.entropies is not None:
        bonus = config.entropy_coef * answer.entropies
        each = each - (bonus.sum() if method == "rloo" else bonus)
    each = weights * each
    loss = each.mean() if method == "grpo" else each.sum()
    return AnswerLoss(loss, policy.ratios, policy.is_clipped)


class PolicyObjective:
    """PPO, RLOO, GRPO or Dr. GRPO on the groups of one batch; with a value head on the policy's own
    states, the value loss from the same pass."""

    def __init__(
        self,
        method: str,
        config: OnlineConfig,
        groups: Mapping[str, Group],
        *,
        kl_coef: float,
        value_head: ValueHead | None = None,
    ) -> None:
        """`groups` by row id."""
        self.method, self.config, self.groups = method, config, groups
        self.kl_coef, self.value_head = kl_coef, value_head

    def total(self, picked: Sequence[Row]) -> float:
        if self.method == "ppo":
            return float(sum(sum(row.lengths) for row in picked))
        answers = float(sum(len(row.completions) for row in picked))
        return answers * (self.config.max_tokens if self.method == "dr_grpo" else 1)

    def prepare(self, model: Any, picked: Sequence[Row], tokens_per_batch: int) -> None:
        pass

    def group_loss(self, model: Any, group: Sequence[Row]) -> tuple[Tensor, Figures]:
        rated = rate_completions(
            model,
            [row.branches for row in group],
            value_head=self.value_head,
            with_entropies=self.config.entropy_coef > 0,
        )
        total, figures = torch.zeros((), device=rated.logprobs[0][0].device), Figures()
        for at, row in enumerate(group):
            rollouts = self.groups[row.id]
            for place, logprobs in enumerate(rated.logprobs[at]):
                answer = Answer(
                    logprobs,
                    rollouts.old_logprobs[place].to(logprobs),
                    rollouts.ref_logprobs[place].to(logprobs),
                    rollouts.advantages[place].to(logprobs),
                    rollouts.weights[place].to(logprobs),
                    rated.entropies[at][place] if rated.entropies else None,
                )
                found = answer_loss(self.method, answer, self.config, self.kl_coef)
                total = total + found.loss
                told = _figures(answer, found)
                if rated.values and self.value_head:
                    value = _value_loss(
                        rollouts, place, rated.values[at][place], self.value_head.unit, self.config
                    )
                    total = total + self.config.value_coef * value.sum()
                    told["value_loss"] = float(value.detach().mean())
                figures.append(told)
        return total, figures


class ValueObjective:
    """The value function alone, on states of its own: an adapter, or another model."""

    def __init__(
        self, config: OnlineConfig, groups: Mapping[str, Group], value_head: ValueHead
    ) -> None:
        self.config, self.groups, self.value_head = config, groups, value_head

    def total(self, picked: Sequence[Row]) -> float:
        return float(sum(sum(row.lengths) for row in picked))

    def prepare(self, model: Any, picked: Sequence[Row], tokens_per_batch: int) -> None:
        pass

    def group_loss(self, model: Any, group: Sequence[Row]) -> tuple[Tensor, Figures]:
        values = completion_values(model, [row.branches for row in group], self.value_head)
        losses = [
            _value_loss(self.groups[row.id], place, one, self.value_head.unit, self.config)
            for row, of_row in zip(group, values, strict=True)
            for place, one in enumerate(of_row)
        ]
        figures = [{"value_loss": float(one.detach().mean())} for one in losses]
        return self.config.value_coef * torch.cat(losses).sum(), figures


def _value_loss(
    group: Group, place: int, values: Tensor, unit: Tensor, config: OnlineConfig
) -> Tensor:
    """In deviations of the reward; `unit` is one of them."""
    old, returns = group.values[place].to(values), group.returns[place].to(values)
    return clipped_value_loss(
        values / unit, old / unit, returns / unit, clip=config.value_clip
    ).losses


@torch.no_grad()
def _figures(answer: Answer, found: AnswerLoss) -> dict[str, float]:
    moved = answer.logprobs - answer.old_logprobs
    return {
        "ratio": float(found.ratios.mean()),
        "clip_rate": float(found.is_clipped.float().mean()),
        # k3 of the policy that drew against the one that learns, a token
        "moved_kl": float((moved.exp() - 1 - moved).mean()),
    }
