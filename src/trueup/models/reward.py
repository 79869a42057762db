"""Reward models on the shared base: a LoRA adapter and one linear layer that reads an answer's end.

    prompt ─┬─ answer ─ last token's state ─ head ─ score
            └─ answer ─ last token's state ─ head ─ score       one pass a prompt

A score means something beside other answers to the same prompt: its difference is the log-odds of
being preferred. Each model's scale on held-out answers is kept with it, so that scores leave with
mean 0 and deviation 1, and the members of an ensemble can be averaged.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trueup.errors import DataError, ModelError
from trueup.models.backbone import Backbone
from trueup.models.logprobs import end_hidden
from trueup.models.reward_files import (
    CARD_FILE,
    HEAD_FILE,
    HEAD_KEY,
    Scale,
    check_member,
    check_weights,
    ensemble_weights,
    joint_weights,
    member_weights,
    read_card,
    read_head,
    read_scale,
)
from trueup.models.shared_prompt import Branches, branch_hidden

__all__ = [
    "HEAD_SPEED",
    "Combination",
    "RewardEnsemble",
    "RewardHead",
    "RewardModel",
    "Scale",
    "branch_scores",
    "combine",
    "ensemble_weights",
    "step_end_scores",
]

Combination = Literal["mean", "min", "uwo"]
Ends = Sequence[Sequence[Sequence[int]]]
"""For each row and each of its completions the indices of the tokens that end a step."""

HEAD_SPEED = 16.0
"""How much faster the head learns than the adapter: it starts near zero, and until it has grown
nothing the adapter learns can be seen in a score. A power of two, so that it rounds nothing."""


class RewardHead(nn.Module):
    """score = w · state, in fp32. No bias: preferences say nothing of a constant.

    What is learned is w / `HEAD_SPEED`, so that one learning rate suits head and adapter.
    """

    def __init__(self, hidden_size: int, *, seed: int = 0) -> None:
        """Start with weights of deviation 1 / (hidden size + 1), so that the first scores are
        small and the first loss is close to log 2."""
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        start = torch.randn(1, hidden_size, generator=random) / (hidden_size + 1)
        self.learned = nn.Parameter(start / HEAD_SPEED)

    @classmethod
    def of(cls, weight: Tensor) -> "RewardHead":
        """One with these weights, of shape (1, hidden size), that does not learn."""
        head = cls(weight.shape[1])
        head.learned.data.copy_(weight / HEAD_SPEED)
        return head.requires_grad_(False)

    @property
    def weight(self) -> Tensor:
        """w, of shape (1, hidden size)."""
        return HEAD_SPEED * self.learned

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Scores of shape (N,)."""
        return nn.functional.linear(hidden_ND.float(), self.weight).squeeze(-1)


def branch_scores(model: Any, head: RewardHead, rows: Sequence[Branches]) -> Tensor:
    """Raw scores of whole answers, with their gradient.

    Returns:
        Shape (branches of all rows,), row after row.
    """
    return head(end_hidden(model, rows))


def step_end_scores(model: Any, head: RewardHead, rows: Sequence[Branches], ends: Ends) -> Tensor:
    """Raw scores on the tokens that end steps, with their gradient: what the answer is worth up to
    there, blind to what follows.

    Returns:
        Shape (ends of all branches,), branch after branch.

    Raises:
        DataError: an end that is no token of its completion.
    """
    hidden_ND = branch_hidden(model, rows, with_last=True)
    found, start = [], 0
    for row, row_ends in zip(rows, ends, strict=True):
        for completion, places in zip(row.completions, row_ends, strict=True):
            _check_ends(places, len(completion))
            found += [start + 1 + place for place in places]  # the prompt's last state stands first
            start += len(completion) + 1
    return head(hidden_ND[torch.tensor(found, dtype=torch.long, device=hidden_ND.device)])


