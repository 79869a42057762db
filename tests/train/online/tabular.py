"""Policies that are tables, so that every answer can be counted instead of drawn.

An answer is a sequence of tokens; before each of them the policy has a row of logits. What is
expected of a step is a sum over all answers, or all groups of answers, each with its probability:
there is no noise, and where gradient descent ends is what a method wants.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trueup.models.shared_prompt import Branches
from trueup.records import Completion
from trueup.train.data import Row
from trueup.train.online.config import OnlineConfig
from trueup.train.online.objectives import Answer, answer_loss
from trueup.train.online.rollouts import Group
from trueup.train.online.shaping import Shaping


class Table:
    """A policy over sequences of `length` tokens out of `num_tokens`."""

    def __init__(self, num_tokens: int, length: int, *, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        places = [
            prefix
            for size in range(length)
            for prefix in itertools.product(range(num_tokens), repeat=size)
        ]
        self.row_of = {prefix: at for at, prefix in enumerate(places)}
        self.answers: list[tuple[int, ...]] = list(
            itertools.product(range(num_tokens), repeat=length)
        )
        self.ref_logits = 0.5 * torch.randn(
            len(places), num_tokens, generator=random, dtype=torch.float64
        )
        self.logits = self.ref_logits.clone().requires_grad_()
        self.rewards = torch.randn(len(self.answers), generator=random, dtype=torch.float64)

    def by_token(self, logits: Tensor) -> list[Tensor]:
        """Log-probs of each answer's tokens."""
        table = torch.log_softmax(logits, 1)
        return [
            torch.stack([table[self.row_of[one[:at]], token] for at, token in enumerate(one)])
            for one in self.answers
        ]

    def logprobs(self, logits: Tensor) -> Tensor:
        """Of whole answers."""
        return torch.stack([one.sum() for one in self.by_token(logits)])

    @property
    def probs(self) -> Tensor:
        return self.logprobs(self.logits.detach()).exp()

    @property
    def ref(self) -> Tensor:
        return self.logprobs(self.ref_logits)

    def optimum(self, beta: float) -> Tensor:
        """ref * exp(reward / beta) / Z."""
        return torch.softmax(self.ref + self.rewards / beta, 0)

    def group(self, picked: Sequence[int]) -> Group:
        """These answers as rollouts bring them, drawn by the policy as it is."""
        return self.groups([picked])[0]

    def groups(self, all_picked: Sequence[Sequence[int]]) -> list[Group]:
        old, ref = self.by_token(self.logits.detach()), self.by_token(self.ref_logits)
        completions = [Completion(text="", token_ids=a, finish_reason="stop") for a in self.answers]
        return [
            as_group(
                [completions[i] for i in picked],
                [float(self.rewards[i]) for i in picked],
                [old[i] for i in picked],
                [ref[i] for i in picked],
            )
            for picked in all_picked
        ]


def as_group(
    answers: Sequence[Completion],
    scores: Sequence[float],
    old: Sequence[Tensor],
    ref: Sequence[Tensor],
) -> Group:
    """Answers with all that is known of them; the engine is the policy."""
    ids = [list(one.token_ids or ()) for one in answers]
    return Group(
        row=Row("row", Branches([], ids), tuple(answers), (), 0.0, ""),
        scores=list(scores),
        step_scores=None,
        old_logprobs=list(old),
        engine_logprobs=list(old),
        ref_logprobs=list(ref),
        weights=[torch.ones_like(one) for one in old],
    )


def groups_of(table: Table, size: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every set of `size` answers that may be drawn, and in how many orders."""
    for picked in itertools.combinations_with_replacement(range(len(table.answers)), size):
        yield picked, len(set(itertools.permutations(picked)))


Fill = Callable[[Group, tuple[int, ...]], None]
"""Gives a group what else it needs; which answers it holds comes second."""


def expected_loss(
    method: str,
    table: Table,
    config: OnlineConfig,
    size: int,
    *,
    fill: Fill = lambda group, picked: None,
) -> Tensor:
    """What a step minimises, summed over all groups with the policy's probabilities, detached."""
    shaping, probs = Shaping(method, config), table.probs
    now = table.by_token(table.logits)
    total = torch.zeros((), dtype=torch.float64)
    drawn = list(groups_of(table, size))
    groups = table.groups([picked for picked, _ in drawn])
    for (picked, orders), group in zip(drawn, groups, strict=True):
        fill(group, picked)
        shaping.fill([group])
        chance = orders * float(probs[list(picked)].prod())
        for at, i in enumerate(picked):
            answer = Answer(
                now[i],
                group.old_logprobs[at],
                group.ref_logprobs[at],
                group.advantages[at],
                group.weights[at],
            )
            loss = answer_loss(method, answer, config, config.kl_coef).loss
            total = total + chance * loss / size
    return total


def descend(
    parameters: Sequence[Tensor], loss: Callable[[], Tensor], *, steps: int, rate: float
) -> None:
    """Gradient descent in place, with some momentum."""
    speeds = [torch.zeros_like(one) for one in parameters]
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(), parameters)
        with torch.no_grad():
            for one, speed, gradient in zip(parameters, speeds, gradients, strict=True):
                one -= speed.mul_(0.6).add_(gradient, alpha=rate)


def apart(one: Tensor, other: Tensor) -> float:
    """Total variation."""
    return float((one - other).abs().sum() / 2)
