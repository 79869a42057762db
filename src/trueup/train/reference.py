"""The frozen reference: its log-probs of every completion, mostly for free.

A completion that the reference itself drew came with the log-prob of each token; where these very
weights drew it after these very prompt tokens, no forward pass is needed. What was computed once
is kept by content, for the next loss, sweep or run. The rest is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from trueup.models import chat
from trueup.models.logprobs import completion_logprobs
from trueup.progress import task
from trueup.records import Completion
from trueup.train.data import Row, split
from trueup.train.logprob_cache import LogprobCache

__all__ = ["FixedReference", "MovingReference", "NoReference", "Reference", "stored_logprobs"]

Logprobs = list[Tensor]
"""For each completion of a row its log-probs a token, float32 on the CPU."""


class Reference(Protocol):
    """What the policy is held to."""

    def of(self, row: Row) -> Logprobs:
        """The reference's log-probs of a row's completions."""
        ...

    def compute(self, rows: Sequence[Row]) -> dict[str, Logprobs]:
        """As `of`, for rows it has not met, by row id; nothing is kept."""
        ...

    def follow(self, picked: Sequence[Row]) -> None:
        """Called before a step with its rows."""
        ...

    def moved(self) -> None:
        """Called after an optimizer step."""
        ...


def stored_logprobs(
    completion: Completion, weights: str, prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> tuple[float, ...] | None:
    """The log-probs that came with a completion, if they are those of these weights for these
    tokens after this prompt; None otherwise.

    A sampler that cut or heated the distribution may have stored what it drew from instead of
    what the model said, so only plain draws count.
    """
    is_same = (
        completion.logprobs is not None
        and completion.token_ids == tuple(completion_ids)
        and len(completion.logprobs) == len(completion_ids)
        and completion.weights == weights
        and completion.after == chat.digest(prompt_ids)
        and completion.sampling is not None
        and completion.sampling.is_plain
    )
    return completion.logprobs if is_same else None


class FixedReference:
    """A model that does not change: the champion, the base, or any checkpoint."""

    def __init__(
        self,
        acting: Callable[[], AbstractContextManager[Any]],
        weights: str,
        *,
        tokens_per_batch: int,
        cache: LogprobCache | None = None,
    ) -> None:
        """`acting` makes the network the reference; `weights` is its name."""
        self.acting, self.weights = acting, weights
        self.tokens_per_batch, self._cache = tokens_per_batch, cache
        self._known: dict[str, Logprobs] = {}
        self.sources = {"stored": 0, "cached": 0, "computed": 0}
        """Completions by where their log-probs came from."""

    def prepare(self, rows: Sequence[Row]) -> None:
        """Have the log-probs of these rows ready; costs a pass over those nobody knows."""
        rows = [row for row in {r.id: r for r in rows}.values() if row.id not in self._known]
        found = [self._stored(row) for row in rows]
        cached = self._cached([row for row, known in zip(rows, found, strict=True) if not known])
        missing = []
        for row, known in zip(rows, found, strict=True):
            if known is None and row.id not in cached:
                missing.append(row)
                continue
            self._known[row.id] = known or cached[row.id]
            self.sources["stored" if known else "cached"] += len(row.completions)
        for group, computed in self._pass(missing, name="reference"):
            self._known |= computed
            self.sources["computed"] += sum(len(row.completions) for row in group)
            self._keep(group, computed)

    def of(self, row: Row) -> Logprobs:
        return self._known[row.id]

    def compute(self, rows: Sequence[Row]) -> dict[str, Logprobs]:
        found: dict[str, Logprobs] = {}
        for _, computed in self._pass(rows, name=None):
            found |= computed
        return found

    def follow(self, picked: Sequence[Row]) -> None:
        pass

    def moved(self) -> None:
        pass

    def _stored(self, row: Row) -> Logprobs | None:
        pieces = zip(row.completions, row.branches.completions, strict=True)
        found = [
            stored_logprobs(c, self.weights, row.branches.prompt_ids, ids) for c, ids in pieces
        ]
        return [torch.tensor(one) for one in found if one] if all(found) else None

    def _cached(self, rows: Sequence[Row]) -> dict[str, Logprobs]:
        if self._cache is None or not rows:
            return {}
        keys = {row.id: self._keys(row) for row in rows}
        found = self._cache.get(key for row_keys in keys.values() for key in row_keys)
        return {
            row_id: [torch.tensor(found[key]) for key in row_keys]
            for row_id, row_keys in keys.items()
            if all(key in found for key in row_keys)
        }

    def _keep(self, group: Sequence[Row], computed: dict[str, Logprobs]) -> None:
        if self._cache is not None:
            pieces = (
                pair
                for row in group
                for pair in zip(self._keys(row), computed[row.id], strict=True)
            )
            self._cache.put({key: one.tolist() for key, one in pieces})

    def _keys(self, row: Row) -> list[bytes]:
        prompt = row.branches.prompt_ids
        return [
            LogprobCache.key(self.weights, self._dtype, prompt, ids)
            for ids in row.branches.completions
        ]

    @cached_property
    def _dtype(self) -> str:
        with self.acting() as model:
            return str(next(model.parameters()).dtype)

    def _pass(
        self, rows: Sequence[Row], name: str | None
    ) -> Iterator[tuple[list[Row], dict[str, Logprobs]]]:
        groups = split(rows, tokens_per_batch=self.tokens_per_batch)
        if name is None:
            yield from ((group, _logprobs(self.acting, group)) for group in groups)
            return
        with task(name, len(rows)) as advance:
            for group in groups:
                yield group, _logprobs(self.acting, group)
                advance(len(group))


class MovingReference:
    """An exponential moving average of the policy's adapter (TR-DPO, arXiv:2404.09656, its soft
    update): what the policy was a while ago. Nothing can be computed ahead."""

    def __init__(
        self,
        acting: Callable[[], AbstractContextManager[Any]],
        average: dict[str, Tensor],
        policy: dict[str, Tensor],
        *,
        decay: float,
        tokens_per_batch: int,
    ) -> None:
        """`average` and `policy` hold the two adapters' parameters under the same names."""
        self.acting, self.decay = acting, decay
        self.average, self.policy = average, policy
        self.tokens_per_batch = tokens_per_batch
        self._known: dict[str, Logprobs] = {}

    def of(self, row: Row) -> Logprobs:
        return self._known[row.id]

    def compute(self, rows: Sequence[Row]) -> dict[str, Logprobs]:
        found: dict[str, Logprobs] = {}
        for group in split(rows, tokens_per_batch=self.tokens_per_batch):
            found |= _logprobs(self.acting, group)
        return found

    def follow(self, picked: Sequence[Row]) -> None:
        self._known = self.compute(picked)

    @torch.no_grad()
    def moved(self) -> None:
        for name, one in self.average.items():
            one.mul_(self.decay).add_(self.policy[name].to(one), alpha=1 - self.decay)


class NoReference:
    """For losses without one: every log-prob is 0, so changes are log-probs themselves."""

    def of(self, row: Row) -> Logprobs:
        return [torch.zeros(len(ids)) for ids in row.branches.completions]

    def compute(self, rows: Sequence[Row]) -> dict[str, Logprobs]:
        return {row.id: self.of(row) for row in rows}

    def follow(self, picked: Sequence[Row]) -> None:
        pass

    def moved(self) -> None:
        pass


@torch.no_grad()
def _logprobs(
    acting: Callable[[], AbstractContextManager[Any]], group: Sequence[Row]
) -> dict[str, Logprobs]:
    with acting() as model:
        found = completion_logprobs(model, [row.branches for row in group])
    return {row.id: [one.float().cpu() for one in ls] for row, ls in zip(group, found, strict=True)}
