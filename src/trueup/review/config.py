"""Where the review page listens, what people are asked, and how many of them."""

from typing import Annotated

from pydantic import AfterValidator, Field

from trueup.config import StageConfig

__all__ = ["ReviewConfig"]


OUTCOMES = {"both bad", "withdrawn", "unsettled", "gold question"}
"""What reasons of labels say already."""


def _no_outcome(rubric: tuple[str, ...]) -> tuple[str, ...]:
    if taken := OUTCOMES.intersection(rubric):
        raise ValueError(f"{', '.join(sorted(taken))}: means something else as a reason")
    return rubric


class ReviewConfig(StageConfig):
    """Settings of `trueup review`."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback only once somebody can log in, and behind a proxy that
    speaks HTTPS."""

    port: int = Field(default=8410, ge=0, le=65535)
    """0 takes any free port."""

    https: bool = False
    """True where a proxy in front speaks HTTPS: the cookies then never travel without it."""

    rubric: Annotated[tuple[str, ...], AfterValidator(_no_outcome)] = (
        "Wrong",
        "Made up",
        "Misses the question",
        "Too long",
        "Unsafe",
    )
    """What may be wrong with an answer, to tick beside it. The ticks are the label's reasons."""

    guidelines: str = ""
    """What annotators should know, shown above every task."""

    gold_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of gold questions among the tasks a person gets, while there are any."""

    lease_s: float = Field(default=900.0, gt=0)
    """How long a task that somebody opened is kept from others."""

    session_h: float = Field(default=12.0, gt=0)
    """Hours until one has to log in again."""
