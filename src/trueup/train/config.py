"""How a candidate is trained."""

from typing import Literal

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["DPOConfig"]


class DPOConfig(StageConfig):
    """Direct preference optimisation with LoRA. The reference is the champion."""

    method: Literal["dpo"] = "dpo"
    """How the policy learns. DPO (Rafailov et al. 2023) is the one there is so far."""

    min_new_pairs: int = Field(default=500, ge=1)
    """The loop waits until this many new pairs exist. Reward signals need about 2,000 comparisons
    to generalise (Gao et al. 2022); best-of-N pairs from the model's own samples need far fewer."""

    beta: float = Field(default=0.1, gt=0)
    """Pull towards the reference. Usual 0.05 to 0.5; larger stays closer."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak of the schedule: linear warm-up over a tenth of the steps, then linear decay."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs. Offline DPO over-trains: more than 2 to 4 costs more than it gives."""

    pairs_per_step: int = Field(default=8, ge=1)
    """Pairs behind one optimizer step."""

    tokens_per_batch: int = Field(default=4096, ge=64)
    """Most padded tokens in one forward pass; a step's pairs are split to fit, and the gradient
    is the same to rounding."""

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

    save_every_steps: int = Field(default=10, ge=0)
    """Optimizer steps between two saved states to resume from; 0 saves none."""

    seed: int = 0
    """Order of the pairs and the adapter's initial values."""
