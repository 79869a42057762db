"""Answers of the policy itself, with all that an update needs to know of them.

    prompts ── sampler ── answers and their log-probs ── reward ── reference ── groups

A group is one prompt with its answers. Old log-probs come from the sampler; the reference's from
one pass in which every prompt runs once for all its answers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trueup.models.logprobs import completion_logprobs
from trueup.models.shared_prompt import Branches
from trueup.records import Completion, Messages, Sampling, content_hash
from trueup.train.data import Row, split
from trueup.train.losses import kl_estimate
from trueup.train.online.config import OnlineConfig
from trueup.train.online.gap import engine_gap, need_near
from trueup.train.online.rewards import Reward
from trueup.train.reference import NoReference, Reference

__all__ = ["Draw", "Group", "Prompt", "Rollouts", "importance_weights"]


class Draw(Protocol):
    """An engine that answers as the policy does now."""

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, num_samples: int
    ) -> list[list[Completion]]: ...


class Prompt(NamedTuple):
    """A prompt to answer."""

    messages: Messages
    token_ids: tuple[int, ...]


@dataclass
class Group:
    """Answers to one prompt. Lists have one entry an answer, tensors one a token, on the CPU."""

    row: Row
    scores: list[float]
    """As the reward gave them."""
    step_scores: list[list[tuple[int, float]]] | None
    """Of each answer's steps: the token that ends one, and what the answer is worth up to there."""
    old_logprobs: list[Tensor]
    """Under the policy that drew them."""
    engine_logprobs: list[Tensor]
    """The same as the engine gave them."""
    ref_logprobs: list[Tensor]
    weights: list[Tensor]
    """Importance weights; 1 where engine and trainer agree."""
    values: list[Tensor] = field(default_factory=list)
    advantages: list[Tensor] = field(default_factory=list)
    returns: list[Tensor] = field(default_factory=list)

    @property
    def completions(self) -> tuple[Completion, ...]:
        return self.row.completions

    def kl(self) -> list[float]:
        """Of each answer, k3 against the reference, in nats."""
        pairs = zip(self.old_logprobs, self.ref_logprobs, strict=True)
        return [float(kl_estimate(old, ref, "k3").sum()) for old, ref in pairs]

    def engine_kl(self) -> list[float]:
        """Of each answer, k3 of what drew it against the policy, in nats a token."""
        pairs = zip(self.engine_logprobs, self.old_logprobs, strict=True)
        return [float(kl_estimate(engine, old, "k3").mean()) for engine, old in pairs]


