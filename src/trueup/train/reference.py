"""The frozen reference: the champion's log-probs of every completion, mostly for free.

A completion that the champion itself drew came with the log-prob of each token; where it was
drawn by these very weights no forward pass is needed. The rest is computed once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trueup.models.logprobs import completion_logprobs
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import Completion
from trueup.train.data import TokenPair, split

__all__ = ["ref_logps", "stored_logprobs"]


def stored_logprobs(completion: Completion, weights: str) -> tuple[float, ...] | None:
    """The log-probs that came with a completion, if these weights drew it; None otherwise."""
    is_whole = (
        completion.weights == weights
        and completion.logprobs is not None
        and completion.token_ids is not None
        and len(completion.logprobs) == len(completion.token_ids)
    )
    return completion.logprobs if is_whole else None


@torch.no_grad()
def ref_logps(
    champion: StoredModel, rows: Sequence[TokenPair], *, tokens_per_batch: int
) -> dict[str, Tensor]:
    """Summed reference log-probs of (chosen, rejected), in nats; for each pair id a shape (2,)."""
    found: dict[str, Tensor] = {}
    missing = []
    for row in rows:
        stored = [stored_logprobs(c, champion.weights) for c in (row.chosen, row.rejected)]
        if all(stored):
            found[row.pair_id] = torch.tensor([sum(s) for s in stored if s])
        else:
            missing.append(row)
    with champion.acting() as model, task("reference", len(missing)) as advance:
        for group in split(missing, tokens_per_batch=tokens_per_batch):
            for row, sides in zip(
                group, completion_logprobs(model, [r.branches for r in group]), strict=True
            ):
                found[row.pair_id] = torch.stack([side.sum() for side in sides]).cpu()
            advance(len(group))
    return found
