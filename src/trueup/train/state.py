"""Half-finished training on disk, so that Ctrl-C and kill -9 cost a few steps at most.

One folder a saved step, written beside and renamed, so the newest whole one is always good:
parameters, both Adam moments, and the metrics so far. The order of the pairs is a function of the
seed, so there is no random state to keep.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

__all__ = ["load_state", "save_state"]


def save_state(
    folder: Path,
    step: int,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
    kept: dict[str, torch.Tensor],
) -> None:
    """Write the state after `step` optimizer steps, and drop the older ones."""
    tensors = {f"param/{name}": p.detach().contiguous() for name, p in parameters.items()}
    tensors |= {f"kept/{name}": one.detach().contiguous() for name, one in kept.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.detach().contiguous()
    scratch = folder / f".step-{step}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(tensors, scratch / "state.safetensors")
    (scratch / "state.json").write_text(json.dumps({"step": step, "history": history}))
    target = folder / f"step-{step:06d}"
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    for older in sorted(folder.glob("step-*"))[:-1]:
        shutil.rmtree(older, ignore_errors=True)


def load_state(
    folder: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    kept: dict[str, torch.Tensor],
) -> tuple[int, list[dict[str, float]]]:
    """Bring parameters and optimizer to the newest saved step; returns it with the metrics so far.
    Step 0 where nothing was saved."""
    saved = sorted(folder.glob("step-*"))
    if not saved:
        return 0, []
    tensors = load_file(saved[-1] / "state.safetensors")
    told: dict[str, Any] = json.loads((saved[-1] / "state.json").read_text())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"param/{name}"])
        for name, one in kept.items():
            one.copy_(tensors[f"kept/{name}"])
        for name, parameter in parameters.items():
            optimizer.state[parameter] = {
                key: tensors[f"{key}/{name}"].to("cpu" if key == "step" else parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in tensors  # one that never had a gradient has none
            }
    return int(told["step"]), told["history"]
