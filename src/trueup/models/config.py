"""Which model is aligned."""

from typing import Literal

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["DtypeName", "ModelConfig"]

DtypeName = Literal["auto", "float32", "bfloat16", "fastest"]


class ModelConfig(StageConfig):
    """The base that every adapter of the project sits on."""

    base: str = "smollm2-135m-instruct"
    """A name from the catalogue, a local folder, or a hub repository."""

    device: str | None = None
    """`cpu`, `cuda`, `cuda:1`; by default a GPU where there is one."""

    dtype: DtypeName = "auto"
    """`auto` is bfloat16 on a GPU that computes in it and float32 elsewhere; `fastest` measures
    this machine and takes bfloat16 where it pays. On a CPU float32 keeps stored log-probs exact."""

    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads for matrix products; by default what torch chooses."""
