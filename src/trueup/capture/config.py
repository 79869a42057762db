"""How much traffic is kept."""

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["CaptureConfig"]


class CaptureConfig(StageConfig):
    """What the gateway writes down of the requests it answers."""

    rate: float = Field(default=1.0, ge=0, le=1)
    """Share of requests that is logged. Which ones is decided by a hash of the request's id, so
    the same request is always in or always out."""

    queue_size: int = Field(default=1000, ge=1)
    """Interactions that may wait to be written. When it is full the newest are dropped and
    counted; the caller never waits."""
