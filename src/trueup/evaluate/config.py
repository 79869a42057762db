"""What the candidate must not have forgotten."""

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["EvaluateConfig"]


class EvaluateConfig(StageConfig):
    """The gold set and its margin."""

    gold: str = "gold.jsonl"
    """JSONL of gold items, relative to the project."""

    margin: float = Field(default=0.10, gt=0, lt=1)
    """Largest loss of accuracy that cannot be excluded: the 95 % interval of candidate minus
    champion must lie above -margin."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest greedy answer."""
