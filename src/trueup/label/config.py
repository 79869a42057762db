"""Who labels, and how many answers they compare."""

from pydantic import Field

from trueup.config import StageConfig
from trueup.judges.config import AuditConfig, EndpointConfig

__all__ = ["LabelConfig"]


class LabelConfig(StageConfig):
    """The labelling judge and its candidates."""

    judge: str = "house-style"
    """`house-style`, `llm`, `llm:MODEL`, `panel:NAME,NAME`, or `package.module:function`. Never the
    scorer that promotes."""

    endpoint: EndpointConfig = EndpointConfig()
    """Where the `llm` judge lives."""

    audit: AuditConfig = AuditConfig()
    """What a judge must reach before it may label."""

    num_candidates: int = Field(default=4, ge=2)
    """Answers ranked per flagged prompt: the logged one and fresh samples from the champion."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the fresh samples. At 1 they are draws from the reference itself."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest fresh sample."""

    max_prompts: int = Field(default=2000, ge=1)
    """Most prompts labelled in one call; the worst flags first."""

    max_skip_rate: float = Field(default=0.05, ge=0, le=1)
    """Share of prompts whose verdict may stay unreadable; above it labelling stops. One always
    may, unless this is 0."""

    seed: int = 0
    """Of the fresh samples."""
