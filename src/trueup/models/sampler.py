"""Draw completions: each prompt runs once, its samples decode together, free places are refilled.

    waiting ──> prefill ──> rows of one batch ──> a token each ──> a token each ──> ...
                               ▲      │ finished
                               └──────┘ its place goes to who waits

Rows of a batch are (request, sample) pairs. A prompt is prefilled once and its keys and values are
repeated for its samples. Newcomers are written into the places of finished rows, so that their
last token stands in the batch's last column; a mask hides what is to the left. Positions count a
row's own tokens, so columns mean nothing: when the buffer is full the rows are shifted until only
columns that somebody needs remain. A model that counts columns (a sliding window) is not refilled:
its batch is finished first.

Every drawn token keeps the log-prob that the model itself gave it (temperature 1, nothing cut
off), so the reference pass of a later training step is already paid for where the generator is the
reference. Randomness belongs to the row, not to the batch: a seeded request draws the same
uniforms whoever it shares a batch with.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trueup.models.drawing import draw
from trueup.models.kv_cache import GrowingCache
from trueup.models.prefill import prefill
from trueup.models.shared_prompt import looks_back
from trueup.records import Sampling

__all__ = ["Batch", "Drawn", "SampleRequest", "num_that_fit", "sample"]

OnToken = Callable[[int, int, int, float], Literal["stop", "unknown"] | None]
"""Called as (request's key, sample index, token id, log-prob) for every drawn token. What it
returns ends that completion there: "stop" where its text has reached a stop string, "unknown"
where nobody wants the rest."""

OnDone = Callable[[int, int, "Drawn"], None]
"""Called as (request's key, sample index, completion) as soon as a completion has ended."""

MAX_ROWS = 128
MAX_PLACES = 32_768
"""Rows times columns of keys and values that are held at once."""

KEEP_ABOVE = 0.75
"""Share of unfinished rows under which the finished ones are dropped: dropping copies the cache."""
JOIN_ABOVE = 0.25
"""Share of newcomers from which `sample` lets them join: prompts that begin alike are worth more
together, and a prefill of one row costs nearly what it costs for several."""
SPARE = 32
"""Columns that moving rows must win: moving copies the cache."""


@dataclass(frozen=True)
class SampleRequest:
    """One prompt and how to continue it. Stop strings are text, so they are up to `on_token`."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    num_samples: int = 1
    first_sample: int = 0
    """Index of the first sample; with the seed it says which uniforms are drawn."""

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt_ids) + self.sampling.max_tokens


@dataclass
class Drawn:
    """One sampled completion. `token_ids` ends with the end-of-sequence token where it stopped."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


@dataclass
class _Row:
    key: int
    sample_idx: int
    request: SampleRequest
    random: torch.Generator
    drawn: Drawn
    is_done: bool = False

    @property
    def num_held(self) -> int:
        """Tokens whose keys and values are in the cache; the last one drawn is not."""
        return len(self.request.prompt_ids) + len(self.drawn.token_ids) - 1

    @property
    def num_left(self) -> int:
        return self.request.sampling.max_tokens - len(self.drawn.token_ids)


class Begun(NamedTuple):
    """Requests whose prompts have run and whose first tokens are drawn, but not yet told."""

    rows: list[_Row]
    cache: GrowingCache
    mask_BT: Tensor
    tokens: list[int]
    logprobs: list[float]


def sample(
    model: Any,
    requests: Sequence[SampleRequest],
    *,
    eos_ids: frozenset[int],
    on_token: OnToken | None = None,
    on_done: OnDone | None = None,
    max_rows: int = MAX_ROWS,
    max_places: int = MAX_PLACES,
) -> list[list[Drawn]]:
    """Continue every request's prompt `num_samples` times, as many side by side as there is room.

    Log-probs equal a recomputation over the whole sequence to 1e-4 in fp32 (tested), whatever the
    company. Requests begin in the order given; callers put prompts of like length and beginning
    next to each other.

    Args:
        eos_ids: tokens that end a completion; the one drawn is kept, with its log-prob.
        on_token: for streaming, for stop strings and for giving up; called in drawing order, with
            the request's index as its key.
        on_done: for those who would rather not wait for the last row.
        max_rows: completions drawn at once. A request for more runs its prompt once for so many.
        max_places: rows times tokens whose keys and values are held, padding included.

    Returns:
        For each request its samples, in order.
    """
    results: list[list[Drawn]] = [[] for _ in requests]

    def done(key: int, sample_idx: int, drawn: Drawn) -> None:
        results[key][sample_idx - requests[key].first_sample] = drawn
        if on_done:
            on_done(key, sample_idx, drawn)

    batch = Batch(
        model,
        eos_ids=eos_ids,
        on_token=on_token,
        on_done=done,
        max_rows=max_rows,
        max_places=max_places,
    )
    waiting: deque[tuple[int, SampleRequest]] = deque()
    for key, request in enumerate(requests):
        results[key] = [Drawn() for _ in range(request.num_samples)]
        waiting += [(key, part) for part in _parts(request, max_rows, max_places)]
    while waiting or batch.num_rows:
        num = batch.takes(request for _, request in waiting)
        joining = [waiting[i] for i in range(num)]
        num_new = sum(request.num_samples for _, request in joining)
        if num and (num == len(waiting) or num_new >= JOIN_ABOVE * (batch.num_rows + num_new)):
            batch.join(batch.prefill(joining))
            for _ in joining:
                waiting.popleft()
        batch.step()
    return results


class Batch:
    """Rows that draw side by side. Requests may join between two tokens, while there is room."""

    def __init__(
        self,
        model: Any,
        *,
        eos_ids: frozenset[int],
        on_token: OnToken | None = None,
        on_done: OnDone | None = None,
        max_rows: int = MAX_ROWS,
        max_places: int = MAX_PLACES,
    ) -> None:
        """As `sample`; keys are those that requests join under."""
        self._model, self._eos_ids = model, eos_ids
        self._on_token, self._on_done = on_token, on_done
        self._max_rows, self._max_places = max_rows, max_places
        self._rows: list[_Row] = []  # the row in each place; a finished one's place is free
        self._is_refilled = looks_back(model.config) == math.inf

    @property
    def num_rows(self) -> int:
        """Completions that are being drawn."""
        return sum(not row.is_done for row in self._rows)

    def takes(self, requests: Iterable[SampleRequest]) -> int:
        """How many of these, from the first on, may join now. An empty batch takes at least one."""
        drawing = [row.request for row in self._rows if not row.is_done]
        if drawing and not self._is_refilled:
            return 0
        return num_that_fit(
            requests,
            num_rows=len(drawing),
            width=max((request.longest for request in drawing), default=0),
            max_rows=self._max_rows,
            max_places=self._max_places,
        )

    @torch.inference_mode()
    def prefill(self, requests: Sequence[tuple[int, SampleRequest]]) -> Begun:
        """Run the prompts of these requests, each under its key, and draw their first tokens.

        What fails here has not touched the batch.
        """
        rows = [row for key, request in requests for row in _rows_of(key, request)]
        room = 0 if self.num_rows else max(r.sampling.max_tokens for _, r in requests)
        cache, logits_BV, mask_BT = prefill(
            self._model,
            [request.prompt_ids for _, request in requests],
            [request.num_samples for _, request in requests],
            num_new=room,
        )
        tokens, logprobs = self._draw(rows, logits_BV)
        return Begun(rows, cache, mask_BT, tokens, logprobs)

    @torch.inference_mode()
    def join(self, begun: Begun) -> None:
        """Take in what `prefill` has begun, and tell its first tokens."""
        if self.num_rows:
            self._place(begun)
        else:
            self._cache, self._mask_BT, self._rows = begun.cache, begun.mask_BT, list(begun.rows)
        self._append(begun.rows, begun.tokens, begun.logprobs)

    @torch.inference_mode()
    def step(self) -> None:
        """Draw the next token of every row; nothing where there is none."""
        alive = self._alive()
        if not alive:
            return
        self._make_room(alive)
        device = self._mask_BT.device
        self._mask_BT = torch.cat(
            [self._mask_BT, self._mask_BT.new_ones(len(self._rows), 1)], dim=1
        )
        logits_BV = self._model(
            input_ids=torch.tensor([[r.drawn.token_ids[-1]] for r in self._rows], device=device),
            attention_mask=self._mask_BT,
            position_ids=torch.tensor([[r.num_held] for r in self._rows], device=device),
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._append(self._rows, *self._draw(self._rows, logits_BV))

    def _alive(self) -> list[int]:
        return [place for place, row in enumerate(self._rows) if not row.is_done]

    def _draw(self, rows: list[_Row], logits_BV: Tensor) -> tuple[list[int], list[float]]:
        samplings = [row.request.sampling for row in rows]
        tokens, logprobs = draw(logits_BV, samplings, [row.random for row in rows])
        return tokens.tolist(), logprobs.tolist()

    def _append(self, rows: list[_Row], tokens: list[int], logprobs: list[float]) -> None:
        """Add a token to each row, tell the listeners, and see which rows are finished."""
        for row, token, logprob in zip(list(rows), tokens, logprobs, strict=True):
            if row.is_done:
                continue
            drawn = row.drawn
            drawn.token_ids.append(token)
            drawn.logprobs.append(logprob)
            ended = self._on_token and self._on_token(row.key, row.sample_idx, token, logprob)
            if token in self._eos_ids:
                ended = "stop"
            elif ended != "stop" and not row.num_left:
                ended = "length"
            if ended:
                drawn.finish_reason, row.is_done = ended, True
                if self._on_done:
                    self._on_done(row.key, row.sample_idx, drawn)

    # --- places -----------------------------------------------------------------------------------

    def _make_room(self, alive: list[int]) -> None:
        """Have a free column for the next token, and neither too many free rows nor columns."""
        num_needed = max(self._rows[place].num_held for place in alive)
        is_sparse = self._cache.width > 2 * num_needed + SPARE
        if self._is_refilled and (self._cache.is_full or is_sparse):
            self._arrange(alive)
        elif len(alive) <= KEEP_ABOVE * len(self._rows):
            kept = torch.tensor(alive, device=self._mask_BT.device)
            self._rows = [self._rows[place] for place in alive]
            self._mask_BT = self._mask_BT[kept]
            self._cache.keep_rows(kept)

    def _place(self, begun: Begun) -> None:
        """Write newcomers into free places, right-aligned at the last column."""
        num_new, width = begun.mask_BT.shape
        free = [place for place, row in enumerate(self._rows) if row.is_done]
        if len(free) < num_new or width > self._cache.width:
            self._arrange(self._alive(), begun)
            free = list(range(len(self._rows) - num_new, len(self._rows)))
        places = torch.tensor(free[:num_new], device=self._mask_BT.device)
        self._cache.write_rows(places, begun.cache)
        self._mask_BT[places] = 0
        self._mask_BT[places, self._cache.width - width :] = begun.mask_BT
        for place, row in zip(free, begun.rows, strict=False):
            self._rows[place] = row

    def _arrange(self, alive: list[int], begun: Begun | None = None) -> None:
        """Keep the unfinished rows alone, shifted so that only columns which somebody needs
        remain, with free places behind them for newcomers."""
        rows = [self._rows[place] for place in alive]
        new = begun.rows if begun else []
        width = max(row.num_held for row in rows)
        if begun:
            width = max(width, begun.mask_BT.shape[1])
        # a free place is a copy of the first row, until it is overwritten
        picked = torch.tensor(alive + alive[:1] * len(new), device=self._mask_BT.device)
        mask_BT = self._mask_BT[picked]
        columns_BT = mask_BT.argsort(dim=1, stable=True)[:, -width:]  # what is real to the right
        mask_BT = mask_BT.gather(1, columns_BT)
        missing = (width - columns_BT.shape[1], 0)
        columns_BT = torch.nn.functional.pad(columns_BT, missing)
        self._mask_BT = torch.nn.functional.pad(mask_BT, missing)
        self._rows = rows + new
        num_left = max(row.num_left for row in self._rows)
        spare = max(SPARE, self._max_places // len(self._rows) - width)
        self._cache.arrange(picked, columns_BT, width + min(num_left, spare))


def num_that_fit(
    requests: Iterable[SampleRequest],
    *,
    max_rows: int,
    max_places: int,
    num_rows: int = 0,
    width: int = 0,
) -> int:
    """How many of these, from the first on, fit beside `num_rows` rows that may grow to `width`
    tokens. Where there are none, at least one."""
    num = 0
    for request in requests:
        num_rows += request.num_samples
        width = max(width, request.longest)
        fits = num_rows <= max_rows and num_rows * width <= max_places
        if not fits and num_rows > request.num_samples:
            break
        num += 1
    return num


def _rows_of(key: int, request: SampleRequest) -> list[_Row]:
    rows = []
    for sample_idx in range(request.first_sample, request.first_sample + request.num_samples):
        random = torch.Generator()
        if request.sampling.seed is None:
            random.seed()
        else:
            random.manual_seed((request.sampling.seed * 1_000_003 + sample_idx) % 2**63)
        rows.append(_Row(key, sample_idx, request, random, Drawn()))
    return rows


def _parts(request: SampleRequest, max_rows: int, max_places: int) -> list[SampleRequest]:
    """The request, or several for fewer samples where there is no room for all of them at once."""
    most = max(1, min(max_rows, max_places // request.longest))
    return [
        replace(
            request,
            num_samples=min(most, request.num_samples - at),
            first_sample=request.first_sample + at,
        )
        for at in range(0, request.num_samples, most)
    ]