class RewardModel:
    """One reward model, switched on by its role."""

    def __init__(
        self, backbone: Backbone, role: str, head: RewardHead, *, scale: Scale | None = None
    ) -> None:
        self.backbone, self.role = backbone, role
        self.head = head.to(backbone.device)
        self.scale = scale or Scale()

    @classmethod
    def new(
        cls,
        backbone: Backbone,
        role: str,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        seed: int,
    ) -> "RewardModel":
        """One that has learned nothing: the base's states under a small random head."""
        backbone.new_adapter(role, rank=rank, alpha=alpha, targets=targets, seed=seed)
        return cls(backbone, role, RewardHead(_hidden_size(backbone), seed=seed))

    @classmethod
    def attach(cls, backbone: Backbone, role: str, folder: Path) -> "RewardModel":
        """Load a member's folder as a role.

        Raises:
            ModelError: a file is missing, pickled, damaged or altered, or the model belongs to
                another base or chat template.
        """
        card = read_card(folder)
        scale = read_scale(folder, card)
        weight = read_head(folder, _hidden_size(backbone))
        check_member(folder, card, backbone, scale)
        backbone.attach(role, folder)
        return cls(backbone, role, RewardHead.of(weight), scale=scale)

    def acting(self) -> AbstractContextManager[Any]:
        """The network with this model's adapter."""
        return self.backbone.acting_as(self.role)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns: the adapter's matrices and the head."""
        named = self.backbone.model.named_parameters()
        adapter = {name: p for name, p in named if f".{self.role}." in name}
        return {**adapter, "score.learned": self.head.learned}

    def scores(
        self,
        rows: Sequence[Branches],
        *,
        tokens_per_batch: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[float]]:
        """What each answer is worth, in standard deviations of held-out answers.

        Args:
            tokens_per_batch: padded tokens of one forward pass; by default what the device likes.
            on_progress: called with the number of rows just done.

        Returns:
            For each row, in the order given, one score a completion.

        Raises:
            ModelError: an answer that does not fit the model's context.
        """

        def raw(model: Any, batch: list[int]) -> Tensor:
            return branch_scores(model, self.head, [rows[i] for i in batch])

        sizes = [len(row.completions) for row in rows]
        return self._in_batches(rows, sizes, raw, tokens_per_batch, on_progress)

    def step_scores(
        self,
        rows: Sequence[Branches],
        ends: Ends,
        *,
        tokens_per_batch: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[list[float]]]:
        """What each answer is worth at the end of each of its steps, on the scale of `scores`.

        Args:
            ends: for each row and completion the indices of tokens that end a step, from 0; the
                last token's gives what `scores` gives.

        Returns:
            For each row and completion one score an end.

        Raises:
            DataError: an end that is no token of its completion.
            ModelError: an answer that does not fit the model's context.
        """

        def raw(model: Any, batch: list[int]) -> Tensor:
            some = [rows[i] for i in batch]
            return step_end_scores(model, self.head, some, [ends[i] for i in batch])

        sizes = [sum(map(len, of_row)) for of_row in ends]
        flat = self._in_batches(rows, sizes, raw, tokens_per_batch, on_progress)
        return [_apart(scores, of_row) for scores, of_row in zip(flat, ends, strict=True)]

    def save(self, folder: Path, *, card: dict[str, Any]) -> str:
        """Write adapter, head and card; returns the hash of what decides a score."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({HEAD_KEY: self.head.weight.detach().cpu().contiguous()}, folder / HEAD_FILE)
        self.backbone.save_adapter(self.role, folder, card={})
        weights = member_weights(self.backbone.base_weights, folder, self.scale)
        told = json.loads((folder / CARD_FILE).read_text())
        told |= {"kind": "reward", "weights": weights, "scale": self.scale._asdict(), **card}
        (folder / CARD_FILE).write_text(json.dumps(told, indent=2, sort_keys=True))
        return weights

    def detach(self) -> None:
        """Forget the adapter."""
        self.backbone.detach(self.role)

    @torch.no_grad()
    def _in_batches(
        self,
        rows: Sequence[Branches],
        sizes: Sequence[int],
        raw: Callable[[Any, list[int]], Tensor],
        tokens_per_batch: int | None,
        on_progress: Callable[[int], None] | None,
    ) -> list[list[float]]:
        """For each row its `sizes` scores; rows without any are not run."""
        _check_fit(rows, self.backbone.context)
        found: list[list[float]] = [[] for _ in rows]
        budget = tokens_per_batch or (4096 if self.backbone.device.type == "cpu" else 32768)
        with self.acting() as model:
            for batch in _batches(rows, sizes, budget):
                scores = iter(raw(model, batch).tolist())
                for i in batch:
                    found[i] = [self.scale.of(next(scores)) for _ in range(sizes[i])]
                if on_progress:
                    on_progress(len(batch))
        return found


# --- ensembles ----------------------------------------------------------------------------------


class RewardEnsemble:
    """The members of a reward checkpoint, asked together."""

    def __init__(self, members: Sequence[RewardModel], weights: str) -> None:
        self.members, self.weights = list(members), weights

    @classmethod
    def attach(cls, backbone: Backbone, role: str, folder: Path) -> "RewardEnsemble":
        """Load a checkpoint's folder; its members become the roles `role-0`, `role-1`, ...

        Raises:
            ModelError: as `RewardModel.attach`, or a member is not the one the card names.
        """
        named = read_card(folder).get("members")
        if not isinstance(named, list) or not named:
            raise ModelError(
                f"{folder} is not a reward checkpoint",
                got=named,
                expected=f"{CARD_FILE} with the members' weights",
                next="name a checkpoint that was trained with train.method = 'reward'",
            )
        places = [folder / f"member-{number}" for number in range(len(named))]
        for place, expected in zip(places, named, strict=True):
            check_weights(place, read_card(place).get("weights"), expected)
        members = [
            RewardModel.attach(backbone, f"{role}-{number}", place)
            for number, place in enumerate(places)
        ]
        return cls(members, joint_weights(named))

    def scores(
        self,
        rows: Sequence[Branches],
        *,
        how: Combination = "mean",
        lam: float = 1.0,
        tokens_per_batch: int | None = None,
    ) -> list[list[float]]:
        """As `RewardModel.scores`, the members' combined."""
        each = [one.scores(rows, tokens_per_batch=tokens_per_batch) for one in self.members]
        return [combine(of_row, how, lam=lam) for of_row in zip(*each, strict=True)]

    def step_scores(
        self,
        rows: Sequence[Branches],
        ends: Ends,
        *,
        how: Combination = "mean",
        lam: float = 1.0,
        tokens_per_batch: int | None = None,
    ) -> list[list[list[float]]]:
        """As `RewardModel.step_scores`, the members' combined."""
        each = [
            one.step_scores(rows, ends, tokens_per_batch=tokens_per_batch) for one in self.members
        ]
        return [
            [combine(of_branch, how, lam=lam) for of_branch in zip(*of_row, strict=True)]
            for of_row in zip(*each, strict=True)
        ]

    def detach(self) -> None:
        """Forget all members' adapters."""
        for one in self.members:
            one.detach()


