"""The policy itself as the engine that draws its rollouts."""

from collections.abc import Sequence
from typing import Protocol

from trueup.records import Completion, Messages, Sampling
from trueup.train.policy import Policy

__all__ = ["Engine", "LocalEngine"]


class Engine(Protocol):
    """An engine that a run follows from batch to batch, see `rollouts.Draw`."""

    weights: str
    """Name that completions carry; whoever moves the policy gives it another."""

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, num_samples: int
    ) -> list[list[Completion]]: ...

    def end(self) -> None:
        """Give back what it holds."""
        ...


class LocalEngine:
    """Draws with the weights in training, on the backbone they train on: there is nothing to keep
    in step, and a drawn token's log-prob is the trainer's own to rounding."""

    def __init__(self, policy: Policy, start_weights: str) -> None:
        self._policy, self.weights = policy, start_weights
        """Name that completions carry; whoever moves the policy gives it another."""

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, num_samples: int
    ) -> list[list[Completion]]:
        with self._policy.acting():
            return self._policy.backbone.complete(
                prompts,
                sampling,
                role=self._policy.role,
                weights=self.weights,
                num_samples=num_samples,
            )

    def end(self) -> None:
        """It holds nothing of its own."""
