"""Which labels become pairs."""

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["PairConfig"]


class PairConfig(StageConfig):
    """What a pair must have."""

    min_margin: float = Field(default=0.1, ge=0)
    """Smallest difference of the two scores, in the judge's unit. Below it the label is a tie."""

    held_out: tuple[str, ...] = ()
    """JSONL files whose prompts must never be trained on, besides the A/B suite and gold set."""
