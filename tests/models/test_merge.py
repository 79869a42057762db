"""Merging: exact against dense products, and against plain interpolation of whole models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trueup.errors import ModelError
from trueup.models.merge import merge_adapters, merge_whole, truncated_product


def adapter(folder: Path, *, rank: int, alpha: float, seed: int, name: str = "q") -> Path:
    folder.mkdir()
    random = torch.Generator().manual_seed(seed)
    tensors = {
        f"model.{name}.lora_A.weight": torch.randn(rank, 12, generator=random),
        f"model.{name}.lora_B.weight": torch.randn(10, rank, generator=random),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha}))
    return folder


def product(folder: Path) -> torch.Tensor:
    """scaling * B A, what the adapter adds to the weight."""
    told = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    (up,) = (v for k, v in tensors.items() if "lora_B" in k)
    (down,) = (v for k, v in tensors.items() if "lora_A" in k)
    return told["lora_alpha"] / told["r"] * up.double() @ down.double()


def test_from_the_base_the_share_of_an_adapter_is_exact(tmp_path: Path) -> None:
    end, out = adapter(tmp_path / "end", rank=3, alpha=6, seed=1), tmp_path / "out"
    out.mkdir()
    assert merge_adapters(None, end, out, share=0.25).lost == 0.0
    torch.testing.assert_close(product(out), 0.25 * product(end), rtol=1e-6, atol=1e-6)


def test_between_two_adapters_it_is_the_best_product_of_that_rank(tmp_path: Path) -> None:
    start = adapter(tmp_path / "start", rank=3, alpha=3, seed=1)
    end = adapter(tmp_path / "end", rank=3, alpha=6, seed=2)
    out = tmp_path / "out"
    out.mkdir()
    lost = merge_adapters(start, end, out, share=0.3).lost
    wanted = 0.7 * product(start) + 0.3 * product(end)
    u, s, v = torch.linalg.svd(wanted)
    best = u[:, :3] * s[:3] @ v[:3]
    torch.testing.assert_close(product(out), best, rtol=1e-5, atol=1e-5)
    assert lost == pytest.approx(float((wanted - best).norm() / wanted.norm()), rel=1e-4)
    assert 0 < lost < 1


def test_merging_an_adapter_with_itself_changes_nothing(tmp_path: Path) -> None:
    end, out = adapter(tmp_path / "end", rank=2, alpha=2, seed=5), tmp_path / "out"
    out.mkdir()
    assert merge_adapters(end, end, out, share=0.5).lost == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(product(out), product(end), rtol=1e-5, atol=1e-5)


def test_factors_are_balanced_so_that_both_go_on_learning() -> None:
    parts = [
        (1.0, torch.randn(8, 2), 100 * torch.randn(2, 9)),
        (1.0, torch.randn(8, 2), torch.randn(2, 9)),
    ]
    found = truncated_product(parts, rank=2)
    assert float(found.up.norm()) == pytest.approx(float(found.down.norm()), rel=1e-6)


def test_adapters_on_other_layers_are_refused(tmp_path: Path) -> None:
    start = adapter(tmp_path / "start", rank=2, alpha=2, seed=1, name="k")
    end, out = adapter(tmp_path / "end", rank=2, alpha=2, seed=2), tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match="cannot be merged"):
        merge_adapters(start, end, out, share=0.5)


def test_whole_models_are_interpolated(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "out")]
    for folder in folders:
        folder.mkdir()
    one, other = torch.randn(4, 4), torch.randn(4, 4)
    save_file({"w": one}, folders[0] / "model.safetensors")
    save_file({"w": other}, folders[1] / "model.safetensors")
    (folders[1] / "config.json").write_text("{}")
    merge_whole(folders[0], folders[1], folders[2], share=0.75)
    found = load_file(folders[2] / "model.safetensors")["w"]
    torch.testing.assert_close(found, 0.25 * one + 0.75 * other)
    assert (folders[2] / "config.json").read_text() == "{}"
    save_file({"w": torch.randn(2, 2)}, folders[0] / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be merged"):
        merge_whole(folders[0], folders[1], folders[2], share=0.5)
