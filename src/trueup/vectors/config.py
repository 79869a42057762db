"""Where vectors are kept, what they are of, and when the index is put in order."""

from typing import Literal

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["VectorsConfig"]


class VectorsConfig(StageConfig):
    """The vector index over captured traffic. Which model makes the vectors is `embedder`."""

    backend: Literal["auto", "lancedb", "pgvector"] = "auto"
    """`auto` is pgvector where the store is Postgres, else LanceDB in `.trueup/vectors`."""

    text: Literal["prompt", "answer"] = "prompt"
    """What is embedded of an interaction: the last message of the user, or the answer. The other
    choice is an index of its own."""

    batch: int = Field(default=512, ge=1)
    """Interactions embedded and committed at once; a kill loses at most this much work."""

    while_serving: bool = False
    """`trueup serve` starts a process of low priority beside it that embeds what is captured."""

    poll_s: float = Field(default=5.0, gt=0)
    """How often that process looks for new interactions, in seconds."""

    approximate_from: int = Field(default=20_000, ge=1_000)
    """Vectors from which an approximate index is built. Below, every search is exact."""

    compact_commits: int = Field(default=64, ge=1)
    """Compact, and remove old versions, after so many commits."""

    compact_hours: float = Field(default=24.0, gt=0)
    """The same after so many hours in which anything was committed."""
