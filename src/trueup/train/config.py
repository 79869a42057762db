"""How a candidate is trained."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trueup.config import OPERATIONAL, StageConfig
from trueup.train.online.choices import kl_estimator, kl_in
from trueup.train.online.config import OnlineConfig

__all__ = ["ONLINE", "Allowed", "Method", "TrainConfig"]

Method = Literal[
    "dpo",
    "robust_dpo",
    "soft_dpo",
    "ipo",
    "ipo_norm",
    "hinge",
    "ln_dpo",
    "rdpo",
    "ld_dpo",
    "dpop",
    "rpo",
    "simpo",
    "orpo",
    "kto",
    "sft",
    "reward",
    "ppo",
    "rloo",
    "grpo",
    "dr_grpo",
    "online_dpo",
]

ONLINE = ("ppo", "rloo", "grpo", "dr_grpo", "online_dpo")
"""Methods that learn from answers of their own."""

Allowed = Literal["lost-eos", "other-template", "prompt-loss", "equal-pair"]
"""What the linter stops training for, by the name that lets it through."""


class TrainConfig(StageConfig):
    """One optimiser, one kernel, many losses. Fields that a method does not use are ignored."""

    method: Method = "dpo"
    """How the policy learns. Pairs: `dpo` (conservative with `label_smoothing`), `robust_dpo`,
    `soft_dpo`, `ipo` (summed) and `ipo_norm` (per token), `hinge`, `ln_dpo`, `rdpo`, `ld_dpo`,
    `dpop`, `rpo`; without a reference `simpo`, `orpo`. Single answers: `kto`, `sft`. `reward`
    trains a reward model, which never serves. From answers of its own, scored by
    `online.reward`: `ppo`, `rloo`, `grpo`, `dr_grpo`, `online_dpo`."""

    online: OnlineConfig = OnlineConfig()
    """Rollouts, reward and update of the online methods."""

    min_new_pairs: int = Field(default=500, ge=1)
    """The loop waits until this many new pairs exist. Reward signals need about 2,000 comparisons
    to generalise (Gao et al. 2022); best-of-N pairs from the model's own samples need far fewer."""

    beta: float = Field(default=0.1, gt=0)
    """Pull towards the reference. Usual 0.05 to 0.5; larger stays closer. SimPO wants 2 to 10,
    ORPO and `ln_dpo` 0.1 to 10: theirs multiply a mean over tokens, not a sum."""

    label_smoothing: float | Literal["auto"] = 0.0
    """Share of labels believed to be wrong, 0 to below 0.5, for `dpo` (then conservative DPO) and
    `robust_dpo`. `auto` takes the estimate from repeated comparisons and stops if there is none."""

    margin_scale: float = Field(default=1.0, gt=0)
    """`soft_dpo`: the label's margin that makes it 73 % sure."""

    alpha: float | Literal["auto"] = 0.01
    """`rdpo`: reward taken off per token of length. `auto` cancels the labels' own length
    preference."""

    ld_alpha: float = Field(default=0.5, ge=0, le=1)
    """`ld_dpo`: weight of tokens beyond the shorter answer's length; 1 is DPO."""

    gamma: float = Field(default=0.5, ge=0)
    """`simpo`: margin the chosen answer must lead by, after `beta`."""

    penalty: float = Field(default=1.0, ge=0)
    """`dpop`: how hard a falling chosen log-prob counts. 5 and more can freeze learning."""

    nll_weight: float = Field(default=0.2, ge=0)
    """`rpo`: weight of the likelihood of the chosen answers beside DPO."""

    plus: dict[Method, float] = Field(default={})
    """Further losses on the same pairs, each with its weight: `{ sft = 0.2 }` beside `dpo`."""

    weighting: Literal["none", "wpo"] = "none"
    """`wpo` weighs each pair by how likely the policy itself is to write it, for old or foreign
    pairs."""

    desirable_weight: float = Field(default=1.0, gt=0)
    """`kto`: weight of desirable answers."""

    undesirable_weight: float = Field(default=1.0, gt=0)
    """`kto`: weight of undesirable ones; keep weight times count of both within 1 to 4/3."""

    centering: float = Field(default=0.01, ge=0)
    """`reward`: pull of each pair's summed scores towards zero."""

    reward_models: int = Field(default=1, ge=1)
    """`reward`: members of the ensemble, each with another order and start."""

    reference: str = "previous"
    """What the policy is held to: `previous` (the champion), `base`, `ema` (a moving average of
    the policy), or a checkpoint's id."""

    ema_decay: float = Field(default=0.99, gt=0, lt=1)
    """`reference = "ema"`: share of the old average kept at every step."""

    adapter: Literal["lora", "full"] = "lora"
    """`lora` trains a few percent of the weights on the shared base; `full` trains all of them and
    makes a new base."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak of the schedule. Full fine-tuning wants a tenth to a hundredth of LoRA's."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after the warm-up."""

    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps over which the rate rises."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay of the weights, as a share of the rate."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs. Offline DPO over-trains: more than 2 to 4 costs more than it gives."""

    pairs_per_step: int = Field(default=8, ge=1)
    """Pairs behind one optimizer step."""

    tokens_per_batch: int | None = Field(default=None, ge=64)
    """Most padded tokens in one forward pass; a step's pairs are split to fit, and the gradient
    is the same to rounding. By default 512 on a CPU, where wider
    passes only cost memory, and 16,384 on a GPU."""

    checkpointing: bool = False
    """Compute activations again in the backward pass: a third slower, a fraction of the memory."""

    max_tokens: int = Field(default=2048, ge=16)
    """A pair whose prompt and two completions are longer is skipped, never truncated."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping, by global norm."""

    lora_rank: int = Field(default=16, ge=1)
    """Of a first adapter. Later ones continue the champion's and keep its rank."""

    lora_alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapter: its product is multiplied by alpha / rank."""

    lora_targets: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter, or `all-linear`."""

    short_share: float = Field(default=0.0, ge=0, lt=1)
    """Pairs whose chosen answer is the shorter one are repeated until they make up this share."""

    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training set drawn from pairs of earlier turns, against forgetting."""

    eval_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the prompts held out to measure on, chosen by their hash, so that a prompt never
    changes sides. Reward models hold out at least a tenth."""

    eval_every_steps: int = Field(default=10, ge=1)
    """Optimizer steps between two measurements on held-out pairs and on fresh answers."""

    eval_answers: int = Field(default=8, ge=0)
    """Held-out prompts the policy answers at each measurement, for length, entropy and KL."""

    max_chosen_drop: float | None = Field(default=None, gt=0)
    """Stop when held-out chosen answers have lost this many nats a token since the start. 0.1 is
    the red line of the guards; pair accuracy would go on rising."""

    max_kl: float | None = Field(default=None, gt=0)
    """Stop when the policy's own answers are this many nats from the reference."""

    allow: tuple[Allowed, ...] = ()
    """Findings of the linter that may pass, by name."""

    save_every_steps: Annotated[int, OPERATIONAL] = Field(default=10, ge=0)
    """Optimizer steps between two saved states to resume from; 0 saves none."""

    seed: int = 0
    """Order of the pairs and the adapter's initial values."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        smoothing = self.label_smoothing
        if smoothing != "auto" and not 0 <= float(smoothing) < 0.5:
            raise ValueError("label_smoothing is a share from 0 to below 0.5")
        if self.method == "robust_dpo" and smoothing == 0:
            raise ValueError("robust_dpo needs label_smoothing above 0: it divides by 1 - 2e")
        if self.alpha != "auto" and float(self.alpha) < 0:
            raise ValueError("alpha is at least 0: a negative one would reward length")
        if self.max_kl is not None and self.eval_answers == 0:
            raise ValueError("max_kl is measured on answers: set eval_answers above 0")
        if self.adapter == "full" and self.reference == "ema":
            raise ValueError("reference 'ema' needs an adapter: set adapter to 'lora'")
        if self.adapter == "full" and self.method == "reward":
            raise ValueError("a reward model is an adapter with a head: set adapter to 'lora'")
        alone = ({"kto", "reward", *ONLINE} & {self.method, *self.plus}) | ({"sft"} & {self.method})
        if alone and self.plus:
            raise ValueError(f"{sorted(alone)[0]} cannot be summed with other losses")
        self._fits_online()
        return self

    def _fits_online(self) -> None:
        if self.method not in ONLINE:
            return
        online = self.online
        if self.method != "ppo" and online.num_samples < 2:
            raise ValueError(f"{self.method} compares answers: set online.num_samples to 2 or more")
        if self.adapter == "full" and online.engine.kind == "vllm":
            raise ValueError(
                "a vllm engine loads adapters, not whole models: set adapter to 'lora', or "
                "online.engine.kind to 'local'"
            )
        if self.method == "rloo" and online.importance == "token":
            raise ValueError("rloo weighs whole answers: set online.importance to 'sequence'")
        if self.method != "ppo" and online.step_rewards:
            raise ValueError(f"{self.method} has one reward an answer: unset online.step_rewards")
        if self.method == "online_dpo" and "auto" in (self.label_smoothing, self.alpha):
            raise ValueError("'auto' is estimated from a data set's labels: online_dpo has none")
        if self.method == "online_dpo" and (online.target_kl or online.kl_target):
            raise ValueError(
                "online_dpo has no target_kl or kl_target: beta is its price, max_kl its limit"
            )
        at = kl_in(self.method, online), kl_estimator(self.method, online)
        if at == ("loss", "k1"):
            raise ValueError("k1 in the loss has no gradient on average: use k2 or k3 there")
