"""Log-probs of completions, each prompt run once.

A row is one prompt followed by its branches (two for a pair, N for a group): every branch sees
the prompt and itself, and its positions go on from the prompt's. The output head runs on
completion positions only, in chunks that are recomputed in the backward pass, so logits of a
whole batch never exist.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["Branches", "completion_logprobs"]

HEAD_CHUNK = 256  # completion tokens whose logits exist at once: 50 MB with a 50k vocabulary


class Branches(NamedTuple):
    """One prompt and the completions that follow it, as token ids."""

    prompt_ids: Sequence[int]
    completions: Sequence[Sequence[int]]


def completion_logprobs(model: Any, rows: Sequence[Branches]) -> list[list[Tensor]]:
    """log p(token | prompt, tokens before it) of every completion token, in nats.

    Equal to running each prompt + completion as a row of its own, to 1e-5 in fp32, gradients
    included (tested); the prompt is computed once for all its branches.

    Returns:
        For each row and each of its branches a tensor of shape (tokens of that branch,).
    """
    ids_BT, positions_BT, mask_B1TT, targets, sources = _lay_out(rows)
    device = model.device
    hidden_BTD = _decoder(model)(
        input_ids=ids_BT.to(device),
        position_ids=positions_BT.to(device),
        attention_mask=mask_B1TT.to(device),
        use_cache=False,
    ).last_hidden_state
    flat_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[sources.to(device)]
    logprobs = _head_logprobs(model.get_output_embeddings(), flat_ND, targets.to(device))
    pieces = iter(logprobs.split([len(c) for row in rows for c in row.completions]))
    return [[next(pieces) for _ in row.completions] for row in rows]


def _decoder(model: Any) -> Any:
    """The network without its head; peft's wrapper is looked through, its layers stay."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_decoder()


def _lay_out(rows: Sequence[Branches]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Token ids, positions, who may see whom, and where each completion token is predicted.

    Returns:
        ids (B, T), positions (B, T), mask (B, 1, T, T) with True for "may see", targets (N,)
        and sources (N,): the flat index into B*T whose hidden state predicts the target.
    """
    lengths = [len(r.prompt_ids) + sum(map(len, r.completions)) for r in rows]
    width = max(lengths)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    # a padded query must see something or softmax is NaN: it sees itself
    mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    targets: list[int] = []
    sources: list[int] = []
    for b, row in enumerate(rows):
        prompt = len(row.prompt_ids)
        ids[b, :prompt] = torch.as_tensor(row.prompt_ids)
        positions[b, :prompt] = torch.arange(prompt)
        mask[b, :prompt, :prompt] = torch.ones(prompt, prompt, dtype=torch.bool).tril()
        start = prompt
        for completion in row.completions:
            size, end = len(completion), start + len(completion)
            ids[b, start:end] = torch.as_tensor(completion)
            positions[b, start:end] = torch.arange(prompt, prompt + size)
            mask[b, start:end, :prompt] = True
            mask[b, start:end, start:end] = torch.ones(size, size, dtype=torch.bool).tril()
            targets.extend(completion)
            # the prompt's last token predicts every branch's first
            before = (prompt - 1, *range(start, end - 1))[:size]
            sources.extend(b * width + at for at in before)
            start = end
    return ids, positions, mask[:, None], torch.tensor(targets), torch.tensor(sources)


def _head_logprobs(head: torch.nn.Module, hidden_ND: Tensor, targets: Tensor) -> Tensor:
    """Log-prob of each target under the head, shape (N,), in chunks of HEAD_CHUNK."""

    def chunk(hidden: Tensor, target: Tensor) -> Tensor:
        return -F.cross_entropy(head(hidden).float(), target, reduction="none")

    parts = []
    for at in range(0, len(targets), HEAD_CHUNK):
        piece = hidden_ND[at : at + HEAD_CHUNK], targets[at : at + HEAD_CHUNK]
        needs_grad = torch.is_grad_enabled() and hidden_ND.requires_grad
        parts.append(
            checkpoint(chunk, *piece, use_reentrant=False) if needs_grad else chunk(*piece)
        )
    return torch.cat(parts)
