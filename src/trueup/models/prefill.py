"""Run the prompts of a batch, and what several of them begin with only once.

Prompts of one service share much: the system message, an article several users ask about. Prompts
that begin alike form a family; its common beginning runs as one row, its keys and values are
copied to the members, and the members' own ends run behind them. Every row is left-padded within
each part; the mask hides the padding, positions count real tokens, and the result is the same as
running each prompt alone, to rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trueup.models.kv_cache import GrowingCache
from trueup.models.shared_prompt import looks_back

__all__ = ["prefill"]

MIN_SHARED = 24
"""Tokens a common beginning needs: below that a second pass costs more than it saves."""


def prefill(
    model: Any, prompts: Sequence[Sequence[int]], copies: Sequence[int], *, num_new: int
) -> tuple[GrowingCache, Tensor, Tensor]:
    """Keys and values of every prompt, with room for `num_new` tokens behind each.

    Args:
        copies: how many rows each prompt gets; they stand together, in the prompts' order.

    Returns:
        The cache, the logits that predict each row's first new token, shape (B, V), and the mask
        of real tokens so far, shape (B, T).
    """
    families = _families(prompts)
    if looks_back(model.config) < _room(prompts, families) + num_new:
        # a window would count the padding between a beginning and its ends
        families = [([], [i]) for i in range(len(prompts))]
    ends = [prompts[i][len(start) :] for start, members in families for i in members]
    order = [i for _, members in families for i in members]
    starts = [start for start, _ in families]
    shared = max(len(start) for start in starts)
    cache = GrowingCache(_room(prompts, families) + num_new)
    mask = torch.zeros(len(families), 0, dtype=torch.long, device=model.device)
    if shared:
        _, mask = _run(model, cache, starts, mask)
    sizes = torch.tensor([len(members) for _, members in families])
    mask = _repeat(cache if shared else None, mask, sizes)
    logits_BV, mask = _run(model, cache, ends, mask)
    # back to the prompts' own order, each as often as it has samples
    place = {prompt: at for at, prompt in enumerate(order)}
    rows = torch.tensor([place[i] for i, count in enumerate(copies) for _ in range(count)])
    rows = rows.to(model.device)
    cache.keep_rows(rows)
    return cache, logits_BV[rows], mask[rows]


def _room(prompts: Sequence[Sequence[int]], families: list[tuple[list[int], list[int]]]) -> int:
    """Places in the cache for the prompts: the longest beginning, and the longest end behind it."""
    ends = (len(prompts[i]) - len(start) for start, members in families for i in members)
    return max(len(start) for start, _ in families) + max(ends)


def _families(prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], list[int]]]:
    """Common beginnings, and the prompts that have them. A prompt keeps at least its last token:
    its logits are what the sampler needs."""
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    families: list[tuple[list[int], list[int]]] = []
    for i in order:
        if families:
            start, members = families[-1]
            common = _common(
                start if len(members) > 1 else prompts[members[0]][:-1], prompts[i][:-1]
            )
            # a member more is welcome while the family loses no more than a third of its beginning
            if len(common) >= MIN_SHARED and (
                len(members) == 1 or 3 * len(common) >= 2 * len(start)
            ):
                families[-1] = (common, [*members, i])
                continue
        families.append(([], [i]))
    return families


def _common(one: Sequence[int], other: Sequence[int]) -> list[int]:
    size = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        size += 1
    return list(one[:size])


def _run(
    model: Any, cache: GrowingCache, parts: Sequence[Sequence[int]], mask_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Feed one part of every row; returns the last position's logits and the longer mask.

    A row without this part is all padding: it attends to nothing real and nothing reads it.
    """
    width = max(len(part) for part in parts)
    ids_BT = torch.zeros(len(parts), width, dtype=torch.long)
    real_BT = torch.zeros(len(parts), width, dtype=torch.long)
    for row, part in enumerate(parts):
        # left padding: the last token of every part stands in the last column
        ids_BT[row, width - len(part) :] = torch.as_tensor(list(part), dtype=torch.long)
        real_BT[row, width - len(part) :] = 1
    ids_BT, real_BT = ids_BT.to(model.device), real_BT.to(model.device)
    before = mask_BT.sum(1, keepdim=True)
    positions_BT = (before + real_BT.cumsum(1) - 1).clamp(min=0)
    mask_BT = torch.cat([mask_BT, real_BT], dim=1)
    logits_BV = model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=positions_BT,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits_BV, mask_BT


def _repeat(cache: GrowingCache | None, mask_BT: Tensor, sizes: Tensor) -> Tensor:
    """A copy of each family's row for each of its members."""
    rows = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(mask_BT.device)
    if cache is not None and len(rows) != len(sizes):
        cache.keep_rows(rows)
    return mask_BT[rows]
