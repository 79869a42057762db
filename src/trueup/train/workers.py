"""Several processes on one step: each runs a share of the groups, gradients are summed.

The loss is a sum over the whole step's rows divided by their number, so the sum of the processes'
gradients is the gradient, whoever ran which rows. Started by `accelerate launch`; one process is
the case without it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from trueup.train.objectives import Figures

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """The processes of this run, as one of them sees them."""

    def __init__(self) -> None:
        self._state: Any = None
        self.rank, self.count = 0, 1
        if torch.distributed.is_available() and _launched():
            from accelerate import PartialState

            self._state = PartialState()
            self.rank, self.count = self._state.process_index, self._state.num_processes

    def share(self, groups: Sequence[T]) -> Sequence[T]:
        """This process's groups: every `count`-th, the longest ones dealt out first."""
        return groups[self.rank :: self.count]

    def join(
        self, parameters: Sequence[torch.nn.Parameter], loss: float, figures: Figures
    ) -> tuple[float, Figures]:
        """Sum the gradients in place over all processes; returns the whole step's loss and
        figures."""
        if self.count == 1:
            return loss, figures
        for parameter in parameters:
            if parameter.grad is None:  # a process without a group of its own
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        torch.distributed.all_reduce(flat)
        pieces = flat.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        said: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(said, (loss, figures))
        return sum(one[0] for one in said), [row for one in said for row in one[1]]

    def alone(self, work: Callable[[], T]) -> T | None:
        """Let the first process do something; the others wait until it has."""
        done = work() if self.rank == 0 else None
        self.wait()
        return done

    def wait(self) -> None:
        """Until every process is here."""
        if self._state is not None:
            self._state.wait_for_everyone()


def _launched() -> bool:
    """True under `accelerate launch` or torchrun with more than one process."""
    import os

    return int(os.environ.get("WORLD_SIZE", "1")) > 1
