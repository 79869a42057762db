"""Where the gateway listens, who may ask, and who answers."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from trueup.config import StageConfig, no_password
from trueup.judges.config import EndpointConfig

__all__ = ["SCOPES", "KeyConfig", "Scope", "ServeConfig", "UpstreamConfig"]

Scope = Literal["chat", "embeddings", "feedback", "capture", "read", "admin"]
SCOPES: tuple[Scope, ...] = ("chat", "embeddings", "feedback", "capture", "read", "admin")


class UpstreamConfig(StageConfig):
    """One OpenAI-compatible server behind the gateway."""

    url: str
    """Base URL as one would give it to the OpenAI client; a bare host gets `/v1`."""

    name: str = ""
    """What `/health` and the log call it; empty is its host."""

    models: tuple[Annotated[str, Field(min_length=1)], ...] = ("*",)
    """The models it answers for; `*` stands for any letters, `?` for one. The first upstream of the
    list that fits is asked; if it refuses the connection, the next one that fits."""

    key_env: str | None = None
    """Environment variable with the key that it wants. It then replaces the client's."""

    @model_validator(mode="after")
    def _url_is_one(self) -> Self:
        _check_url("url", self.url)
        return self


class KeyConfig(StageConfig):
    """One API key. The secret itself never stands in a file."""

    name: str = Field(min_length=1)
    """Whose it is; this is what the log says."""

    tenant: str | None = None
    """Written into every interaction that comes with it."""

    scopes: tuple[Scope, ...] = ("chat", "embeddings", "feedback")
    """What it may do: `chat` (both kinds of completions), `embeddings`, `feedback`, `capture`
    (traffic that was served elsewhere), `read` (the details of `/health`), `admin` (all of it, and
    every other route of the upstream)."""

    key_env: str | None = None
    """Environment variable that holds the key."""

    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Or the key's SHA-256, as `trueup key` prints it."""

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> Self:
        if (self.key_env is None) == (self.sha256 is None):
            raise ValueError(f"the key '{self.name}' needs either key_env or sha256")
        return self


class ServeConfig(StageConfig):
    """Settings of `trueup serve`."""

    host: str = "127.0.0.1"
    """Address to listen on. Other than loopback is refused while there are no keys."""

    port: int = Field(default=8400, ge=0, le=65535)
    """0 takes any free port."""

    upstream: str | None = None
    """Base URL of an OpenAI-compatible server, as one would give it to the OpenAI client; a bare
    host gets `/v1`. With it the gateway forwards and captures; without, the local model answers."""

    upstream_key_env: str | None = None
    """Environment variable with the key that `upstream` wants. It then replaces the client's."""

    upstreams: tuple[UpstreamConfig, ...] = ()
    """Several upstreams, each for models of its own; `upstream`, if set, is asked for the others.
    In the file each is a table `[[serve.upstreams]]`."""

    upstream_timeout_s: float = Field(default=120.0, gt=0)
    """How long the upstream may be silent."""

    keys: tuple[KeyConfig, ...] = ()
    """API keys. With none, everybody who reaches the port may do everything. In the file each is a
    table `[[serve.keys]]`."""

    allow_open: bool = False
    """Listen on other addresses than loopback without keys: only behind a proxy that asks."""

    client_timeout_s: float = Field(default=30.0, gt=0)
    """How long a client may take to send its headers, then its body, and to read the next part of
    a stream."""

    max_body_mb: float = Field(default=10.0, gt=0)
    """Largest body of a request, in units of 1,048,576 bytes. Routes that are only forwarded have
    no limit: their bodies are not held in memory."""

    access_log: bool = False
    """One JSON line a request on stderr: its id, whose key, status, time. Never a key or a text."""

    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """Of the server's own messages."""

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

    @property
    def has_upstream(self) -> bool:
        """False where the local model answers."""
        return bool(self.upstream or self.upstreams)

    @model_validator(mode="after")
    def _somebody_picks(self) -> Self:
        if self.best_of > 1 and not self.best_of_judge:
            raise ValueError("best_of above 1 needs best_of_judge")
        if self.best_of > 1 and (self.upstream or self.upstreams):
            raise ValueError("best_of is for the local model: unset upstream, or best_of")
        return self

    @model_validator(mode="after")
    def _upstream_is_a_url(self) -> Self:
        _check_url("upstream", self.upstream)
        return self

    @model_validator(mode="after")
    def _keys_have_names_of_their_own(self) -> Self:
        names = [one.name for one in self.keys]
        if len(names) != len(set(names)):
            raise ValueError("two keys have the same name")
        return self


def _check_url(name: str, raw: str | None) -> None:
    if no_password(raw) is None:
        return
    url = urlsplit(raw or "")
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ValueError(f"{name} must be a URL like http://127.0.0.1:8000/v1")
