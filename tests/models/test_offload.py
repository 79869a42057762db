"""A model that waits elsewhere: moved when it is needed, and not on a CPU."""

from pathlib import Path

import torch

from trueup.models.backbone import Backbone
from trueup.models.offload import Offload


class Mover(torch.nn.Linear):
    """Remembers where it was sent."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.sent: list[str] = []

    def to(self, place: object) -> "Mover":
        self.sent.append(str(place))
        return self


class OnGPU:
    """A backbone as `Offload` sees it, on a device that need not be there."""

    def __init__(self) -> None:
        self.model, self.device = Mover(), torch.device("cuda", 0)


def test_it_is_there_within_blocks_and_away_between_them() -> None:
    backbone = OnGPU()
    waiting = Offload(backbone, enabled=True)  # type: ignore[arg-type]
    waiting.leave()
    with waiting.here(), waiting.here():
        assert backbone.model.sent == ["cpu", "cuda:0"]
        waiting.leave()  # somebody is at work
    assert backbone.model.sent == ["cpu", "cuda:0", "cpu"]
    waiting.end()
    with waiting.here():
        pass
    assert backbone.model.sent == ["cpu", "cuda:0", "cpu", "cuda:0"]


def test_without_the_setting_nothing_moves() -> None:
    backbone = OnGPU()
    waiting = Offload(backbone, enabled=False)  # type: ignore[arg-type]
    waiting.leave()
    with waiting.here():
        assert backbone.model.sent == []


def test_a_role_that_waited_computes_as_before(tiny_model: Path) -> None:
    backbone = Backbone.load(tiny_model, device="cpu")
    ids = torch.tensor([[1, 2, 3]])
    waiting = Offload(backbone, enabled=True)
    with torch.no_grad():
        before = backbone.model(ids).logits
        with waiting.acting(lambda: backbone.acting_as(None))() as model:
            after = model(ids).logits
    assert torch.equal(before, after)
