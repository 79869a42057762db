"""The number format is told or measured, never guessed."""

import time
from pathlib import Path

import pytest
import torch

from trueup.models import dtype
from trueup.models.backbone import Backbone
from trueup.models.dtype import choose_dtype, speed_up


def test_what_is_told_is_taken_and_a_cpu_stays_exact_by_default() -> None:
    assert choose_dtype("float32", "cpu") == torch.float32
    assert choose_dtype("bfloat16", "cpu") == torch.bfloat16
    assert choose_dtype("auto", "cpu") == torch.float32


@pytest.mark.parametrize("ratio, expected", [(1.4, torch.float32), (1.6, torch.bfloat16)])
def test_the_fastest_is_bfloat16_only_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, ratio: float, expected: torch.dtype
) -> None:
    monkeypatch.setattr(dtype, "speed_up", lambda device: ratio)
    assert choose_dtype("fastest", "cpu") == expected


def test_the_machine_is_asked_once_and_quickly() -> None:
    first = speed_up("cpu")
    assert 0.001 < first < 100
    started = time.perf_counter()
    assert speed_up("cpu") == first
    assert time.perf_counter() - started < 0.01


def test_a_model_loads_in_the_format_asked_for(tiny_model: Path) -> None:
    half = Backbone.load(tiny_model, dtype="bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.dtype_name == "bfloat16"
    assert half.sibling(tiny_model).dtype_name == "bfloat16"
    assert Backbone.load(tiny_model).dtype_name == "float32"