def combine(
    scores: Sequence[Sequence[float]], how: Combination = "mean", *, lam: float = 1.0
) -> list[float]:
    """One score an answer from the k members' scores of it.

        mean   m = sum r_i / k
        min    the most sceptical member: worst-case optimisation
        uwo    m - lam * sum (r_i - m)^2 / k: uncertainty-weighted optimisation

    Coste et al. 2023, arXiv:2310.02743. Where members disagree, a policy is more likely to have
    found an error than an improvement; members that share a base also share errors, which no
    combination shows (Eisenstein et al. 2023, arXiv:2312.09244).
    Departs from the authors' code: it divides the variance by k for best-of-n and by k - 1 for
    PPO; here always by k, so that one member alone is itself.

    Args:
        scores: for each member its scores of the same answers, on one scale.
        lam: price of a unit of variance, >= 0.

    Worked example: members 1, 2, 6 give mean 3, min 1, and uwo 3 - 0.5 * 14/3 = 0.6667 at
    lam = 0.5.
    """
    columns = list(zip(*scores, strict=True))
    if how == "min":
        return [min(column) for column in columns]
    means = [math.fsum(column) / len(column) for column in columns]
    if how == "mean":
        return means
    return [
        mean - lam * math.fsum((r - mean) ** 2 for r in column) / len(column)
        for mean, column in zip(means, columns, strict=True)
    ]


# --- batches ------------------------------------------------------------------------------------


def _batches(
    rows: Sequence[Branches], sizes: Sequence[int], tokens_per_batch: int
) -> Iterator[list[int]]:
    """Indices of rows of like length, each batch within the budget or a single row. A prompt
    counts once for each completion: the cache holds it as often."""
    tokens = [sum(len(row.prompt_ids) + len(c) for c in row.completions) for row in rows]
    batch: list[int] = []
    for i in sorted((i for i, size in enumerate(sizes) if size), key=lambda i: -tokens[i]):
        if batch and (len(batch) + 1) * tokens[batch[0]] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _apart(flat: Sequence[float], of_row: Sequence[Sequence[int]]) -> list[list[float]]:
    scores = iter(flat)
    return [[next(scores) for _ in places] for places in of_row]


def _check_ends(places: Sequence[int], num_tokens: int) -> None:
    stray = [place for place in places if not 0 <= place < num_tokens]
    if stray:
        raise DataError(
            "A step ends outside its completion",
            got=stray[0],
            expected=f"indices from 0 to {num_tokens - 1}",
            next="count a completion's tokens from 0",
        )


def _check_fit(rows: Sequence[Branches], context: int) -> None:
    longest = max(
        (len(r.prompt_ids) + max(map(len, r.completions), default=0) for r in rows), default=0
    )
    if longest > context:
        raise ModelError(
            "An answer does not fit the reward model's context",
            got=f"{longest} tokens",
            expected=f"at most {context}, prompt included",
            next="leave the prompt out, or shorten it",
        )


def _hidden_size(backbone: Backbone) -> int:
    return int(backbone.model.config.hidden_size)
