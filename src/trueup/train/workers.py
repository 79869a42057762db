"""Several processes on one step: each runs a share of the groups, gradients are summed.

The loss is a sum over the whole step's rows divided by their number, so the sum of the processes'
gradients is the gradient, whoever ran which rows. Started by torchrun; one process is the case
without it.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch

from trueup.errors import TrueupError
from trueup.train.objectives import Figures

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """The processes of this run, as one of them sees them."""

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        if torch.distributed.is_available() and _launched():
            if not torch.distributed.is_initialized():
                _meet()
            self.rank, self.count = torch.distributed.get_rank(), torch.distributed.get_world_size()

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

    def alone(self, work: Callable[[], T]) -> T:
        """Let the first process do something while the others wait; all of them get what it
        returns, or raise what it raised."""
        if self.count == 1:
            return work()
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = work()
            except TrueupError as error:  # these travel; what else goes wrong ends the launcher
                said[1] = error
        torch.distributed.broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()

    def end(self) -> None:
        """Let go of the others; nothing can be done together afterwards."""
        if self.count > 1:
            torch.distributed.destroy_process_group()


def _launched() -> bool:
    """True under torchrun, or `accelerate launch` on GPUs, with more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _meet() -> None:
    """Join the other processes; each takes a GPU of its own where there are any."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    # the others wait while the first measures, saves or reads a data set
    torch.distributed.init_process_group(backend, timeout=timedelta(hours=12))
