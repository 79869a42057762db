"""The training loop: reads top to bottom, one paragraph an idea."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trueup.progress import task
from trueup.train.config import TrainConfig
from trueup.train.data import Row, order
from trueup.train.objectives import Objective
from trueup.train.schedule import learning_rate
from trueup.train.state import load_state, save_state
from trueup.train.step import Metrics, Stepper
from trueup.train.workers import Workers

__all__ = ["Fitted", "Watching", "fit"]


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
    stepper = Stepper(parameters, config, workers)
    steps_per_epoch = math.ceil(len(rows) / config.pairs_per_step)
    total = steps_per_epoch * config.epochs
    done, history = load_state(folder, parameters, stepper.optimizer, kept or {})
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
            parts = [(nullcontext(model), objective)]
            taken = stepper.gradients(parts, picked, rate, step + 1)
            stepper.take()
            after_step()

            metrics = taken | {"seconds": time.perf_counter() - started}
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
                        folder, step + 1, parameters, stepper.optimizer, history, kept or {}
                    )
                )
    stepper.end()
    return Fitted(history, stopped)
