"""Which number format a model runs in: told, or measured on the machine at hand.

Names of processors and instruction sets lie: a CPU that "has bfloat16" may emulate it ten times
slower than float32. So the machine is asked, by timing one matrix product in both.
"""

import time
from functools import cache

import torch

from trueup.models.config import DtypeName

__all__ = ["choose_dtype", "speed_up"]

WORTH_IT = 1.5  # times as fast before the coarser format is taken
SIZE = 768
REPEATS = 5


def choose_dtype(name: DtypeName, device: str) -> torch.dtype:
    """The format to load in.

    `auto`: bfloat16 on a GPU that computes in it, float32 elsewhere, because float32 log-probs
    agree to 1e-4 between sampling and training and bfloat16 ones do not. `fastest`: bfloat16
    wherever this machine multiplies at least 1.5 times faster in it.
    """
    if name in ("float32", "bfloat16"):
        return getattr(torch, name)
    if name == "fastest":
        return torch.bfloat16 if speed_up(device) >= WORTH_IT else torch.float32
    on_gpu = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if on_gpu else torch.float32


@cache
def speed_up(device: str) -> float:
    """How many times faster this device multiplies in bfloat16 than in float32; measured once a
    process, in a few milliseconds."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.randn(SIZE, SIZE, device=device).to(dtype)
        torch.mm(one, one)  # the first product pays for what is built once
        _wait(device)
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            torch.mm(one, one)
            _wait(device)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
