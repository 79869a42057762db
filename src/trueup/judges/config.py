"""Naming a judge in the settings."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from trueup.config import OPERATIONAL, StageConfig, no_password

__all__ = ["AuditConfig", "CheckName", "EndpointConfig"]

CheckName = Literal[
    "unreadable",
    "swap_consistency",
    "position_bias",
    "known_accuracy",
    "null_answer",
    "longest_answer",
    "kappa",
    "balanced_agreement",
    "length_excess",
    "self_preference",
]
"""What an audit may hold a judge to, in the order it is shown."""


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

    form: Literal["pairwise", "pointwise"] = "pairwise"
    """Which of two answers is better, asked in both orders, or a grade from 1 to 10 for each answer
    alone. Pointwise needs N requests for N answers and not N(N-1), and ties more."""

    max_tokens: Annotated[int, OPERATIONAL] = Field(default=512, ge=1)
    """Longest reply: a cap, not a target. A verdict is ten tokens; a judge that thinks first needs
    more, and one that never stops costs all of them."""

    constrain: Annotated[bool, OPERATIONAL] = True
    """Hold replies to a JSON schema (`response_format`) where the server can; one that refuses is
    asked without. Turn it off for a model that must think before it answers."""

    cache: Annotated[bool, OPERATIONAL] = True
    """Keep verdicts in the store and never ask the same question of the same judge twice."""

    input_price_usd: Annotated[float | None, OPERATIONAL] = Field(default=None, ge=0)
    """USD per million input tokens, for the cost that is shown; unset means unknown."""

    output_price_usd: Annotated[float | None, OPERATIONAL] = Field(default=None, ge=0)
    """USD per million output tokens."""

    rubric: str = (
        "Which answer is better for the user: correct, grounded in the given context, short?"
    )
    """What the judge is asked to go by."""


class AuditConfig(StageConfig):
    """What a judge must reach before it may label. A figure on the line passes."""

    before_labels: bool = True
    """Put a language model that was never audited to the built-in questions (at most 120 requests,
    retries aside) before it writes its first label."""

    required: tuple[CheckName, ...] = ()
    """Checks that must be known, whatever the audit: `["kappa"]` lets no judge label that was not
    compared with people. The built-in checks are required where the judge is asked, `kappa` where
    there are people's labels."""

    max_unreadable_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of questions without a readable verdict after all retries. One in ten leaves a tenth of
    the prompts without a label."""

    min_swap_consistency: float = Field(default=0.65, ge=0, le=1)
    """Share of verdicts that stay when the answers change places. MT-Bench measured 0.65 for GPT-4
    on close answers; the built-in pairs are not close. A judge right 90 % of the time reaches
    0.82, one that says A every time 0."""

    max_position_bias: float = Field(default=0.2, ge=0, le=1)
    """Largest difference of the shares of verdicts for the first place and for the second. An
    unbiased judge of accuracy 0.9 stays within 0.14 nineteen times in twenty."""

    min_known_accuracy: float = Field(default=0.75, ge=0, le=1)
    """Points against answers that contradict the context, a tie half a point. Guessing gives
    0.5."""

    max_null_points: float = Field(default=0.25, ge=0, le=1)
    """Points that empty, evasive and pleading answers may win against right ones. Above a quarter
    a policy could learn to say nothing."""

    max_padded_points: float = Field(default=0.4, ge=0, le=1)
    """Points that padded answers may win against plain ones, where half of the padded ones are
    wrong and half say the same: a judge that ties the latter reaches 0.25, one that loves length
    1."""

    min_kappa: float = Field(default=0.4, ge=-1, le=1)
    """Cohen's kappa against the majority of people. Below 0.41 agreement is called fair or worse
    (Landis and Koch); gpt-3.5 reaches 0.49 on PandaLM's data, people among themselves 0.85."""

    min_balanced_agreement: float = Field(default=0.6, ge=0, le=1)
    """Mean of the agreement where people prefer the longer answer and where they prefer the
    shorter one, ties aside. A judge that only looks at length reaches 0.5 either way."""

    max_length_excess: float = Field(default=0.15, ge=0, le=1)
    """How much more often than people, on the same pairs, the judge may prefer the longer answer.
    Humans do so in 64 % of AlpacaEval's pairs and GPT-4 in 68 %."""

    max_self_preference: float = Field(default=0.1, ge=0, le=1)
    """Points its own model's answers may win beyond what people give them. MT-Bench saw 0.1 for
    GPT-4."""
