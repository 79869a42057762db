"""Attention over a prompt with branches, without the pairs of tokens that never meet.

A mask over the whole row would compute every branch against every other one and throw it away.
Here the prompt looks at itself, and each branch at the prompt and itself: for a pair with a prompt
three times as long as its answers that is less than half of the square.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Tree", "tree_attention"]


class Tree(NamedTuple):
    """Where the parts of one row stand."""

    prompt: int
    """Tokens of the prompt, from the row's beginning."""
    branches: tuple[tuple[int, int], ...]
    """First place of each branch, and the one after its last."""


def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, trees: list[Tree], scaling: float | None
) -> Tensor:
    """What each token takes from the prompt and its own branch; exact, gradients included.

    Args:
        query: shape (B, heads, T, head size); key and value may have fewer heads, each shared by
            a group of the query's.
        trees: one a row.

    Returns:
        Shape (B, T, heads, head size); zero where a row is padded.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    rows = [
        _row(query[b : b + 1], key[b : b + 1], value[b : b + 1], tree, scaling)
        for b, tree in enumerate(trees)
    ]
    return torch.cat(rows).transpose(1, 2).contiguous()


def _row(query: Tensor, key: Tensor, value: Tensor, tree: Tree, scaling: float | None) -> Tensor:
    size = tree.prompt
    shared = key[:, :, :size], value[:, :, :size]
    parts = [
        F.scaled_dot_product_attention(query[:, :, :size], *shared, is_causal=True, scale=scaling)
    ]
    end = size
    for start, end in tree.branches:
        if start == end:
            continue
        own = key[:, :, start:end], value[:, :, start:end]
        both = [torch.cat(pair, dim=2) for pair in zip(shared, own, strict=True)]
        length = end - start
        sees = torch.ones(length, size + length, dtype=torch.bool, device=query.device).tril(size)
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end], *both, attn_mask=sees, scale=scaling
            )
        )
    parts.append(torch.zeros_like(query[:, :, end:]))
    return torch.cat(parts, dim=2)
