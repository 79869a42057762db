"""What a stage cost: seconds, and the peak of resident memory."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cost", "measured"]


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds of a stage, and the process's peak resident memory during it, in MB."""

    stage: str
    seconds: float
    peak_mb: float


@contextmanager
def measured(stage: str, into: list[Cost]) -> Iterator[None]:
    """Append the block's cost to `into`, also when it raises."""
    _reset_peak()
    started = time.perf_counter()
    try:
        yield
    finally:
        into.append(Cost(stage, time.perf_counter() - started, _peak_mb()))


def _reset_peak() -> None:
    with suppress(OSError):  # elsewhere than on Linux the peak is the process's so far
        Path("/proc/self/clear_refs").write_text("5")  # peak := present


def _peak_mb() -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    except (OSError, StopIteration):
        unit = 1024 * 1024 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
