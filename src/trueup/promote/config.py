"""Which gates a promotion needs."""

from typing import Literal

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["PromoteConfig"]

Gate = Literal["guard", "evaluate", "ab"]


class PromoteConfig(StageConfig):
    """A candidate is promoted when each of these gates has passed it against today's champion."""

    gates: tuple[Gate, ...] = Field(default=("guard", "evaluate", "ab"), min_length=1)
    """Missing reports refuse."""
