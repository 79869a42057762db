"""PPO's value function: a head on the policy's own states, on an adapter of its own, or on a model
of its own."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from trueup.models.backbone import Backbone
from trueup.models.logprobs import completion_values
from trueup.models.offload import Offload
from trueup.models.stored import StoredModel
from trueup.models.value import ValueHead
from trueup.train.config import TrainConfig
from trueup.train.data import split
from trueup.train.online.rollouts import Group
from trueup.train.online.shaping import RunningScale
from trueup.train.policy import Policy

__all__ = ["Critic"]

ROLE = "value"


class Critic:
    """Values before each token of an answer."""

    def __init__(
        self,
        acting: Callable[[], AbstractContextManager[Any]],
        head: ValueHead,
        below: dict[str, nn.Parameter],
        *,
        shares_states: bool,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        """`below` is what learns besides the head; with `shares_states` the policy's own, which the
        policy's loss already moves."""
        self.acting, self.head, self.shares_states, self.end = acting, head, shares_states, end
        self.scale = RunningScale()
        self.parameters = {f"value.{name}": p for name, p in head.named_parameters()} | below

    @classmethod
    def start(
        cls, champion: StoredModel, policy: Policy, config: TrainConfig, served: Offload
    ) -> "Critic":
        """One that says the same everywhere, on states as `train.online.value` wants them. `served`
        brings the champion's network to its device, where an adapter of its own works on that."""
        backbone = policy.backbone
        head = ValueHead(backbone.model.config.hidden_size).to(backbone.device)
        kind = config.online.value
        if kind == "head":
            return cls(policy.acting, head, {}, shares_states=True)
        if kind == "adapter":
            base = champion.backbone
            base.new_adapter(
                ROLE,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                targets=config.lora_targets,
                seed=config.seed + 1,
            )
            below = {n: p for n, p in base.model.named_parameters() if f".{ROLE}." in n}
            return cls(
                served.acting(lambda: base.acting_as(ROLE)),
                head,
                below,
                shares_states=False,
                end=lambda: base.detach(ROLE),
            )
        own = Backbone.load(
            champion.backbone.folder, device=str(champion.backbone.device), dtype="float32"
        )
        if champion.adapter:
            own.merge(champion.adapter)
        below = {f"value_model.{n}": p for n, p in own.model.named_parameters()}
        waiting = Offload(own, enabled=config.online.offload)
        waiting.leave()
        acting = served.acting(lambda: own.acting_as(None))
        return cls(acting, head, below, shares_states=False)

    @property
    def kept(self) -> dict[str, Tensor]:
        """What a resumed run needs besides the parameters."""
        scale = {"value_scale": self.scale.state}
        return scale | {"value_mean": self.head.mean, "value_unit": self.head.unit}

    def heed(self, rewards: Sequence[float]) -> None:
        """Count values in deviations of all rewards so far, from their mean: so the reward's unit
        decides neither how soon the head learns nor how hard it pulls at the states it shares
        with the policy. The first batch's mean is where values start."""
        is_first = not float(self.scale.state[0])
        self.scale.add(rewards)
        if is_first:
            self.head.mean.fill_(self.scale.mean)
        self.head.measure_in(self.scale.mean, self.scale.spread or float(self.head.unit))

    @torch.no_grad()
    def fill(self, groups: Sequence[Group], tokens_per_batch: int) -> None:
        """Set every group's values, as they are now."""
        by_row = {group.row.id: group for group in groups}
        with self.acting() as model:
            for part in split([g.row for g in groups], tokens_per_batch=tokens_per_batch):
                values = completion_values(model, [row.branches for row in part], self.head)
                for row, of_row in zip(part, values, strict=True):
                    by_row[row.id].values = [one.float().cpu() for one in of_row]
