"""What the candidate must not have forgotten."""

from pydantic import Field

from trueup.config import StageConfig
from trueup.judges.config import EndpointConfig

__all__ = ["EvaluateConfig"]


class EvaluateConfig(StageConfig):
    """The gold set and its margins."""

    gold: str = "gold.jsonl"
    """JSONL of gold items, relative to the project."""

    margin: float = Field(default=0.10, gt=0, lt=1)
    """Largest loss of accuracy that cannot be excluded: the 95 % interval of candidate minus
    champion must lie above -margin."""

    budget: float | None = Field(default=0.20, gt=0, le=1)
    """Largest loss since the first model that cannot be excluded, over all promotions together: the
    95 % interval of candidate minus first model must lie above -budget. None or 1 turns it off."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest greedy answer."""

    judge: str = ""
    """Who grades items of the checker `judge`: `llm`, an http address or
    `package.module:function`. Not the judge that labelled. Empty where there are none."""

    endpoint: EndpointConfig = EndpointConfig()
    """Where an `llm` judge lives."""
