"""How the loop closes on itself."""

from typing import Annotated, Literal

from pydantic import Field

from trueup.config import OPERATIONAL, StageConfig
from trueup.judges.config import AuditConfig, EndpointConfig

__all__ = ["RoundsConfig"]


class RoundsConfig(StageConfig):
    """Rounds of iterative DPO, and best-of-N: the model is its own traffic. How a round trains is
    said in `[train]`: method, reference, replay share, epochs."""

    rounds: Annotated[int, OPERATIONAL] = Field(default=3, ge=1)
    """Rounds in one call; each starts from what the last one gave."""

    reward: str = "house-style"
    """What ranks the answers: a judge's name, a reward checkpoint's id, `package.module:function`
    or an `http://` address. It must not be the scorer that promotes."""

    endpoint: EndpointConfig = EndpointConfig()
    """Where the `llm` judge lives; its key's variable and time limit also serve an address."""

    audit: Annotated[AuditConfig, OPERATIONAL] = AuditConfig()
    """What a language model must reach before it may rank."""

    prompts: str = ""
    """A file of prompts (JSONL with `messages`; of a file with `split`, the lines of `train`).
    Empty: the prompts of all traffic, as they were at the first call for a champion and these
    settings."""

    max_prompts: int | None = Field(default=None, ge=1)
    """Prompts of one round; by default all of them. With fewer, each round takes the next ones."""

    num_samples: int = Field(default=8, ge=2)
    """Answers a prompt. Eight of them, best against worst, is RLHF Workflow's setting."""

    pairs: Literal["best_vs_worst", "best_vs_random", "all"] = "best_vs_worst"
    """What an answer is held against: the worst, a random lesser one, or every lesser one."""

    max_tokens: int = Field(default=128, ge=1)
    """Longest answer drawn."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Of each round; by default `train.learning_rate`. Rounds add up: at the rate that suits a
    single run, three of them can sharpen a policy until it has no entropy left."""

    merge: float = Field(default=1.0, gt=0, le=1)
    """Share of a round's change of the weights that is kept. 0.5 goes half way, which forgets less
    and learns less."""

    max_skip_rate: Annotated[float, OPERATIONAL] = Field(default=0.5, ge=0, lt=1)
    """Share of a round's prompts whose answers may stay without a score."""

    reward_timeout_s: Annotated[float, OPERATIONAL] = Field(default=60.0, gt=0)
    """Patience with the scores of one prompt's answers."""

    seed: int = 0
    """Of the answers drawn, and of random rivals."""
