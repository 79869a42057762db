"""One optimizer step: gradients of a few rows, summed over groups and processes, clipped, taken."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from trueup.errors import TrainingError
from trueup.models.checkpointing import checkpointed
from trueup.train.config import TrainConfig
from trueup.train.data import Row, split
from trueup.train.objectives import Figures, Objective
from trueup.train.workers import Workers

__all__ = ["Metrics", "Stepper", "budget", "mean_figures"]

Metrics = dict[str, float]


def budget(config: TrainConfig, device: torch.device) -> int:
    """Padded tokens of one forward pass: what the settings say, or what the device likes."""
    return config.tokens_per_batch or (512 if device.type == "cpu" else 16384)


class Stepper:
    """AdamW on the parameters that learn."""

    def __init__(
        self, parameters: dict[str, torch.nn.Parameter], config: TrainConfig, workers: Workers
    ) -> None:
        self.learning, self.config, self.workers = list(parameters.values()), config, workers
        self._let_learn()
        self.optimizer = torch.optim.AdamW(
            self.learning, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.tokens_per_batch = budget(config, self.learning[0].device)

    def gradients(
        self,
        parts: Sequence[tuple[AbstractContextManager[Any], Objective]],
        picked: Sequence[Row],
        rate: float,
        number: int,
    ) -> Metrics:
        """What step `number` on these rows would follow, left on the parameters for `take`.

        Args:
            parts: what is minimised, each with what makes the network the one that it reads; the
                gradients add up.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        for settings in self.optimizer.param_groups:
            settings["lr"] = rate
        self.optimizer.zero_grad(set_to_none=False)  # new memory costs more than zeros
        loss, figures = 0.0, Figures()
        for acting, objective in parts:
            with acting as model:
                part, seen = self._gradients(model, objective, picked)
            loss += part
            figures += seen
        loss, figures = self.workers.join(self.learning, loss, figures)
        norm = float(torch.nn.utils.clip_grad_norm_(self.learning, self.config.max_grad_norm))
        _check(number, loss, norm)
        return mean_figures(figures) | {
            "step": number,
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
        }

    def take(self) -> None:
        """The step that the last `gradients` made ready."""
        self.optimizer.step()

    def end(self) -> None:
        """The parameters learn no more."""
        for parameter in self.learning:
            parameter.requires_grad_(False)

    def _gradients(
        self, model: Any, objective: Objective, picked: Sequence[Row]
    ) -> tuple[float, Figures]:
        objective.prepare(model, picked, self.tokens_per_batch)
        self._let_learn()  # peft freezes adapters when roles change
        whole, loss, figures = objective.total(picked), 0.0, Figures()
        groups = split(picked, tokens_per_batch=self.tokens_per_batch)
        with checkpointed(model, enabled=self.config.checkpointing):
            for group in self.workers.share(groups):
                part, seen = objective.group_loss(model, group)
                # divided by the whole step, not by the group: splitting changes nothing
                (part / whole).backward()
                loss += float(part.detach()) / whole
                figures += seen
        return loss, figures

    def _let_learn(self) -> None:
        for parameter in self.learning:
            parameter.requires_grad_(True)


def mean_figures(figures: Figures) -> Metrics:
    """Of every figure, over the rows that have it."""
    names = dict.fromkeys(name for one in figures for name in one)
    values = {name: [one[name] for one in figures if name in one] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _check(step: int, loss: float, norm: float) -> None:
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise TrainingError(
            f"Training broke at step {step}: loss or gradient is not finite",
            got={"loss": loss, "grad_norm": norm},
            expected="finite numbers",
            next="lower train.learning_rate; the state of the last save is kept",
        )
