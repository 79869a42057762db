"""The gradient of a matrix that is both embedding and head, added where it lies.

Left to itself autograd makes one gradient as large as the matrix for the rows that were read, a
second for the head's product, and a third for their sum, in every pass: of a small model's step a
tenth. A matrix marked here gets both added to its `grad` at once, and nothing is returned.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trueup.models.thin import is_plain

__all__ = ["add_in_place", "gradient_of", "is_marked"]


def add_in_place(model: Any) -> None:
    """Mark a model's tied matrix, where it is plain: its gradient is right after `backward`;
    `torch.autograd.grad` finds none."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = type(embedding) is nn.Embedding and head.weight is embedding.weight
    if is_tied and is_plain(head) and not embedding.max_norm:
        embedding.__class__ = _Embedding
        head.weight.adds_in_place = True  # type: ignore[attr-defined]


def is_marked(weight: Tensor) -> bool:
    return getattr(weight, "adds_in_place", False)


def gradient_of(weight: Tensor) -> Tensor:
    """The gradient so far, zeros if there is none."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class _Embedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return _Rows.apply(input, self.weight, self.padding_idx)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """Rows of a marked matrix. Like torch's, the row that pads learns nothing."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding_idx = padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        ids, weight = ctx.saved_tensors
        ids, grad = ids.reshape(-1), grads[0].reshape(-1, weight.shape[1]).to(weight.dtype)
        if ctx.padding_idx is not None:
            grad = grad.masked_fill((ids == ctx.padding_idx)[:, None], 0)
        gradient_of(weight).index_add_(0, ids, grad)
        return None, None, None
