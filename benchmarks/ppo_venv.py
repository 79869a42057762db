"""The environment in which TRL's PPO still runs."""

import subprocess
import sys
from pathlib import Path

from processes import ROOT, BenchmarkError, say

__all__ = ["VERSIONS", "ppo_python"]

FIRST = "torch==2.13.0"
"""By exact pin and alone, so that nothing later may choose another build."""
VERSIONS = ("trl==1.12.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")


def ppo_python(named: Path | None, *, make: bool) -> Path | None:
    """The interpreter that has TRL 1.12; None where there is none and none is to be made.

    Args:
        named: an environment that somebody made; by default `.venv-ppo` beside the Makefile.

    Raises:
        BenchmarkError: it could not be installed.
    """
    folder = named or ROOT / ".venv-ppo"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.is_file() or (named and python.is_file()):
        return python
    if not make:
        say(f"PPO is measured without TRL: there is no {folder}")
        return None
    say(f"installing {', '.join([FIRST, *VERSIONS])} in {folder}: some minutes, 1.5 GB")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    made = [sys.executable, "-m", "venv", str(folder)]
    for command in (made, [*pip, FIRST], [*pip, FIRST, *VERSIONS]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            raise BenchmarkError(f"TRL could not be installed: {' '.join(command)}\n{last}")
    ready.touch()
    return python
