"""From raw scores to what each token is told: the reward as the update sees it.

    score ─ normalise ─ clip ─ penalties ─ minus the price of leaving the reference ─ advantages

The running scale and the KL coefficient are tensors, so that a resumed run finds them as they were.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trueup.records import Completion
from trueup.train.losses import kl_estimate
from trueup.train.online.advantages import (
    centered_advantages,
    gae,
    grpo_advantages,
    rloo_advantages,
    whiten,
)
from trueup.train.online.choices import kl_estimator, kl_in
from trueup.train.online.config import OnlineConfig
from trueup.train.online.rollouts import Group

__all__ = ["KLPrice", "RunningScale", "Shaping"]

EQUAL = 1e-12  # deviations below this share of the mean are rounding


class RunningScale:
    """Mean and deviation of every score so far (Welford 1962, in Chan's form for batches)."""

    def __init__(self) -> None:
        self.state = torch.zeros(3, dtype=torch.float64)  # count, mean, sum of squares around it

    def add(self, scores: Sequence[float]) -> None:
        if not scores:
            return
        new = torch.tensor(scores, dtype=torch.float64)
        count, mean, squares = self.state.tolist()
        total = count + len(new)
        apart = float(new.mean()) - mean
        squares += float((new - new.mean()).square().sum()) + apart**2 * count * len(new) / total
        mean += apart * len(new) / total
        self.state.copy_(torch.tensor([total, mean, squares], dtype=torch.float64))

    @property
    def mean(self) -> float:
        """Of all scores; 0 before the first."""
        return float(self.state[1])

    @property
    def spread(self) -> float | None:
        """Their standard deviation; None while all were equal."""
        count, mean, squares = self.state.tolist()
        spread = (squares / count) ** 0.5 if count else 0.0
        return spread if spread > EQUAL * abs(mean) else None

    def of(self, score: float) -> float:
        """The score in deviations from the mean; unchanged while all were equal."""
        return (score - self.mean) / self.spread if self.spread else score


class KLPrice:
    """The coefficient of KL: fixed, or steered towards a distance.

        error = clip(kl / target - 1, -0.2, 0.2);  coef *= 1 + error * answers / horizon

    Ziegler et al. 2019, arXiv:1909.08593, Sec. 2.2.
    """

    def __init__(self, config: OnlineConfig) -> None:
        self.config = config
        self.state = torch.tensor(config.kl_coef, dtype=torch.float64)

    @property
    def coef(self) -> float:
        return float(self.state)

    def heed(self, kl: float, num_answers: int) -> None:
        """Adapt to the mean KL of these answers, in nats; without a target nothing happens."""
        if self.config.kl_target is None:
            return
        error = min(0.2, max(-0.2, kl / self.config.kl_target - 1))
        self.state.mul_(max(0.1, 1 + error * num_answers / self.config.kl_horizon))


class Shaping:
    """Fills in the groups' advantages."""

    def __init__(self, method: str, config: OnlineConfig) -> None:
        self.method, self.config = method, config
        self.scale, self.price = RunningScale(), KLPrice(config)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"reward_scale": self.scale.state, "kl_coef": self.price.state}

    def heed(self, groups: Sequence[Group]) -> None:
        """Let the running scale know a batch's scores, before anything is made of them."""
        if self.config.normalize_reward:
            self.scale.add([score for group in groups for score in group.scores])

    def fill(self, groups: Sequence[Group]) -> None:
        """Set every group's advantages and, for PPO, returns; values must be there for PPO. Online
        DPO has none of them: it compares `rewards`."""
        if self.method == "online_dpo":
            return
        for group in groups:
            if self.method == "ppo":
                self._by_token(group)
            else:
                self._by_group(group)
        if self.method == "ppo" and self.config.whiten:
            flat = whiten([one for group in groups for one in group.advantages])
            pieces = iter(flat)
            for group in groups:
                group.advantages = [next(pieces) for _ in group.advantages]

    def rewards(self, group: Group) -> list[float]:
        """Each answer's score after normalising, clipping and penalties."""
        found = []
        for score, completion in zip(group.scores, group.completions, strict=True):
            value = self.scale.of(score) if self.config.normalize_reward else score
            found.append(self._clipped(value) - self._penalty(completion))
        return found

    def _clipped(self, value: float) -> float:
        clip = self.config.reward_clip
        return value if clip is None else min(clip, max(-clip, value))

    def _penalty(self, completion: Completion) -> float:
        length = len(completion.token_ids or ())
        unended = completion.finish_reason != "stop"
        return self.config.missing_eos_penalty * unended + self.config.length_penalty * length

    def _kl(self, old: Tensor, ref: Tensor) -> Tensor:
        """The price of each token, where it is paid in the reward."""
        if kl_in(self.method, self.config) == "loss":
            return torch.zeros_like(old)
        return self.price.coef * kl_estimate(old, ref, kl_estimator(self.method, self.config))

    def _by_token(self, group: Group) -> None:
        group.advantages, group.returns = [], []
        for at, last in enumerate(self.rewards(group)):
            rewards = -self._kl(group.old_logprobs[at], group.ref_logprobs[at])
            if group.step_scores:
                self._add_steps(rewards, group.step_scores[at], group.completions[at])
            else:
                rewards[-1] += last
            found = gae(rewards, group.values[at], gamma=self.config.gamma, lam=self.config.lam)
            group.advantages.append(found.advantages)
            group.returns.append(found.returns)

    def _add_steps(
        self, rewards: Tensor, steps: Sequence[tuple[int, float]], completion: Completion
    ) -> None:
        """At the end of each step what the answer gained by it; penalties at the end. The gains
        add up to the last step's score, so that no answer earns more by having more steps."""
        before = None
        for place, score in steps:
            value = self.scale.of(score) if self.config.normalize_reward else score
            value = self._clipped(value)
            rewards[place] += value if before is None else value - before
            before = value
        rewards[-1] -= self._penalty(completion)

    def _by_group(self, group: Group) -> None:
        prices = [
            float(self._kl(old, ref).sum())
            for old, ref in zip(group.old_logprobs, group.ref_logprobs, strict=True)
        ]
        # in float64: equal rewards must not differ by a rounding that their deviation blows up
        earned = torch.tensor(
            [r - p for r, p in zip(self.rewards(group), prices, strict=True)], dtype=torch.float64
        )
        made = {"rloo": rloo_advantages, "grpo": grpo_advantages, "dr_grpo": centered_advantages}[
            self.method
        ](earned)
        pairs = zip(made, group.old_logprobs, strict=True)
        group.advantages = [value.to(old).expand(len(old)) for value, old in pairs]
