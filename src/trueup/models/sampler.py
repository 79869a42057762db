"""Draw completions: each prompt runs once, its samples decode together.

Rows of a batch are (request, sample) pairs. A prompt is prefilled once and its keys and values are
repeated for its samples; finished rows leave the batch. Every drawn token keeps the log-prob that
the model itself gave it (temperature 1, nothing cut off), so the reference pass of a later
training step is already paid for where the generator is the reference.

Randomness belongs to the row, not to the batch: a seeded request draws the same uniforms whoever
it shares a batch with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trueup.models.kv_cache import GrowingCache
from trueup.records import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Drawn", "SampleRequest", "sample"]

OnToken = Callable[[int, int, int, float], bool | None]
"""Called as (request index, sample index, token id, log-prob) for every drawn token; True ends
that completion there, with finish reason "unknown"."""

OnDone = Callable[[int, int, "Drawn"], None]
"""Called as (request index, sample index, completion) as soon as a completion has ended."""


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

    Prompts are left-padded to the longest of the batch; callers bucket by length. Log-probs equal
    a recomputation over the whole sequence to 1e-4 in fp32 (tested), whatever the padding.

    Args:
        eos_ids: tokens that end a completion; the one drawn is kept, with its log-prob.
        on_token: for streaming and for giving up; called in drawing order.
        on_done: for those who would rather not wait for the longest row of the batch.

    Returns:
        For each request its samples, in order.
    """
    rows = _rows(requests)
    cache, logits_BV, mask_BT = _prefill(model, requests)
    alive = list(range(len(rows)))
    while alive:
        tokens = _draw([rows[i] for i in alive], logits_BV)
        logprobs = torch.log_softmax(logits_BV.float(), dim=-1).gather(1, tokens[:, None])[:, 0]
        keep = []
        for place, (token, logprob) in enumerate(
            zip(tokens.tolist(), logprobs.tolist(), strict=True)
        ):
            row = rows[alive[place]]
            is_done = _append(row, token, logprob, eos_ids)
            if (
                on_token
                and on_token(row.request_idx, row.sample_idx, token, logprob)
                and not is_done
            ):
                row.drawn.finish_reason, is_done = "unknown", True
            if not is_done:
                keep.append(place)
            elif on_done:
                on_done(row.request_idx, row.sample_idx, row.drawn)
        if len(keep) < len(alive):
            if not keep:
                break
            alive = [alive[place] for place in keep]
            kept = torch.tensor(keep, device=tokens.device)
            tokens, mask_BT = tokens[kept], mask_BT[kept]
            cache.keep_rows(kept)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)
        positions = torch.tensor([[rows[i].real_length - 1] for i in alive], device=tokens.device)
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


def _prefill(
    model: "PreTrainedModel", requests: Sequence[SampleRequest]
) -> tuple[GrowingCache, Tensor, Tensor]:
    """Run every prompt once, then give each of its samples a copy of the keys and values."""
    lengths = [len(r.prompt_ids) for r in requests]
    longest = max(lengths)
    device = model.device
    ids_BT = torch.zeros(len(requests), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(requests), longest, dtype=torch.long)
    for i, request in enumerate(requests):
        # left padding: the last prompt token of every row stands in the last column
        ids_BT[i, longest - lengths[i] :] = torch.as_tensor(request.prompt_ids)
        mask_BT[i, longest - lengths[i] :] = 1
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    room = longest + max(r.sampling.max_tokens for r in requests)
    cache = GrowingCache(room)
    logits_BV = model(
        input_ids=ids_BT.to(device),
        attention_mask=mask_BT.to(device),
        position_ids=positions_BT.to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    copies = torch.tensor([i for i, r in enumerate(requests) for _ in range(r.num_samples)])
    if len(copies) != len(requests):
        cache.keep_rows(copies.to(device))
    return cache, logits_BV[copies.to(device)], mask_BT[copies].to(device)


def _draw(rows: list[_Row], logits_BV: Tensor) -> Tensor:
    """The next token of each row, shape (B,): greedy at temperature 0, else inverse-CDF."""
    greedy = logits_BV.argmax(dim=-1)
    if all(row.sampling.temperature == 0 for row in rows):
        return greedy
    temperatures = torch.tensor([row.sampling.temperature or 1.0 for row in rows])
    probs_BV = torch.softmax(logits_BV.float() / temperatures[:, None].to(logits_BV.device), dim=-1)
    top_p = torch.tensor([row.sampling.top_p for row in rows], device=logits_BV.device)
    if bool((top_p < 1).any()):
        probs_BV = _cut_tail(probs_BV, top_p)
    # float64: with 50k tokens a float32 running sum no longer reaches 1 within half a token
    cdf_BV = probs_BV.double().cumsum(dim=-1)
    uniforms = torch.stack(
        [torch.rand(1, generator=row.random, dtype=torch.float64) for row in rows]
    )
    targets = uniforms.to(cdf_BV.device) * cdf_BV[:, -1:]
    drawn = torch.searchsorted(cdf_BV, targets, right=True)[:, 0].clamp(max=cdf_BV.shape[1] - 1)
    is_greedy = torch.tensor([row.sampling.temperature == 0 for row in rows], device=drawn.device)
    return torch.where(is_greedy, greedy, drawn)


def _cut_tail(probs_BV: Tensor, top_p: Tensor) -> Tensor:
    """Zero what lies outside the smallest set of tokens with total probability >= top_p."""
    ordered, order = probs_BV.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= top_p[:, None], 0.0)
    return torch.zeros_like(probs_BV).scatter(1, order, ordered)


def _append(row: _Row, token: int, logprob: float, eos_ids: frozenset[int]) -> bool:
    """Add a token to its row; True when the row is finished."""
    row.drawn.token_ids.append(token)
    row.drawn.logprobs.append(logprob)
    row.real_length += 1
    if token in eos_ids:
        row.drawn.finish_reason = "stop"
        return True
    return len(row.drawn.token_ids) >= row.sampling.max_tokens
