"""The training loop: reads top to bottom, one paragraph an idea."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trueup.errors import TrainingError
from trueup.models.checkpointing import checkpointed
from trueup.progress import task
from trueup.train.config import TrainConfig
from trueup.train.data import Row, order, split
from trueup.train.objectives import Figures, Objective
from trueup.train.schedule import learning_rate
from trueup.train.state import load_state, save_state
from trueup.train.workers import Workers

__all__ = ["Fitted", "Watching", "budget", "fit"]

Metrics = dict[str, float]


class Watching(Protocol):
    """Measures the policy between steps."""

    def measure(self, model: Any) -> Metrics: ...

    def stop(self, measured: Metrics) -> str | None:
        """Why training should end here, or None."""
        ...


class Fitted(NamedTuple):
    """What a run gave: metrics of every optimizer step, and why it ended early, if it did."""

    history: list[Metrics]
    stopped: str | None = None


def budget(config: TrainConfig, device: torch.device) -> int:
    """Padded tokens of one forward pass: what the settings say, or what the device likes."""
    return config.tokens_per_batch or (512 if device.type == "cpu" else 16384)


def fit(
    acting: Callable[[], AbstractContextManager[Any]],
    parameters: dict[str, torch.nn.Parameter],
    rows: Sequence[Row],
    objective: Objective,
    config: TrainConfig,
    folder: Path,
    *,
    kept: dict[str, Tensor] | None = None,
    watching: Watching | None = None,
    after_step: Callable[[], None] = lambda: None,
    workers: Workers | None = None,
) -> Fitted:
    """Train parameters on rows, in place.

    Bitwise the same whether or not it was stopped and resumed in between (CPU). With several
    processes each runs its share of every step's groups and the gradients are summed.

    Args:
        acting: makes the network the one that trains.
        parameters: what learns, by name; everything else must be frozen.
        folder: where states to resume from are kept.
        kept: tensors besides parameters and optimizer that a resumed run needs (a moving average).
        after_step: called after every optimizer step.

    Raises:
        TrainingError: the loss or the gradient is no longer finite; the last saved state stays.
    """
    workers = workers or Workers()
    learning = list(parameters.values())
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        learning, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    tokens_per_batch = budget(config, learning[0].device)
    steps_per_epoch = math.ceil(len(rows) / config.pairs_per_step)
    total = steps_per_epoch * config.epochs
    done, history = load_state(folder, parameters, optimizer, kept or {})
    stopped = None

    with acting() as model, task("train", total) as advance:
        advance(done)
        for step in range(done, total):
            started = time.perf_counter()
            epoch, place = divmod(step, steps_per_epoch)
            shuffled = order(len(rows), epoch=epoch, seed=config.seed)
            picked = [
                rows[i] for i in shuffled[place * config.pairs_per_step :][: config.pairs_per_step]
            ]
            rate = learning_rate(
                step,
                total,
                peak=config.learning_rate,
                warmup=config.warmup,
                schedule=config.schedule,
            )
            for settings in optimizer.param_groups:
                settings["lr"] = rate

            objective.prepare(model, picked, tokens_per_batch)
            # peft freezes adapters when roles change; the policy's must learn
            for parameter in learning:
                parameter.requires_grad_(True)
            optimizer.zero_grad(set_to_none=False)  # new memory costs more than zeros
            whole, loss, figures = objective.total(picked), 0.0, Figures()
            groups = split(picked, tokens_per_batch=tokens_per_batch)
            with checkpointed(model, enabled=config.checkpointing):
                for group in workers.share(groups):
                    part, seen = objective.group_loss(model, group)
                    # divided by the whole step, not by the group: splitting changes nothing
                    (part / whole).backward()
                    loss += float(part.detach()) / whole
                    figures += seen
            loss, figures = workers.join(learning, loss, figures)

            norm = float(torch.nn.utils.clip_grad_norm_(learning, config.max_grad_norm))
            _check(step, loss, norm)
            optimizer.step()
            after_step()

            metrics = _mean(figures) | {
                "step": step + 1,
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": rate,
                "seconds": time.perf_counter() - started,
            }
            history.append(metrics)
            advance(1)
            is_last = step + 1 == total
            if watching and (is_last or (step + 1) % config.eval_every_steps == 0):
                # by one process, so that all stop together
                measured = workers.alone(lambda: watching.measure(model))
                metrics |= measured
                stopped = None if is_last else watching.stop(measured)
            if stopped:
                break
            if (
                config.save_every_steps
                and (step + 1) % config.save_every_steps == 0
                and not is_last
            ):
                workers.alone(
                    lambda step=step: save_state(
                        folder, step + 1, parameters, optimizer, history, kept or {}
                    )
                )
    for parameter in learning:
        parameter.requires_grad_(False)
    return Fitted(history, stopped)


def _check(step: int, loss: float, norm: float) -> None:
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise TrainingError(
            f"Training broke at step {step + 1}: loss or gradient is not finite",
            got={"loss": loss, "grad_norm": norm},
            expected="finite numbers",
            next="lower train.learning_rate; the state of the last save is kept",
        )


def _mean(figures: Figures) -> Metrics:
    """Of every figure, over the rows that have it."""
    names = dict.fromkeys(name for one in figures for name in one)
    values = {name: [one[name] for one in figures if name in one] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
