"""The output head on completion positions only: log-probs without the logits of a whole batch.

Logits exist for `HEAD_CHUNK` tokens at a time, in room that is used again: on a CPU new memory
costs as much as what is computed in it. The gradient with respect to a hidden state,
W[target] - p W, is taken while the probabilities p are there; where the head learns as well, its
own gradient is taken in the backward pass, which makes each chunk's probabilities again (the last
chunk's are still in the room).
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trueup.models import thin
from trueup.models.tied import gradient_of, is_marked

__all__ = ["HEAD_CHUNK", "TokenScores", "token_scores"]

HEAD_CHUNK = 256  # completion tokens whose logits exist at once: 50 MB with a 50k vocabulary


class TokenScores(NamedTuple):
    """What the model thought at each of N tokens. All of shape (N,)."""

    logprobs: Tensor
    """log p(token), in nats; carries the gradient."""
    collisions: Tensor | None
    """log of the sum over the vocabulary of p^2, detached: how sure the model was. None unless
    asked for."""
    entropies: Tensor | None = None
    """-sum of p log p over the vocabulary, in nats, with its gradient. None unless asked for."""


def token_scores(
    model: Any,
    hidden_ND: Tensor,
    targets_N: Tensor,
    *,
    with_collisions: bool = False,
    with_entropies: bool = False,
) -> TokenScores:
    """Score each target under the model's head; float32 whatever the model's own type."""
    head = model.get_output_embeddings()
    if _is_plain(model, head) and len(targets_N) and not with_entropies:
        logprobs, collisions = _PlainHead.apply(
            hidden_ND, head.weight, head.bias, targets_N, with_collisions
        )
        return TokenScores(logprobs, collisions if with_collisions else None)
    parts = [
        _chunk(model, head, hidden, targets, with_collisions, with_entropies)
        for hidden, targets in zip(
            hidden_ND.split(HEAD_CHUNK), targets_N.split(HEAD_CHUNK), strict=True
        )
    ]
    logprobs, collisions, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenScores(
        logprobs, collisions if with_collisions else None, entropies if with_entropies else None
    )


# --- a matrix and nothing after it ----------------------------------------------------------------


class _Room:
    """Memory for one chunk's probabilities on a CPU; elsewhere the allocator keeps it."""

    def __init__(self) -> None:
        self.kept = torch.empty(0)
        self.mark = object()
        """Another one whenever the room is taken."""

    def take(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Room of this shape; what was there is gone."""
        self.mark = object()
        if device.type != "cpu":
            return torch.empty(rows, columns, device=device)
        if self.kept.numel() < rows * columns:
            self.kept = torch.empty(rows * columns)
        return self.kept[: rows * columns].view(rows, columns)


_of_thread = threading.local()


def _room() -> _Room:
    if not hasattr(_of_thread, "room"):
        _of_thread.room = _Room()
    return _of_thread.room  # type: ignore[no-any-return]


class _PlainHead(torch.autograd.Function):
    """Log-probs of targets under a matrix, with or without a bias."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets_N: Tensor,
        with_collisions: bool,
    ) -> tuple[Tensor, Tensor]:
        room, device = _room(), hidden_ND.device
        logprobs = torch.empty(len(targets_N), device=device)
        collisions = torch.empty(len(targets_N) if with_collisions else 0, device=device)
        direction = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for part in _parts(len(targets_N)):
            targets = targets_N[part, None]
            logits = _logits(room, hidden_ND[part], weight, bias)
            behind = logits.gather(1, targets)[:, 0] - logits.amax(1)
            probs = torch.softmax(logits, dim=1, out=logits)
            # from the likeliest token, whose probability is never too small for its logarithm
            logprobs[part] = behind + probs.amax(1).log_()
            if with_collisions:
                collisions[part] = torch.linalg.vector_norm(probs, dim=1).log_().mul_(2)
            if direction is not None:
                direction[part] = weight[targets[:, 0]] - probs.to(weight.dtype) @ weight
            ctx.probs = probs if ctx.needs_input_grad[1] else None
        ctx.room, ctx.mark = room, room.mark
        ctx.save_for_backward(hidden_ND, weight, bias, targets_N, direction)
        ctx.mark_non_differentiable(collisions)
        return logprobs, collisions

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_ND, weight, bias, targets_N, direction = ctx.saved_tensors
        grad_N1 = grads[0][:, None].to(weight.dtype)
        grad_hidden = None if direction is None else direction * grad_N1
        if not ctx.needs_input_grad[1]:
            return grad_hidden, None, None, None, None
        grad_weight = gradient_of(weight) if is_marked(weight) else torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        for part in reversed(_parts(len(targets_N))):
            probs = ctx.probs
            if ctx.room.mark is not ctx.mark:
                logits = _logits(ctx.room, hidden_ND[part], weight, bias)
                probs = torch.softmax(logits, dim=1, out=logits)
            pull = hidden_ND[part] * grad_N1[part]
            grad_weight.addmm_(probs.to(weight.dtype).T, pull, alpha=-1)
            grad_weight.index_add_(0, targets_N[part], pull)
            if grad_bias is not None:
                grad_bias.addmv_(probs.to(weight.dtype).T, grad_N1[part, 0], alpha=-1)
                grad_bias.index_add_(0, targets_N[part], grad_N1[part, 0])
            ctx.mark = None
        returned = None if is_marked(weight) else grad_weight
        return grad_hidden, returned, grad_bias, None, None


def _parts(length: int) -> list[slice]:
    return [slice(at, min(at + HEAD_CHUNK, length)) for at in range(0, length, HEAD_CHUNK)]


def _logits(room: _Room, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of one chunk, in float32, where the room has place for them."""
    out = room.take(len(hidden), len(weight), hidden.device)
    if hidden.dtype == weight.dtype == torch.float32:
        torch.mm(hidden, weight.T, out=out)
        return out if bias is None else out.add_(bias)
    return out.copy_(F.linear(hidden, weight, bias))


def _is_plain(model: Any, head: Any) -> bool:
    return (
        thin.is_plain(head)
        and not _adjustments(model)
        and not torch.is_autocast_enabled(head.weight.device.type)
    )


# --- any other ------------------------------------------------------------------------------------


def _chunk(
    model: Any,
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    with_collisions: bool,
    with_entropies: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Through autograd, the chunk's logits computed again in the backward pass."""

    def scored(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = _adjusted(model, head(hidden)).float()
        return (
            -F.cross_entropy(logits, targets, reduction="none"),
            _collisions(logits, with_collisions),
            _entropies(logits) if with_entropies else logits.new_zeros(0),
        )

    if torch.is_grad_enabled() and (
        hidden.requires_grad or any(p.requires_grad for p in head.parameters())
    ):
        return checkpoint(scored, hidden, targets, use_reentrant=False)  # type: ignore[no-any-return]
    return scored(hidden, targets)


def _collisions(logits: Tensor, wanted: bool) -> Tensor:
    if not wanted:
        return logits.new_zeros(0)
    logits = logits.detach()
    return torch.logsumexp(2 * logits, dim=-1) - 2 * torch.logsumexp(logits, dim=-1)


def _entropies(logits: Tensor) -> Tensor:
    logprobs = torch.log_softmax(logits, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


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
