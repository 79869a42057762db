"""The value head of PPO: what an unfinished answer can be expected to earn, read off a state."""

import torch
from torch import Tensor, nn

__all__ = ["ValueHead"]

SPEED = 16.0
"""How much faster the head learns than what is below it; a power of two, so it rounds nothing."""


class ValueHead(nn.Module):
    """value = w . state / sqrt(hidden size) + b, in float32.

    Starts at 0 everywhere, so that the first advantages are the returns themselves. What is
    learned is w and b over `SPEED`, so that one learning rate suits head and adapter.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Values of shape (N,)."""
        scaled = hidden_ND.float() * (SPEED / len(self.weight) ** 0.5)
        return scaled @ self.weight + SPEED * self.bias
