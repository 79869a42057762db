"""How a candidate is tried against the champion."""

from typing import Literal

from pydantic import Field, PositiveFloat

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

    fdr: float = Field(default=0.1, gt=0, lt=1)
    """The share of promotions that may be false in the long run. The ledger turns it into the
    e-value that each A/B test must reach, by its place among all tests of this store and the
    promotions before it."""

    ledger: Literal["e-lond", "lord++"] = "e-lond"
    """How: `e-lond` holds whatever weeks have in common, such as their prompts; `lord++` asks for
    less after each promotion and holds only if weeks are independent."""

    min_evidence: float = Field(default=20.0, gt=1)
    """The least e-value to promote at, whatever the ledger asks. 20 bounds the chance of promoting
    one candidate that is not better by 1/20."""

    unknown_length: Literal["refuse", "warn"] = "refuse"
    """What becomes of a winner whose answers are longer nearly everywhere, so that votes cannot
    tell merit from length. `warn` is for scorers that are known not to look at length."""

    stratum_weights: dict[str, PositiveFloat] = Field(default={})
    """The share of each stratum of the prompts in the traffic, in any unit, where the suite has
    other shares. Empty counts every prompt alike."""
