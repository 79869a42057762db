"""The output head on completion positions only: log-probs without the logits of a whole batch.

Logits exist for `HEAD_CHUNK` tokens at a time. Where the head is frozen (LoRA), the gradient with
respect to a hidden state, W[target] - p W, is taken while the logits are there and nothing is
computed twice; where it learns, the backward pass makes the chunk's logits again.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["HEAD_CHUNK", "TokenScores", "token_scores"]

HEAD_CHUNK = 256  # completion tokens whose logits exist at once: 50 MB with a 50k vocabulary


class TokenScores(NamedTuple):
    """What the model thought at each of N tokens. Both of shape (N,)."""

    logprobs: Tensor
    """log p(token), in nats; carries the gradient."""
    collisions: Tensor | None
    """log of the sum over the vocabulary of p^2, detached: how sure the model was. None unless
    asked for."""


def token_scores(
    model: Any, hidden_ND: Tensor, targets_N: Tensor, *, with_collisions: bool = False
) -> TokenScores:
    """Score each target under the model's head; float32 whatever the model's own type."""
    head = model.get_output_embeddings()
    parts = []
    for at in range(0, len(targets_N), HEAD_CHUNK):
        hidden, targets = hidden_ND[at : at + HEAD_CHUNK], targets_N[at : at + HEAD_CHUNK]
        parts.append(_chunk(model, head, hidden, targets, with_collisions))
    logprobs = torch.cat([p[0] for p in parts]) if parts else hidden_ND.new_zeros(0)
    collisions = torch.cat([p[1] for p in parts]) if parts and with_collisions else None
    return TokenScores(logprobs, collisions)


def _chunk(
    model: Any, head: nn.Module, hidden: Tensor, targets: Tensor, with_collisions: bool
) -> tuple[Tensor, Tensor]:
    learns = torch.is_grad_enabled()
    frozen = not any(p.requires_grad for p in head.parameters())
    if learns and hidden.requires_grad and frozen and _is_plain(model, head):
        return _FrozenHead.apply(hidden, head.weight, head.bias, targets, with_collisions)  # type: ignore[no-any-return]

    def scored(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = _adjusted(model, head(hidden)).float()
        return -F.cross_entropy(logits, targets, reduction="none"), _collisions(
            logits, with_collisions
        )

    if learns and (hidden.requires_grad or not frozen):
        return checkpoint(scored, hidden, targets, use_reentrant=False)  # type: ignore[no-any-return]
    return scored(hidden, targets)


class _FrozenHead(torch.autograd.Function):
    """Log-probs under a head that does not learn; the gradient is ready when the value is."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        with_collisions: bool,
    ) -> tuple[Tensor, Tensor]:
        logits = F.linear(hidden, weight, bias).float()
        collisions = _collisions(logits, with_collisions)
        logprobs = torch.log_softmax(logits, dim=-1)
        found = logprobs.gather(1, targets[:, None])[:, 0]
        probs = logprobs.exp_().to(weight.dtype)
        ctx.save_for_backward(weight[targets] - probs @ weight)
        ctx.mark_non_differentiable(collisions)
        return found, collisions

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        (direction,) = ctx.saved_tensors
        return direction * grads[0][:, None].to(direction.dtype), None, None, None, None


def _collisions(logits: Tensor, wanted: bool) -> Tensor:
    if not wanted:
        return logits.new_zeros(0)
    logits = logits.detach()
    return torch.logsumexp(2 * logits, dim=-1) - 2 * torch.logsumexp(logits, dim=-1)


def _is_plain(model: Any, head: nn.Module) -> bool:
    """A matrix and nothing after it."""
    return type(head) is nn.Linear and not _adjustments(model)


def _adjustments(model: Any) -> dict[str, float]:
    """What some families do to their logits, by the name their config gives it."""
    names = ("logits_scaling", "logit_scale", "final_logit_softcapping")
    return {name: value for name in names if (value := getattr(model.config, name, None))}


def _adjusted(model: Any, logits: Tensor) -> Tensor:
    said = _adjustments(model)
    if "logits_scaling" in said:  # Granite
        logits = logits / said["logits_scaling"]
    if "logit_scale" in said:  # Cohere
        logits = logits * said["logit_scale"]
    if "final_logit_softcapping" in said:  # Gemma 2
        cap = said["final_logit_softcapping"]
        logits = torch.tanh(logits / cap) * cap
    return logits
