"""How a policy learns from its own answers."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trueup.config import OPERATIONAL, StageConfig, no_password
from trueup.judges.config import AuditConfig, EndpointConfig

__all__ = ["EngineConfig", "Estimator", "OnlineConfig"]

Estimator = Literal["k1", "k2", "k3"]


class EngineConfig(StageConfig):
    """What draws the rollouts. Fields but `kind` are for a server; its key comes from the
    environment alone."""

    kind: Literal["local", "vllm"] = "local"
    """`local` draws on the network that trains. `vllm` asks a vLLM server that runs the same base
    and loads the policy's adapter before every batch."""

    base_url: Annotated[str, AfterValidator(no_password), OPERATIONAL] = "http://127.0.0.1:8000/v1"
    """Everything before `/completions`. The server must see the project's folder under the same
    path."""

    adapter: Annotated[str, OPERATIONAL] = Field(default="policy", min_length=1)
    """Name under which the server holds the policy. Two runs on one server need two."""

    api_key_env: Annotated[str, OPERATIONAL] = "TRUEUP_ENGINE_API_KEY"
    """Name of the environment variable that holds the key; unset means no key."""

    timeout_s: Annotated[float, OPERATIONAL] = Field(default=600.0, gt=0)
    """Patience with all answers to one prompt."""

    concurrency: Annotated[int, OPERATIONAL] = Field(default=64, ge=1)
    """Prompts in flight at once. The server batches them; more than it runs only wait there."""

    max_retries: Annotated[int, OPERATIONAL] = Field(default=2, ge=0)
    """Further tries after a failed request."""


class OnlineConfig(StageConfig):
    """The rollouts, their reward, and the update. Read by `ppo`, `rloo`, `grpo`, `dr_grpo` and
    `online_dpo` alone; fields that a method does not use are ignored."""

    reward: str = ""
    """What scores answers: a judge's name as in `label.judge`, the id of a checkpoint that was
    trained with `--method reward`, `package.module:function`, or an `http://` address that takes
    prompt and completions and returns scores. Up to eight prompts are scored at once, each in a
    thread. It must not be the scorer that promotes."""

    reward_members: Literal["mean", "min", "uwo"] = "mean"
    """How a reward checkpoint's members are combined; `min` and `uwo` are sceptical."""

    endpoint: EndpointConfig = EndpointConfig()
    """Where the `llm` judge lives; its key's variable and time limit also serve an address."""

    audit: Annotated[AuditConfig, OPERATIONAL] = AuditConfig()
    """What a language model must reach before its verdicts are a reward."""

    prompts: Annotated[str, OPERATIONAL] = ""
    """A file of prompts to answer (JSONL with `messages`; of a file with `split`, the lines of
    `train`). Empty: the prompts of the data set, or of all traffic."""

    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts answered for one batch of rollouts."""

    num_samples: int = Field(default=4, ge=1)
    """Answers a prompt. RLOO, GRPO and online DPO compare them: at least 2."""

    steps: int | None = Field(default=None, ge=1)
    """Batches of rollouts. By default `train.epochs` passes over the prompts."""

    max_tokens: int = Field(default=128, ge=1)
    """Longest answer."""

    updates_per_batch: int = Field(default=1, ge=1)
    """Passes over a batch of rollouts. PPO's papers use 4; each further one is more off-policy."""

    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps in one pass over a batch, at most one a prompt."""

    target_kl: float | None = Field(default=None, gt=0)
    """Take no further update of a batch once the policy has moved this many nats a token from the
    one that drew it. Not for `online_dpo`."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """How far a probability may fall against the rollout's before its gradient stops."""

    clip_high: float = Field(default=0.2, gt=0)
    """How far it may rise. 0.28 with 0.2 below is DAPO's clip-higher: more exploration."""

    kl_coef: float = Field(default=0.05, ge=0)
    """Price of a nat away from the reference. 0 has no reference at all."""

    kl_in: Literal["reward", "loss"] | None = None
    """Where the price is paid. By default in the reward for PPO and RLOO, in the loss for GRPO."""

    kl_estimator: Estimator | None = None
    """How a nat is estimated. By default k1 in the reward, k3 in the loss as GRPO has it. k3 in the
    loss pulls towards another optimum, k2 towards the usual one; k1 in the loss pulls nowhere."""

    kl_target: float | None = Field(default=None, gt=0)
    """Adapt `kl_coef` so that answers stay about this many nats from the reference."""

    kl_horizon: int = Field(default=10_000, ge=1)
    """Answers over which the adaptation works; shorter is quicker and less steady."""

    normalize_reward: bool = False
    """Scores in standard deviations of all scores so far, around their mean."""

    reward_clip: float | None = Field(default=None, gt=0)
    """Scores beyond plus or minus this are cut to it, after normalising."""

    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Taken off the score of an answer that did not end by itself."""

    length_penalty: float = Field(default=0.0, ge=0)
    """Taken off the score for every token."""

    step_rewards: bool = False
    """PPO: a reward at the end of every line, what the answer up to there gained in score. Needs a
    reward that scores steps, as reward checkpoints do."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """PPO: discount of later rewards."""

    lam: float = Field(default=0.95, ge=0, le=1)
    """PPO: 1 trusts the rewards alone, 0 the value function alone."""

    whiten: bool = True
    """PPO: advantages of a batch on mean 0 and deviation 1."""

    value: Literal["head", "adapter", "full"] = "head"
    """PPO: the value function is a head on the policy's own states, a head on an adapter of its
    own, or a model of its own."""

    value_coef: float = Field(default=0.1, ge=0)
    """PPO: weight of the value loss, which is counted in standard deviations of the rewards."""

    value_clip: float | None = Field(default=0.2, gt=0)
    """PPO: most that a value may move within a batch, in standard deviations of the rewards."""

    entropy_coef: float = Field(default=0.0, ge=0)
    """Reward for a nat of entropy a token. Above 0 the whole distribution is computed again."""

    loss: Literal["dpo", "ipo", "ipo_norm", "hinge", "ln_dpo", "rdpo", "rpo", "dpop"] = "dpo"
    """Online DPO: what is minimised on the best and the worst answer to a prompt."""

    engine: EngineConfig = EngineConfig()
    """What draws the rollouts."""

    importance: Literal["none", "token", "sequence"] | None = None
    """Corrects for an engine whose log-probs differ from the trainer's: each token's (or whole
    answer's) loss is weighed by trainer / engine probability, truncated at `importance_cap`. By
    default `none` with the local engine, with a server `token`, for RLOO `sequence`."""

    importance_cap: float = Field(default=2.0, ge=1)
    """Largest importance weight."""

    reward_timeout_s: Annotated[float, OPERATIONAL] = Field(default=60.0, gt=0)
    """Patience with the scores of one prompt's answers. Where 32 calls at once have outlived it,
    training stops, ready to be resumed."""

    max_skip_rate: Annotated[float, OPERATIONAL] = Field(default=0.5, ge=0, lt=1)
    """Share of a batch's prompts whose answers may stay without a score; above it training stops,
    ready to be resumed."""

    offload: Annotated[bool, OPERATIONAL] = False
    """On a GPU: keep models that are not in use (a separate value model, or the reference beside a
    full policy) in main memory."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target adapts kl_coef, which starts above 0")
        if self.minibatches > self.prompts_per_step:
            raise ValueError(
                f"{self.minibatches} minibatches cannot be cut from "
                f"{self.prompts_per_step} prompts_per_step"
            )
        return self
