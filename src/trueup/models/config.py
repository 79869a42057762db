"""Which model is aligned."""

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["ModelConfig"]


class ModelConfig(StageConfig):
    """The base that every adapter of the project sits on."""

    base: str = "smollm2-135m-instruct"
    """A name from the catalogue, a local folder, or a hub repository."""

    device: str | None = None
    """`cpu`, `cuda`, `cuda:1`; by default a GPU where there is one."""

    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads for matrix products; by default what torch chooses."""
