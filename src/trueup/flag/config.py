"""What makes an interaction worth a label."""

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["FlagConfig"]


class FlagConfig(StageConfig):
    """Thresholds of the cheap signals."""

    threshold: float = Field(default=0.5, gt=0, le=1)
    """An interaction is flagged when its score reaches this. The score is the worst signal's."""

    max_ungrounded: float = Field(default=0.34, gt=0, le=1)
    """Share of content words missing from the given context at which the signal reaches 0.5."""

    outlier_z: float = Field(default=2.0, gt=0)
    """Robust z-score of the mean log-prob, against all examined traffic, at which the signal
    reaches 0.5."""
