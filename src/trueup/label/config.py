"""Who labels, and how many answers they compare."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from trueup.config import OPERATIONAL, StageConfig, no_password
from trueup.judges.config import AuditConfig, EndpointConfig

__all__ = ["PEOPLE", "LabelConfig", "LabelStudioConfig"]

PEOPLE = "people"
"""The setting `label.judge` that asks nobody but people."""


class LabelStudioConfig(StageConfig):
    """A Label Studio server where people label. Its token comes from the environment alone."""

    url: Annotated[str, AfterValidator(no_password), OPERATIONAL] = "http://127.0.0.1:8080"
    """Where the server is, without `/api`."""

    project: str = Field(default="trueup", min_length=3, max_length=50)
    """Title of the project there; it is made where there is none."""

    api_key_env: Annotated[str, OPERATIONAL] = "LABEL_STUDIO_API_KEY"
    """Name of the environment variable that holds the token: a personal access token, or a legacy
    one."""

    webhook_secret_env: Annotated[str, OPERATIONAL] = "LABEL_STUDIO_WEBHOOK_SECRET"
    """Name of the environment variable that holds what webhooks must bring along."""

    annotators: dict[str, str] = Field(default={})
    """Names for accounts there, by e-mail address; an account that is not named is its address."""

    batch_size: Annotated[int, OPERATIONAL] = Field(default=100, ge=1, le=1000)
    """Tasks a request, both ways."""

    timeout_s: Annotated[float, OPERATIONAL] = Field(default=60.0, gt=0)
    """Patience with one answer."""

    max_retries: Annotated[int, OPERATIONAL] = Field(default=4, ge=0)
    """Further tries where the server is busy or out of reach."""


class LabelConfig(StageConfig):
    """The labelling judge and its candidates."""

    judge: str = "house-style"
    """`house-style`, `llm`, `llm:MODEL`, `panel:NAME,NAME`, or `package.module:function`. Never the
    scorer that promotes. With `people`, flags become tasks, and labels come of their votes."""

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

    pairs_per_prompt: int = Field(default=1, ge=1)
    """For people: comparisons per flagged prompt, of the logged answer with the samples that differ
    from it most; no more than `num_candidates` - 1."""

    overlap: int = Field(default=1, ge=1)
    """Votes of different people that a task needs before it is settled."""

    settle: Literal["dawid-skene", "majority"] = "dawid-skene"
    """How many votes become one label: by what each annotator was found to be worth, or by a
    majority of equals."""

    min_confidence: float = Field(default=0.55, ge=0, le=1)
    """Probability (with `majority`, share of votes) below which a task stays unsettled and waits
    for another look."""

    min_gold_accuracy: float = Field(default=0.6, ge=0, le=1)
    """Share of gold questions that an annotator must answer as known; below it, none of their
    votes count."""

    min_gold_votes: int = Field(default=5, ge=1)
    """Gold questions an annotator must have answered before `min_gold_accuracy` is asked of
    them."""

    label_studio: LabelStudioConfig = LabelStudioConfig()
    """Where people label if not on the review page."""