class Rollouts:
    """Draws groups and has them scored."""

    def __init__(
        self,
        draw: Draw,
        acting: Callable[[], AbstractContextManager[Any]],
        reference: Reference,
        reward: Reward,
        config: OnlineConfig,
        *,
        tokens_per_batch: int,
    ) -> None:
        """`acting` makes the network the policy, for engines whose log-probs are not trusted."""
        self.draw, self.acting, self.reference = draw, acting, reference
        self.reward, self.config, self.tokens_per_batch = reward, config, tokens_per_batch
        self.importance = config.importance or "none"

    def groups(
        self, prompts: Sequence[Prompt], *, seed: int, name: str
    ) -> tuple[list[Group], Counter[str]]:
        """Answer the prompts, `num_samples` times each.

        Args:
            seed: of the draws; the same seed, policy and prompts give the same answers.
            name: makes the rows' ids unique within a run.

        Returns:
            The groups, and the prompts left out counted by reason.

        Raises:
            TrainingError: more than `max_skip_rate` of the prompts stay without a score.
        """
        rows = self.rows(prompts, seed=seed, name=name)
        messages = [p.messages for p in prompts]
        scored, skipped = self.reward.score(messages, [row.completions for row in rows])
        kept = [at for at, one in enumerate(scored) if one is not None]
        refs = self._reference([rows[at] for at in kept])
        trainer = self._trainer([rows[at] for at in kept])
        if trainer and self.config.engine.kind != "local":
            need_near(engine_gap([rows[at] for at in kept], trainer))
        groups = []
        for at in kept:
            row, scores = rows[at], scored[at]
            assert scores is not None
            engine = [torch.tensor(c.logprobs) for c in row.completions]
            old = trainer[row.id] if trainer else engine
            groups.append(
                Group(
                    row=row,
                    scores=list(scores.scores),
                    step_scores=scores.steps,
                    old_logprobs=old,
                    engine_logprobs=engine,
                    ref_logprobs=refs[row.id],
                    weights=[
                        importance_weights(a, b, self.importance, self.config.importance_cap)
                        for a, b in zip(old, engine, strict=True)
                    ],
                )
            )
        return groups, skipped

    def rows(self, prompts: Sequence[Prompt], *, seed: int, name: str) -> list[Row]:
        """The answers alone, which nobody has scored."""
        sampling = Sampling(max_tokens=self.config.max_tokens, seed=seed)
        drawn = self.draw([p.messages for p in prompts], sampling, self.config.num_samples)
        return [
            _row(f"{name}/{at}", prompt, answers)
            for at, (prompt, answers) in enumerate(zip(prompts, drawn, strict=True))
        ]

    def _reference(self, rows: Sequence[Row]) -> dict[str, list[Tensor]]:
        if isinstance(self.reference, NoReference):
            return {row.id: [torch.tensor(c.logprobs) for c in row.completions] for row in rows}
        return self.reference.compute(rows)

    def _trainer(self, rows: Sequence[Row]) -> dict[str, list[Tensor]]:
        """The policy's own log-probs, where the engine's are corrected for."""
        return {} if self.importance == "none" else self.policy_logprobs(rows)

    @torch.no_grad()
    def policy_logprobs(self, rows: Sequence[Row]) -> dict[str, list[Tensor]]:
        """Of the rows' answers as the policy's own network has them, by row id."""
        found: dict[str, list[Tensor]] = {}
        with self.acting() as model:
            for group in split(rows, tokens_per_batch=self.tokens_per_batch):
                logprobs = completion_logprobs(model, [row.branches for row in group])
                for row, of_row in zip(group, logprobs, strict=True):
                    found[row.id] = [one.float().cpu() for one in of_row]
        return found


def importance_weights(trainer: Tensor, engine: Tensor, level: str, cap: float) -> Tensor:
    """How much more often the trainer's policy would have drawn this than the engine did.

        token      w_t = min(p_trainer(t) / p_engine(t), cap)
        sequence   w   = min(product over tokens, cap), the same for every token

    Truncated importance sampling: Ionides 2008; for rollout engines Yao et al. 2025. Truncation
    bounds the variance and lets a little bias remain: a token whose weight would be above the cap
    counts too little.

    Args:
        trainer: log-probs of the drawn tokens under the weights that train, shape (T,).
        engine: the same as the engine gave them.
        level: `none`, `token` or `sequence`.

    Returns:
        Shape (T,); ones for `none`.

    Worked example: log-probs -1, -2 against the engine's -1.5, -2 at cap 2: by token 1.648721
    and 1; by sequence 1.648721 twice; with -0.2 in place of -1 both are cut to 2 where the ratio
    was 3.669297.
    """
    if level == "none":
        return torch.ones_like(engine)
    log_ratio = trainer - engine
    if level == "sequence":
        log_ratio = log_ratio.sum().expand_as(log_ratio)
    return log_ratio.exp().clamp(max=cap)


def _row(row_id: str, prompt: Prompt, answers: Sequence[Completion]) -> Row:
    return Row(
        id=row_id,
        branches=Branches(prompt.token_ids, [c.token_ids or () for c in answers]),
        completions=tuple(answers),
        desirable=(True,) * len(answers),
        margin=0.0,
        prompt_hash=content_hash([m.model_dump() for m in prompt.messages]),
    )
