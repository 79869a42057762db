"""Going only part of the way from one model to another, in the space of the weights.

    W = W_start + share * (W_end - W_start)

Whole models are interpolated tensor by tensor. Of adapters it is the products that are: the
interpolated product of two rank-r adapters has rank up to 2r and is cut back to r by its largest
singular values (Eckart & Young 1936), which is exact where there was no adapter at the start. What
the cut loses is measured.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trueup.errors import ModelError

__all__ = ["Merged", "merge_adapters", "merge_whole", "truncated_product"]

CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Merged(NamedTuple):
    """What a merge lost."""

    lost: float
    """Share of the interpolated change's Frobenius norm that the cut to rank r left out, the worst
    of all layers; 0 where nothing was cut."""


def merge_adapters(start: Path | None, end: Path, folder: Path, *, share: float) -> Merged:
    """Write the adapter that lies `share` of the way from `start` to `end`.

    Args:
        start: an adapter's folder; None is the base itself, an adapter that changes nothing.
        folder: where to write; it must exist.

    Raises:
        ModelError: the two are not adapters of the same shape.
    """
    from safetensors.torch import load_file, save_file

    there = load_file(end / ADAPTER_FILE)
    here = load_file(start / ADAPTER_FILE) if start else {}
    if here and here.keys() != there.keys():
        raise ModelError(
            "Two adapters cannot be merged",
            got=f"{len(here)} tensors and {len(there)}, with different names",
            expected="adapters on the same layers",
            next="set rounds.merge to 1",
        )
    scale_end = _scaling(end)
    scale_start = _scaling(start) if start else 0.0
    made: dict[str, Tensor] = dict(there)
    lost = 0.0
    for name, down in there.items():
        if ".lora_A." not in name:
            continue
        up_name = name.replace(".lora_A.", ".lora_B.")
        parts = [(share, there[up_name], down)]
        if here:
            weight = (1 - share) * scale_start / scale_end
            parts.append((weight, here[up_name], here[name]))
        product = truncated_product(parts, rank=down.shape[0])
        made[name], made[up_name] = product.down.to(down), product.up.to(down)
        lost = max(lost, product.lost)
    for file in end.iterdir():
        if file.name != ADAPTER_FILE and file.is_file():
            shutil.copyfile(file, folder / file.name)
    save_file({k: v.contiguous() for k, v in made.items()}, folder / ADAPTER_FILE)
    return Merged(lost)


class Product(NamedTuple):
    """up @ down, and the share of the norm that it lacks."""

    up: Tensor
    down: Tensor
    lost: float


def truncated_product(parts: list[tuple[float, Tensor, Tensor]], *, rank: int) -> Product:
    """The best rank-`rank` factors of sum of weight * up @ down.

    Never forms the product: QR of the stacked factors leaves a small square matrix to decompose.

    Args:
        parts: (weight, up of shape (out, r_i), down of shape (r_i, in)).
    """
    up = torch.cat([weight * one.double() for weight, one, _ in parts], dim=1)
    down = torch.cat([one.double() for _, _, one in parts], dim=0)
    if up.shape[1] <= rank:
        return Product(up, down, 0.0)
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T)
    whole = float(s.square().sum())
    lost = (float(s[rank:].square().sum()) / whole) ** 0.5 if whole else 0.0
    root = s[:rank].sqrt()
    return Product(q_up @ u[:, :rank] * root, (q_down @ v[:rank].T * root).T, lost)


def merge_whole(start: Path, end: Path, folder: Path, *, share: float) -> Merged:
    """Write the model that lies `share` of the way between two whole ones of one architecture.

    Raises:
        ModelError: their tensors differ in name or shape.
    """
    from safetensors.torch import load_file, save_file

    here = {
        k: v for file in sorted(start.glob("*.safetensors")) for k, v in load_file(file).items()
    }
    for file in end.iterdir():
        if not file.is_file():
            continue
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
            continue
        there = load_file(file)
        if any(k not in here or here[k].shape != v.shape for k, v in there.items()):
            raise ModelError(
                "Two models cannot be merged",
                got=f"{file.name}, whose tensors differ from those in {start}",
                expected="two models of one architecture",
                next="set rounds.merge to 1",
            )
        made = {
            k: torch.lerp(here[k].float(), v.float(), share).to(v.dtype).contiguous()
            for k, v in there.items()
        }
        save_file(made, folder / file.name, metadata={"format": "pt"})
    return Merged(0.0)


def _scaling(folder: Path) -> float:
    told = json.loads((folder / CONFIG_FILE).read_text())
    return float(told["lora_alpha"]) / float(told["r"])
