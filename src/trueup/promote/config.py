"""Which gates a promotion needs, and how often the chain of promotions is checked."""

from typing import Literal

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["PromoteConfig"]

Gate = Literal["guard", "evaluate", "ab"]


class PromoteConfig(StageConfig):
    """A candidate is promoted when each of these gates has passed it against today's champion."""

    gates: tuple[Gate, ...] = Field(default=("guard", "evaluate", "ab"), min_length=1)
    """Missing reports refuse."""

    cumulative_every: int = Field(default=4, ge=1)
    """At every so many promotions the candidate must also meet the first release, and the last one
    that a person approved, head to head. 1 is always."""
