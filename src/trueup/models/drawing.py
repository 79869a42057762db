"""Which token comes next: the distribution each row draws from, and the draw.

In this order: temperature, then top-k, then top-p of what top-k left, then min-p against the
likeliest token. It is the order of transformers, whose warpers are the oracle of the tests. The
log-prob that is kept is the model's own, before any of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trueup.records import Sampling

__all__ = ["draw", "drawn_from"]

GREEDY = 1e-6
"""Temperatures below it are greedy: float32 cannot hold what they divide."""


def draw(
    logits_BV: Tensor, samplings: Sequence[Sampling], randoms: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-prob under the model itself, both of shape (B,).

    Greedy at temperature 0 or next to it, else by the inverse of the cumulative distribution, with
    one uniform from the row's own generator.
    """
    logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    drawn = logprobs_BV.argmax(dim=-1)
    if any(sampling.temperature >= GREEDY for sampling in samplings):
        # float64: with 50k tokens a float32 running sum no longer reaches 1 within half a token
        cdf_BV = drawn_from(logprobs_BV, samplings).double().cumsum_(dim=-1)
        uniforms = torch.stack([torch.rand(1, generator=r, dtype=torch.float64) for r in randoms])
        targets = uniforms.to(cdf_BV.device) * cdf_BV[:, -1:]
        random = torch.searchsorted(cdf_BV, targets, right=True)[:, 0]
        is_greedy = torch.tensor([sampling.temperature < GREEDY for sampling in samplings])
        random = random.clamp(max=cdf_BV.shape[1] - 1)
        drawn = torch.where(is_greedy.to(drawn.device), drawn, random)
    return drawn, logprobs_BV.gather(1, drawn[:, None])[:, 0]


def drawn_from(logprobs_BV: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """What each row draws from: probabilities that are 0 where its settings cut, shape (B, V).

    Rows that cut do not sum to 1. Tokens as likely as the k-th likeliest all stay. A greedy row
    stands as temperature 1; nothing is drawn from it.
    """
    device = logprobs_BV.device

    def each(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device)[:, None]

    temperatures = [s.temperature if s.temperature >= GREEDY else 1.0 for s in samplings]
    if all(temperature == 1 for temperature in temperatures):
        probs_BV = logprobs_BV.exp()
    else:
        probs_BV = torch.softmax(logprobs_BV / each(temperatures), dim=-1)
    sorting = [row for row, s in enumerate(samplings) if s.top_k or s.top_p < 1]
    if sorting:  # the others are spared the sort, and its rounding
        size = probs_BV.shape[1]
        top_k = each([min(samplings[row].top_k or size, size) for row in sorting]).long()
        top_p = each([samplings[row].top_p for row in sorting])
        rows = torch.tensor(sorting, device=device)
        probs_BV[rows] = _cut_tail(probs_BV[rows], top_k, top_p)
    if any(s.min_p for s in samplings):
        least = each([s.min_p for s in samplings]) * probs_BV.amax(dim=-1, keepdim=True)
        probs_BV = probs_BV.masked_fill(probs_BV < least, 0.0)
    return probs_BV


def _cut_tail(probs_BV: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zero what is less likely than the k-th, and of the rest what lies outside the smallest set
    with a share >= top_p of it. `top_k` and `top_p` have shape (B, 1)."""
    ordered, order = probs_BV.sort(dim=-1, descending=True)
    ordered = ordered.masked_fill(ordered < ordered.gather(1, top_k - 1), 0.0)
    before = ordered.cumsum(dim=-1) - ordered
    reached = torch.where(top_p < 1, top_p * ordered.sum(dim=-1, keepdim=True), torch.inf)
    ordered = ordered.masked_fill(before >= reached, 0.0)
    return torch.zeros_like(probs_BV).scatter(1, order, ordered)
