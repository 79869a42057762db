"""Draw completions: each prompt runs once, its samples decode together.

Rows of a batch are (request, sample) pairs. A prompt is prefilled once and its keys and values are
repeated for its samples; finished rows leave the batch in bulk. Every drawn token keeps the
log-prob that the model itself gave it (temperature 1, nothing cut off), so the reference pass of a
later training step is already paid for where the generator is the reference.

Randomness belongs to the row, not to the batch: a seeded request draws the same uniforms whoever
it shares a batch with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trueup.models.prefill import prefill
from trueup.records import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Drawn", "SampleRequest", "sample"]

OnToken = Callable[[int, int, int, float], bool | None]
"""Called as (request index, sample index, token id, log-prob) for every drawn token; True ends
that completion there, with finish reason "unknown"."""

OnDone = Callable[[int, int, "Drawn"], None]
"""Called as (request index, sample index, completion) as soon as a completion has ended."""


KEEP_ABOVE = 0.75
"""Share of unfinished rows under which the finished ones are dropped: dropping copies the cache."""


@dataclass(frozen=True)
class SampleRequest:
    """One prompt and how to continue it."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    num_samples: int = 1


@dataclass
class Drawn:
    """One sampled completion. `token_ids` ends with the end-of-sequence token where it stopped."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


@dataclass
class _Row:
    request_idx: int
    sample_idx: int
    sampling: Sampling
    random: torch.Generator
    drawn: Drawn
    real_length: int
    """Prompt tokens and drawn tokens so far: the position of the next token."""
    is_done: bool = False


@torch.inference_mode()
def sample(
    model: "PreTrainedModel",
    requests: Sequence[SampleRequest],
    *,
    eos_ids: frozenset[int],
    on_token: OnToken | None = None,
    on_done: OnDone | None = None,
) -> list[list[Drawn]]:
    """Continue every request's prompt `num_samples` times.

    Log-probs equal a recomputation over the whole sequence to 1e-4 in fp32 (tested), whatever the
    company. Callers put prompts of like length and beginning together.

    Args:
        eos_ids: tokens that end a completion; the one drawn is kept, with its log-prob.
        on_token: for streaming and for giving up; called in drawing order.
        on_done: for those who would rather not wait for the longest row of the batch.

    Returns:
        For each request its samples, in order.
    """
    rows = _rows(requests)
    cache, logits_BV, mask_BT = prefill(
        model,
        [r.prompt_ids for r in requests],
        [r.num_samples for r in requests],
        num_new=max(r.sampling.max_tokens for r in requests),
    )
    batch = rows  # the row in each place; a finished one stays until dropping it pays
    while True:
        tokens, logprobs = _draw(batch, logits_BV)
        for row, token, logprob in zip(batch, tokens.tolist(), logprobs.tolist(), strict=True):
            if not row.is_done:
                _append(row, token, logprob, eos_ids, on_token)
                if row.is_done and on_done:
                    on_done(row.request_idx, row.sample_idx, row.drawn)
        alive = [place for place, row in enumerate(batch) if not row.is_done]
        if not alive:
            break
        if len(alive) <= KEEP_ABOVE * len(batch):
            kept = torch.tensor(alive, device=tokens.device)
            batch = [batch[place] for place in alive]
            tokens, mask_BT = tokens[kept], mask_BT[kept]
            cache.keep_rows(kept)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(batch), 1)], dim=1)
        positions = torch.tensor([[row.real_length - 1] for row in batch], device=tokens.device)
        logits_BV = model(
            input_ids=tokens[:, None],
            attention_mask=mask_BT,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    results: list[list[Drawn]] = [[] for _ in requests]
    for row in rows:
        results[row.request_idx].append(row.drawn)
    return results


def _rows(requests: Sequence[SampleRequest]) -> list[_Row]:
    rows = []
    for request_idx, request in enumerate(requests):
        for sample_idx in range(request.num_samples):
            random = torch.Generator()
            if request.sampling.seed is None:
                random.seed()
            else:
                random.manual_seed((request.sampling.seed * 1_000_003 + sample_idx) % 2**63)
            rows.append(
                _Row(
                    request_idx,
                    sample_idx,
                    request.sampling,
                    random,
                    Drawn(),
                    len(request.prompt_ids),
                )
            )
    return rows


def _draw(rows: list[_Row], logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-prob under the model itself, both of shape (B,).

    Greedy at temperature 0, else by the inverse of the cumulative distribution.
    """
    logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    drawn = logprobs_BV.argmax(dim=-1)
    if any(row.sampling.temperature > 0 for row in rows):
        # float64: with 50k tokens a float32 running sum no longer reaches 1 within half a token
        cdf_BV = _probs(rows, logprobs_BV).double().cumsum_(dim=-1)
        uniforms = torch.stack(
            [torch.rand(1, generator=row.random, dtype=torch.float64) for row in rows]
        )
        targets = uniforms.to(cdf_BV.device) * cdf_BV[:, -1:]
        random = torch.searchsorted(cdf_BV, targets, right=True)[:, 0]
        is_greedy = torch.tensor([row.sampling.temperature == 0 for row in rows])
        random = random.clamp(max=cdf_BV.shape[1] - 1)
        drawn = torch.where(is_greedy.to(drawn.device), drawn, random)
    return drawn, logprobs_BV.gather(1, drawn[:, None])[:, 0]


def _probs(rows: list[_Row], logprobs_BV: Tensor) -> Tensor:
    """The distribution each row draws from: its temperature, and what its top-p leaves."""
    device = logprobs_BV.device
    temperatures = torch.tensor([row.sampling.temperature or 1.0 for row in rows], device=device)
    if bool((temperatures == 1).all()):
        probs_BV = logprobs_BV.exp()
    else:
        probs_BV = torch.softmax(logprobs_BV / temperatures[:, None], dim=-1)
    top_p = torch.tensor([row.sampling.top_p for row in rows], device=device)
    return _cut_tail(probs_BV, top_p) if bool((top_p < 1).any()) else probs_BV


def _cut_tail(probs_BV: Tensor, top_p: Tensor) -> Tensor:
    """Zero what lies outside the smallest set of tokens with total probability >= top_p."""
    ordered, order = probs_BV.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= top_p[:, None], 0.0)
    return torch.zeros_like(probs_BV).scatter(1, order, ordered)


def _append(
    row: _Row, token: int, logprob: float, eos_ids: frozenset[int], on_token: OnToken | None
) -> None:
    """Add a token to its row, tell the listener, and see whether the row is finished."""
    row.drawn.token_ids.append(token)
    row.drawn.logprobs.append(logprob)
    row.real_length += 1
    if token in eos_ids:
        row.drawn.finish_reason = "stop"
    row.is_done = token in eos_ids or len(row.drawn.token_ids) >= row.sampling.max_tokens
    gives_up = on_token and on_token(row.request_idx, row.sample_idx, token, logprob)
    if gives_up and not row.is_done:
        row.drawn.finish_reason, row.is_done = "unknown", True
