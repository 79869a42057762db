"""How a candidate is tried against the champion."""

from pydantic import Field

from trueup.config import StageConfig
from trueup.judges.config import EndpointConfig

__all__ = ["ABConfig"]


class ABConfig(StageConfig):
    """The head-to-head on held-out prompts."""

    prompts: str = "heldout.jsonl"
    """JSONL of held-out prompts, relative to the project. Never trained on."""

    scorer: str = "facts"
    """Who judges: `facts`, `llm`, or `package.module:function`. Not the judge that labelled."""

    endpoint: EndpointConfig = EndpointConfig()
    """Where an `llm` scorer lives."""

    min_evidence: float = Field(default=20.0, gt=1)
    """The e-value to promote at. 20 bounds the chance of promoting a candidate that is not better
    by 1/20 however often one looks at one set of answers; each further try of the same candidate,
    with other answers or another scorer, needs as much again."""
