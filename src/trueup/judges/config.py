"""Naming a judge in the settings."""

from typing import Annotated

from pydantic import AfterValidator, Field

from trueup.config import OPERATIONAL, StageConfig, no_password

__all__ = ["EndpointConfig"]


class EndpointConfig(StageConfig):
    """An OpenAI-compatible server that judges. Its key comes from the environment alone."""

    base_url: Annotated[str, AfterValidator(no_password), OPERATIONAL] = "http://127.0.0.1:8500/v1"
    """Everything before `/chat/completions`."""

    model: str = "judge"
    """The model to ask for."""

    api_key_env: Annotated[str, OPERATIONAL] = "TRUEUP_JUDGE_API_KEY"
    """Name of the environment variable that holds the key; unset means no key."""

    timeout_s: Annotated[float, OPERATIONAL] = Field(default=60.0, gt=0)
    """Patience with one answer."""

    concurrency: Annotated[int, OPERATIONAL] = Field(default=8, ge=1)
    """Requests in flight at once."""

    max_retries: Annotated[int, OPERATIONAL] = Field(default=2, ge=0)
    """Further tries after a failed or unreadable answer."""

    rubric: str = (
        "Which answer is better for the user: correct, grounded in the given context, short?"
    )
    """What the judge is asked to go by."""
