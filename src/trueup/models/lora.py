"""A LoRA layer as one function: what peft computes, in fewer passes over memory.

peft adds to the base layer's product a second one, scaled, each in a tensor of its own, and takes
the gradients apart in the same way. Here the low-rank product is added where the base's already
lies, forward and backward. On a CPU, where the small tensors' traffic costs more than their
products, that is most of what an adapter costs.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from trueup.models.thin import is_plain, linear

__all__ = ["fuse"]


def fuse(model: nn.Module) -> None:
    """Let every plain LoRA layer of a peft model compute as one function, in place.

    Layers with dropout, another variant (DoRA), a transposed or a quantized base, or with weights
    in another format than what comes in, compute as peft does.
    """
    for module in model.modules():
        if type(module) is Linear and is_plain(module.base_layer):
            module.__class__ = FusedLinear


class FusedLinear(Linear):  # peft looks for "Linear" in the name
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.base_layer
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return super().forward(x, *args, **kwargs)
        role = self.active_adapters[0]
        if args or kwargs or role not in self.lora_A or not self._is_plain(role, x):
            return super().forward(x, *args, **kwargs)
        down, up = self.lora_A[role].weight, self.lora_B[role].weight
        weights: Any = base.weight, base.bias, down, up, self.scaling[role]
        if not torch.is_grad_enabled():
            return _forward(linear, x, *weights)[0]
        return _LowRank.apply(x, *weights)  # type: ignore[no-any-return]

    def _is_plain(self, role: str, x: Tensor) -> bool:
        base, down, up = self.base_layer, self.lora_A[role], self.lora_B[role]
        dropout = self.lora_dropout[role]
        return (
            role not in self.lora_variant
            and not self.fan_in_fan_out
            and not (dropout.training and getattr(dropout, "p", 0))
            and down.bias is None
            and up.bias is None
            and not base.weight.requires_grad
            and x.dtype == base.weight.dtype == down.weight.dtype
            and not torch.is_autocast_enabled(x.device.type)
        )


def _forward(
    base: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_LowRank`, with what its backward pass needs: x and x A^T, both with flat rows."""
    flat = x.reshape(-1, x.shape[-1])
    low = flat @ down.T
    out = base(flat, weight, bias)
    out.addmm_(low, up.T, alpha=scaling)
    return out.view(*x.shape[:-1], len(weight)), flat, low


class _LowRank(torch.autograd.Function):
    """x W^T + b + scaling (x A^T) B^T. Shapes: x (..., in), W (out, in), A (rank, in),
    B (out, rank); W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
    ) -> Tensor:
        out, flat, low = _forward(F.linear, x, weight, bias, down, up, scaling)
        ctx.save_for_backward(flat, low, weight, down, up)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        flat, low, weight, down, up = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        grad_low = (grad @ up).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, down).view(*grads[0].shape[:-1], -1)
        grad_down = grad_low.T @ flat if ctx.needs_input_grad[3] else None
        grad_up = (grad.T @ low).mul_(ctx.scaling) if ctx.needs_input_grad[4] else None
        return grad_x, None, None, grad_down, grad_up, None
