"""Where the gateway listens, and who answers."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from trueup.config import StageConfig, no_password
from trueup.judges.config import EndpointConfig

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

    best_of: int = Field(default=1, ge=1, le=48)
    """Draws for each choice of an answer; the one that `best_of_judge` likes best is given. Streams
    then come in one piece. All draws of a request go side by side, 48 at most."""

    best_of_judge: str = ""
    """Who picks: a judge's name as in `label.judge`, `package.module:function` or an `http://`
    address. What it picks is captured, so it also shapes what is trained on."""

    best_of_timeout_s: float = Field(default=10.0, gt=0)
    """How long the judge may take; then the first draw is given."""

    best_of_endpoint: EndpointConfig = EndpointConfig()
    """Where the `llm` judge lives; its key's variable and time limit also serve an address."""

    @model_validator(mode="after")
    def _somebody_picks(self) -> Self:
        if self.best_of > 1 and not self.best_of_judge:
            raise ValueError("best_of above 1 needs best_of_judge")
        if self.best_of > 1 and self.upstream:
            raise ValueError("best_of is for the local model: unset upstream, or best_of")
        return self

    @model_validator(mode="after")
    def _upstream_is_a_url(self) -> Self:
        if no_password(self.upstream) is not None:
            url = urlsplit(self.upstream or "")
            if url.scheme not in ("http", "https") or not url.netloc:
                raise ValueError("upstream must be a URL like http://127.0.0.1:8000/v1")
        return self
