"""How far an engine's log-probs are from the trainer's, and how far they may be.

The same weights in another kernel or dtype differ by rounding: 3e-6 nats a token on average where
both compute in float32, 0.02 to 0.04 where the engine computes in bfloat16. Importance weights
correct for that. Another base, template or adapter differs by far more, and no weight mends it:
what was drawn is then another model's.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trueup.errors import ConfigError, IdentityError, TrainingError
from trueup.train.data import Row

__all__ = ["MAX_GAP", "MAX_UNCORRECTED_GAP", "EngineGap", "check_engine", "engine_gap", "need_near"]

MAX_GAP = 0.1
"""Mean nats a token. Above it the engine is taken for another model."""
MAX_UNCORRECTED_GAP = 1e-3
"""The same without importance weights: half-precision engines are above it, float32 ones below."""

CAUSES = (
    "compare the server's dtype with the trainer's and its base model with model.base, see that "
    "no other run loads an adapter of this name, and that --logprobs-mode is raw_logprobs"
)


class EngineGap(NamedTuple):
    """|log p trainer - log p engine| over all drawn tokens, in nats."""

    mean: float
    most: float


def engine_gap(rows: Sequence[Row], trainer: Mapping[str, Sequence[Tensor]]) -> EngineGap:
    """Of answers that carry the engine's log-probs; `trainer` has the policy's own by row id."""
    gaps = torch.cat(
        [
            (ours - torch.tensor(one.logprobs)).abs()
            for row in rows
            for ours, one in zip(trainer[row.id], row.completions, strict=True)
        ]
    ).double()
    return EngineGap(float(gaps.mean()), float(gaps.max()))


def check_engine(gap: EngineGap, importance: str) -> dict[str, float]:
    """Stop before the first step unless what the engine draws from is the policy.

    Returns:
        The figures: `engine_gap`, the mean, and `engine_gap_max`.

    Raises:
        IdentityError: it is another model.
        ConfigError: it is the policy to less than rounding, and nothing would correct for that.
    """
    if not gap.mean <= MAX_GAP:
        raise IdentityError(
            "The engine does not draw from the policy",
            got=f"log-probs {_said(gap)}",
            expected=f"at most {MAX_GAP:g} a token on average",
            next=CAUSES,
        )
    if importance == "none" and not gap.mean <= MAX_UNCORRECTED_GAP:
        raise ConfigError(
            "The engine's log-probs are not the trainer's, and nothing would correct for it",
            got=f'log-probs {_said(gap)}, with train.online.importance = "none"',
            expected=f"at most {MAX_UNCORRECTED_GAP:g} a token on average, or a correction",
            next="unset train.online.importance, or run the server in the trainer's dtype",
        )
    return {"engine_gap": gap.mean, "engine_gap_max": gap.most}


def need_near(gap: EngineGap) -> None:
    """Stop between two steps where the engine has lost the policy.

    Raises:
        TrainingError: then what is trained so far is kept, and the run can be resumed.
    """
    if not gap.mean <= MAX_GAP:
        raise TrainingError(
            "The engine no longer draws from the policy",
            got=f"log-probs {_said(gap)}",
            expected=f"at most {MAX_GAP:g} a token on average",
            next=CAUSES,
        )


def _said(gap: EngineGap) -> str:
    return f"{gap.mean:.2g} nats a token apart on average, {gap.most:.2g} at most"
