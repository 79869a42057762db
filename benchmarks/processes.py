"""What every benchmark needs: processes that do one measurement each, and names for the conditions.

A side's file calls `serve` with what it can do; the benchmark's own file has a `Runner` start it,
hand it tasks and read answers, a line of JSON each. Nothing here needs more than Python, so that
a side may run in an environment without trueup.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "MODEL",
    "ROOT",
    "BenchmarkError",
    "Runner",
    "Task",
    "commit",
    "cpu_name",
    "model_folder",
    "num_cores",
    "peak_mb",
    "say",
    "serve",
    "versions",
]

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m-instruct-q4"

Task = dict[str, Any]


class BenchmarkError(Exception):
    """What stops the whole benchmark, in words for whoever started it."""


def say(told: str) -> None:
    """To whoever waits; the tables alone go to stdout."""
    print(told, file=sys.stderr, flush=True)


# --- in the benchmark's own process -------------------------------------------------------------


class Runner:
    """Has tasks done by a side's file, each in a fresh process unless `reuse`."""

    def __init__(
        self, folder: Path, threads: int, script: Path, *, reuse: bool, python: str = sys.executable
    ) -> None:
        """`folder` is scratch space; `python` an interpreter that has what the side imports."""
        self.folder, self.threads, self.reuse = folder, threads, reuse
        self.script, self.python = script, python
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, task: Task) -> Task:
        """Raises: BenchmarkError, with the end of what the process said, if it died."""
        process = self.process or self._start()
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({**task, "threads": self.threads}), file=process.stdin, flush=True)
            answer = process.stdout.readline() if process.stdout else ""
        self.process = process if self.reuse and answer else None
        if self.process is None:
            process.communicate()
        if not answer:
            last = self._said.read_text("utf-8", "replace").strip().splitlines()[-8:]
            raise BenchmarkError("\n".join([f"{task['side']} ended: {process.returncode}", *last]))
        return json.loads(answer)

    @property
    def _said(self) -> Path:
        return self.folder / f"said-{self.script.stem}"

    def _start(self) -> "subprocess.Popen[str]":
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.folder / "datasets"),
        }
        with open(self._said, "w") as said:
            return subprocess.Popen(
                [self.python, str(self.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment,
                text=True,
            )

    def end(self) -> None:
        if self.process:
            self.process.communicate()
            self.process = None


def model_folder(name: str) -> Path:
    """Where a pulled model is.

    Raises:
        BenchmarkError: nowhere.
    """
    from trueup.errors import ModelError
    from trueup.models.catalog import folder_of

    try:
        return folder_of(name)
    except ModelError:
        raise BenchmarkError(f"there is no model {name}; trueup model pull {name}") from None


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions(*names: str) -> dict[str, str]:
    """Of Python and of these packages."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }


def commit() -> str:
    """Of this folder, with a mark where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# --- in a side's process ------------------------------------------------------------------------


def serve(sides: Mapping[str, Callable[[Task, Path], Task]]) -> None:
    """Do one task after another, each with a scratch folder of its own, until there are no more."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        task = json.loads(line)
        torch.set_num_threads(task["threads"])
        with tempfile.TemporaryDirectory() as scratch:
            found = sides[task["side"]](task, Path(scratch))
        print(json.dumps(found), file=answers, flush=True)


def peak_mb() -> float:
    """This process's highest resident memory so far."""
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
