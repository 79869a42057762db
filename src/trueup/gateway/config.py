"""Where the gateway listens, and who answers."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from trueup.config import StageConfig, no_password

__all__ = ["ServeConfig"]


class ServeConfig(StageConfig):
    """Settings of `trueup serve`."""

    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: other than loopback only behind a proxy."""

    port: int = Field(default=8400, ge=0, le=65535)
    """0 takes any free port."""

    upstream: str | None = None
    """Base URL of an OpenAI-compatible server, as one would give it to the OpenAI client; a bare
    host gets `/v1`. With it the gateway forwards and captures; without, the local model answers."""

    upstream_timeout_s: float = Field(default=120.0, gt=0)
    """How long the upstream may be silent."""

    model_name: str = Field(default="champion", min_length=1)
    """What the local model is called in requests and in `/v1/models`."""

    max_tokens: int = Field(default=256, ge=1)
    """Length of an answer that asks for none, and the most that one gets that asks for more."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """For requests that name none. At 1 the stored log-probs are those of the distribution the
    answer was drawn from."""

    @model_validator(mode="after")
    def _upstream_is_a_url(self) -> Self:
        if no_password(self.upstream) is not None:
            url = urlsplit(self.upstream or "")
            if url.scheme not in ("http", "https") or not url.netloc:
                raise ValueError("upstream must be a URL like http://127.0.0.1:8000/v1")
        return self
