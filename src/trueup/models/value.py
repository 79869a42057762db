"""The value head of PPO: what an unfinished answer can be expected to earn, read off a state."""

import torch
from torch import Tensor, nn

__all__ = ["ValueHead"]

SPEED = 16.0
"""How much faster the head learns than what is below it; a power of two, so it rounds nothing."""


class ValueHead(nn.Module):
    """value = mean + unit * (w . state / sqrt(hidden size) + b), in float32.

    Starts at `mean` everywhere. What is learned is w and b over `SPEED`, so that one learning rate
    suits head and adapter, whatever the reward's unit.
    """

    mean: Tensor
    unit: Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("unit", torch.ones(()))

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Values of shape (N,)."""
        scaled = hidden_ND.float() * (SPEED / len(self.weight) ** 0.5)
        return self.mean + self.unit * (scaled @ self.weight + SPEED * self.bias)

    @torch.no_grad()
    def measure_in(self, mean: float, unit: float) -> None:
        """Count in another unit from another zero; every value stays what it was.

        van Hasselt et al. 2016, arXiv:1602.07714, Eq. 5 (PopArt).
        """
        shift = (float(self.mean) - mean) / unit
        self.weight.mul_(self.unit / unit)
        self.bias.mul_(self.unit / unit).add_(shift / SPEED)
        self.mean.fill_(mean)
        self.unit.fill_(unit)
