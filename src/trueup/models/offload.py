"""A model that waits in main memory while others use the GPU."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from trueup.models.backbone import Backbone

__all__ = ["Offload"]


class Offload:
    """Brings a backbone to its device for the length of a block, and away again.

    Moving a model costs a copy over the bus each way, a few percent of a pass over a batch. Without
    `enabled`, or on a CPU, nothing is moved.
    """

    def __init__(self, backbone: Backbone, *, enabled: bool) -> None:
        self.backbone, self.home = backbone, backbone.device
        self.is_enabled = enabled and self.home.type != "cpu"
        self._depth = 0

    def leave(self) -> None:
        """Go and wait, unless somebody is at work with it."""
        if self.is_enabled and not self._depth:
            self.backbone.model.to("cpu")

    def end(self) -> None:
        """Be back for good."""
        self.backbone.model.to(self.home)
        self.is_enabled = False

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within the block the model is on its device; blocks nest."""
        if self.is_enabled and not self._depth:
            self.backbone.model.to(self.home)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self.leave()

    def acting(
        self, acting: Callable[[], AbstractContextManager[Any]]
    ) -> Callable[[], AbstractContextManager[Any]]:
        """The same, with the model on its device."""

        @contextmanager
        def moved() -> Iterator[Any]:
            with self.here(), acting() as model:
                yield model

        return moved
