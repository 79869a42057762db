"""How far a candidate may move."""

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["GuardConfig"]


class GuardConfig(StageConfig):
    """Red lines, each a ratio or a distance to the champion on the same held-out prompts."""

    samples_per_prompt: int = Field(default=2, ge=1)
    """Answers drawn per held-out prompt from each model; the A/B test uses the same ones."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest answer drawn."""

    max_length_ratio: float = Field(default=1.3, gt=1)
    """Mean answer length, candidate to champion. The classic sign of a hacked reward is +30 %."""

    min_entropy_ratio: float = Field(default=0.35, gt=0, lt=1)
    """Token entropy, candidate to champion. Alignment sharpens; collapse goes towards zero."""

    max_kl: float = Field(default=30.0, gt=0)
    """Nats per answer between candidate and champion, on the candidate's answers. Short answers
    peak at 3 to 5 in published runs and are ruined beyond 10 to 20; longer ones need more room."""

    max_same_answer_rate: float = Field(default=0.2, gt=0, lt=1)
    """Share of the most common answer among different prompts: what canned text looks like."""

    kl_prompts: int = Field(default=48, ge=2)
    """Held-out prompts whose answers are scored under both models for the KL estimate."""

    seed: int = 7
    """Of the answers drawn."""
