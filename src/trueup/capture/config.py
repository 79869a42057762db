"""What traffic is kept, and what it takes to lose some."""

from typing import Literal

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["CaptureConfig", "CaptureRule"]


class CaptureRule(StageConfig):
    """Traffic by whose it is and where it goes. One pattern that fits is enough; `*` stands for any
    characters, `?` for one, all others for themselves; an empty list fits nothing."""

    tenants: tuple[str, ...] = ()
    """Names of the keys that requests come with."""

    users: tuple[str, ...] = ()
    """The `user` of a request."""

    models: tuple[str, ...] = ()
    """The `model` of a request."""

    routes: tuple[str, ...] = ()
    """Paths: `/v1/chat/completions`, `/v1/traces`, `/v1/logs`."""


class CaptureConfig(StageConfig):
    """What the gateway writes down of the requests it answers."""

    rate: float = Field(default=1.0, ge=0, le=1)
    """Share of traffic that is logged. Which part is decided by a hash of what `by` names, so the
    same request, user or tenant is always in or always out."""

    by: Literal["request", "user", "tenant"] = "request"
    """What is in or out as a whole. Requests without a user or tenant are drawn one by one."""

    salt: str = ""
    """Goes into that hash: another salt draws another part."""

    always: CaptureRule = CaptureRule()
    """Logged whatever the rate."""

    always_errors: bool = True
    """Answers that broke off are logged whatever the rate."""

    never: CaptureRule = CaptureRule()
    """Logged under no circumstances: it goes before `always` and before feedback."""

    recall_s: float = Field(default=900.0, ge=0)
    """How long an answer that the rate left out stays in memory, in seconds: a thumb down or an
    edit within that time brings it in. 0 keeps none."""

    recall_size: int = Field(default=2000, ge=0)
    """Requests that may stay so; the oldest go first, and also beyond `queue_mb`."""

    beside: bool = True
    """In front of an upstream, records are put together, scrubbed and written by a process beside
    the gateway, which then shares no interpreter with requests. False: by a thread in it, for
    machines where 100 MB count more than a millisecond."""

    queue_size: int = Field(default=1000, ge=1)
    """Interactions that may wait to be written. When it is full the newest are dropped and
    counted; the caller never waits."""

    queue_mb: float = Field(default=64.0, gt=0)
    """Megabytes of text that may wait, likewise."""

    commit_ms: float = Field(default=50.0, ge=0)
    """How long a commit waits for company. A killed process loses at most what came in so long
    before, and the commit under way."""

    commit_size: int = Field(default=256, ge=1)
    """Interactions that make a commit due at once."""

    retry_s: float = Field(default=60.0, ge=0)
    """How long a commit is tried again while the store is locked, full or away, in seconds; the
    queue holds what comes in meanwhile. Then the commit is given up and counted."""
