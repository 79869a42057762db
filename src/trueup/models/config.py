"""Which model is aligned, and which one turns texts into vectors."""

from typing import Annotated, Literal

from pydantic import Field

from trueup.config import OPERATIONAL, StageConfig

__all__ = ["DtypeName", "EmbedderConfig", "ModelConfig"]

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


class EmbedderConfig(StageConfig):
    """What turns texts into vectors, for the guard's diversity and for distribution shift."""

    name: str = "auto"
    """`auto` takes all-MiniLM-L6-v2 where it was pulled or installed and `lexical` elsewhere;
    `lexical` hashes character n-grams and needs no model; or a folder in the layout of
    sentence-transformers, a catalogue name, an OpenAI-compatible `http://…/v1` address."""

    model: str = "embedder"
    """The model to ask an address for."""

    api_key_env: Annotated[str, OPERATIONAL] = "TRUEUP_EMBEDDER_API_KEY"
    """Name of the environment variable that holds the key; unset means no key."""

    timeout_s: Annotated[float, OPERATIONAL] = Field(default=60.0, gt=0)
    """Patience with one batch of texts."""

    max_retries: Annotated[int, OPERATIONAL] = Field(default=2, ge=0)
    """Further tries after a failed answer."""
