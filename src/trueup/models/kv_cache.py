"""Keys and values of a batch in one growing buffer, and an attention that reads them in place.

transformers' dynamic cache copies everything it holds at each new token, and its SDPA path
repeats keys and values for every query head of a group. With many rows those copies cost more
than the matrix products: here a token is written into a preallocated buffer, and grouped queries
meet their shared keys without a copy.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trueup.models.tree_attention import tree_attention

__all__ = ["ATTENTION", "GrowingCache"]

ATTENTION = "trueup"
"""Name of the attention implementation, for `from_pretrained(attn_implementation=…)`."""


class _GrowingLayer(DynamicLayer):
    """One layer's keys and values; `keys` and `values` are views of the filled part."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values, shape (B, heads, T, head size); returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.filled = 0
            batch, heads, _, _ = key_states.shape
            self.key_room = key_states.new_empty(batch, heads, self.room, key_states.shape[-1])
            self.value_room = value_states.new_empty(
                batch, heads, self.room, value_states.shape[-1]
            )
        end = self.filled + key_states.shape[2]
        self.key_room[:, :, self.filled : end] = key_states
        self.value_room[:, :, self.filled : end] = value_states
        self.filled = end
        self._show()
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _show(self) -> None:
        self.keys = self.key_room[:, :, : self.filled]
        self.values = self.value_room[:, :, : self.filled]

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these rows; only what is filled is copied."""
        self.key_room, self.value_room = (
            self._picked(self.key_room, rows),
            self._picked(self.value_room, rows),
        )
        self._show()

    def arrange(self, rows: Tensor, columns_BT: Tensor, room: int) -> None:
        """Make a new buffer of these rows, each with these of its places."""
        width = columns_BT.shape[1]
        for name in ("key_room", "value_room"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(len(rows), old.shape[1], room, old.shape[3])
            new[:, :, :width] = old[rows[:, None], :, columns_BT].transpose(1, 2)
            setattr(self, name, new)
        self.room, self.filled = room, width
        self._show()

    def write_rows(self, rows: Tensor, other: "_GrowingLayer") -> None:
        """Put all of another layer's rows in place of these, up to the last filled column."""
        start = self.filled - other.filled
        self.key_room[rows, :, start : self.filled] = other.key_room[:, :, : other.filled]
        self.value_room[rows, :, start : self.filled] = other.value_room[:, :, : other.filled]

    def _picked(self, room: Tensor, rows: Tensor) -> Tensor:
        picked = room.new_empty(len(rows), *room.shape[1:])
        picked[:, :, : self.filled] = room[rows, :, : self.filled]
        return picked


class GrowingCache(Cache):
    """A key-value cache with room for `room` tokens a row, whose rows come and go."""

    def __init__(self, room: int) -> None:
        make_layer: Any = lambda *_, **__: _GrowingLayer(room)  # noqa: E731
        super().__init__(layer_class_to_replicate=make_layer)

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row named twice is copied. Shape of `rows`: (B',)."""
        for layer in self.layers:
            assert isinstance(layer, _GrowingLayer)
            layer.keep_rows(rows)

    @property
    def width(self) -> int:
        """Columns that are filled."""
        return self.get_seq_length()

    @property
    def is_full(self) -> bool:
        """True where there is no room for another token."""
        return all(isinstance(one, _GrowingLayer) and one.filled == one.room for one in self.layers)

    def arrange(self, rows: Tensor, columns_BT: Tensor, room: int) -> None:
        """Keep these rows, and of row `rows[i]` the places `columns_BT[i]`, in this order.

        Copies all that stays into a buffer with `room` places a row.
        """
        for layer in self.layers:
            assert isinstance(layer, _GrowingLayer)
            layer.arrange(rows, columns_BT, room)

    def write_rows(self, rows: Tensor, other: "GrowingCache") -> None:
        """Overwrite these rows with those of a cache that is no wider, right-aligned; what stood
        to the left of them stays and is for the mask to hide. Shape of `rows`: (B',)."""
        for layer, others in zip(self.layers, other.layers, strict=True):
            assert isinstance(layer, _GrowingLayer) and isinstance(others, _GrowingLayer)
            layer.write_rows(rows, others)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One new token a row: grouped products without repeated keys. A prompt with branches: only
    the parts that meet. Anything else: SDPA."""
    trees = getattr(attention_mask, "trees", None)
    if trees and len(trees) == len(query) and not dropout:
        return tree_attention(query, key, value, trees, scaling), None
    batch, heads, num_new, size = query.shape
    groups = key.shape[1]
    if num_new > 1 or torch.is_grad_enabled():
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = query.reshape(batch, groups, heads // groups, size)
    scores = grouped @ key.transpose(2, 3) * (scaling if scaling is not None else size**-0.5)
    if attention_mask is not None:
        mask = attention_mask[:, :, :, : key.shape[2]]  # (B, 1, 1, T), over all heads alike
        blocked = ~mask if mask.dtype == torch.bool else mask < 0
        scores = scores.masked_fill(blocked, torch.finfo(scores.dtype).min)
    mixed = torch.softmax(scores.float(), dim=-1).to(value.dtype) @ value
    return mixed.reshape(batch, heads, 1, size).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
