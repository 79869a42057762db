"""What trains: an adapter on the shared backbone, or a whole copy of the model.

Either way it starts as exactly the champion, and the champion stays as it is.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.models.tied import add_in_place
from trueup.train.config import TrainConfig

__all__ = ["Policy"]

ROLE = "policy"
AVERAGE = "average"


class Policy:
    """The model in training."""

    def __init__(
        self, backbone: Backbone, role: str | None, parameters: dict[str, nn.Parameter]
    ) -> None:
        self.backbone, self.role, self.parameters = backbone, role, parameters
        self.average: dict[str, Tensor] = {}
        """With an `ema` reference: the average's tensors, by the policy's names."""
        self.computes_in_half = False
        """True where the products run in bfloat16 though the weights are float32."""

    @classmethod
    def start(cls, champion: StoredModel, config: TrainConfig) -> "Policy":
        """The champion's own weights, about to learn: its adapter, or on the base one that changes
        nothing yet; with `adapter = "full"` a copy of the model, the adapter merged into it."""
        if config.adapter == "full":
            return cls._whole(champion)
        backbone = champion.backbone
        _give_adapter(backbone, ROLE, champion, config)
        policy = cls(backbone, ROLE, _parameters_of(backbone, ROLE))
        if config.reference == "ema":
            _give_adapter(backbone, AVERAGE, champion, config)
            averages = _parameters_of(backbone, AVERAGE)
            policy.average = {
                name: averages[name.replace(f".{ROLE}.", f".{AVERAGE}.")].data
                for name in policy.parameters
            }
        return policy

    @classmethod
    def _whole(cls, champion: StoredModel) -> "Policy":
        served = champion.backbone
        # a bfloat16 weight swallows small updates: all weights train in float32
        backbone = Backbone.load(served.folder, device=str(served.device), dtype="float32")
        if champion.adapter:
            backbone.merge(champion.adapter)
        add_in_place(backbone.model)
        policy = cls(backbone, None, dict(backbone.model.named_parameters()))
        policy.computes_in_half = served.dtype_name == "bfloat16"
        return policy

    @property
    def is_whole(self) -> bool:
        """True where every weight trains."""
        return self.role is None

    @contextmanager
    def acting(self) -> Iterator[Any]:
        """The network as the policy."""
        # autocast would keep the half copies of weights that change with every step
        half = torch.autocast(
            self.backbone.device.type,
            dtype=torch.bfloat16,
            enabled=self.computes_in_half,
            cache_enabled=False,
        )
        with half, self.backbone.acting_as(self.role) as model:
            yield model

    def acting_as_average(self) -> AbstractContextManager[Any]:
        """The network as the policy's moving average."""
        return self.backbone.acting_as(AVERAGE)

    def save(self, folder: Path, *, card: dict[str, Any]) -> str:
        """Write what was trained as safetensors with a JSON card; returns the weights' name."""
        if self.role is not None:
            return self.backbone.save_adapter(self.role, folder, card=card)
        return self.backbone.save_whole(folder, card=card)

    def end(self) -> None:
        """Give the memory back."""
        for role in (ROLE, AVERAGE):
            self.backbone.detach(role)


def _give_adapter(
    backbone: Backbone, role: str, champion: StoredModel, config: TrainConfig
) -> None:
    if champion.adapter:
        backbone.attach(role, champion.adapter)
        return
    backbone.new_adapter(
        role,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        targets=config.lora_targets,
        seed=config.seed,
    )


def _parameters_of(backbone: Backbone, role: str) -> dict[str, nn.Parameter]:
    return {n: p for n, p in backbone.model.named_parameters() if f".{role}." in n}
