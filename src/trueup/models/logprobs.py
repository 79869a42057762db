"""Log-probs of completions: the one kernel behind training, reference, guards and scoring."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueup.models.head import token_scores
from trueup.models.shared_prompt import Branches, Path, branch_hidden

__all__ = [
    "Branches",
    "Rated",
    "completion_collisions",
    "completion_logprobs",
    "completion_values",
    "end_hidden",
    "rate_completions",
]

ValueHead = Callable[[Tensor], Tensor]
"""From states (N, hidden size) to values (N,)."""


def completion_logprobs(
    model: Any, rows: Sequence[Branches], *, path: Path | None = None
) -> list[list[Tensor]]:
    """log p(token | prompt, tokens before it) of every completion token, in nats.

    Equal to running each prompt + completion as a row of its own, to 1e-5 in fp32, gradients
    included (tested on four architectures); the prompt is computed once for all its branches.

    Args:
        path: `tree` or `cache`, see `shared_prompt`; by default the cheaper one.

    Returns:
        For each row and each of its branches a tensor of shape (tokens of that branch,).
    """
    hidden_ND, targets_N = _to_score(model, rows, path)
    return _apart(token_scores(model, hidden_ND, targets_N).logprobs, rows)


def completion_collisions(
    model: Any, rows: Sequence[Branches], *, path: Path | None = None
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """As `completion_logprobs`, and with it log sum_v p(v)^2 at every token, detached: the
    log-prob a sample of the model's own would have on average. WPO weighs pairs with it."""
    hidden_ND, targets_N = _to_score(model, rows, path)
    scores = token_scores(model, hidden_ND, targets_N, with_collisions=True)
    assert scores.collisions is not None
    return _apart(scores.logprobs, rows), _apart(scores.collisions, rows)


class Rated(NamedTuple):
    """For each row and each of its branches tensors of shape (tokens of that branch,)."""

    logprobs: list[list[Tensor]]
    values: list[list[Tensor]] | None
    entropies: list[list[Tensor]] | None


def rate_completions(
    model: Any,
    rows: Sequence[Branches],
    *,
    value_head: ValueHead | None = None,
    with_entropies: bool = False,
) -> Rated:
    """As `completion_logprobs`; from the same pass what a value head says of the state before each
    token, and the entropy of the distribution that the token was drawn from."""
    hidden_ND, targets_N = _to_score(model, rows, None)
    scores = token_scores(model, hidden_ND, targets_N, with_entropies=with_entropies)
    return Rated(
        _apart(scores.logprobs, rows),
        _apart(value_head(hidden_ND), rows) if value_head else None,
        _apart(scores.entropies, rows) if scores.entropies is not None else None,
    )


def completion_values(
    model: Any, rows: Sequence[Branches], value_head: ValueHead
) -> list[list[Tensor]]:
    """What a value head says of the state before each completion token, without the output head."""
    return _apart(value_head(branch_hidden(model, rows)), rows)


def end_hidden(model: Any, rows: Sequence[Branches], *, path: Path | None = None) -> Tensor:
    """The last layer's state on each branch's last token, where a reward head stands.

    Returns:
        Shape (branches of all rows, hidden size).
    """
    hidden_ND = branch_hidden(model, rows, with_last=True, path=path)
    sizes = torch.tensor([len(c) + 1 for row in rows for c in row.completions])
    return hidden_ND[(sizes.cumsum(0) - 1).to(hidden_ND.device)]


def _to_score(model: Any, rows: Sequence[Branches], path: Path | None) -> tuple[Tensor, Tensor]:
    hidden_ND = branch_hidden(model, rows, path=path)
    targets = [token for row in rows for completion in row.completions for token in completion]
    return hidden_ND, torch.tensor(targets, dtype=torch.long, device=hidden_ND.device)


def _apart(flat_N: Tensor, rows: Sequence[Branches]) -> list[list[Tensor]]:
    pieces = iter(flat_N.split([len(c) for row in rows for c in row.completions]))
    return [[next(pieces) for _ in row.completions] for row in rows]
