"""What a run may use, and what came of it."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from trueup.errors import ConfigError

__all__ = ["SandboxLimits", "SandboxResult", "Status"]

Status = Literal["ok", "error", "timeout", "killed"]


@dataclass(frozen=True)
class SandboxLimits:
    """What one run may use. Every limit is above zero; there is no value for "unlimited".

    The defaults suit a coding exercise: they hold a few seconds of one core, and a fork bomb or
    a runaway allocation is over before anybody notices.
    """

    timeout_s: float = 5.0
    """Wall clock from the start of the interpreter. Then everything in the run is killed."""

    cpu_s: int = 4
    """CPU seconds of any one process (RLIMIT_CPU). The run as a whole is bounded by `timeout_s`."""

    memory_mb: int = 512
    """Address space of any one process (RLIMIT_AS): mapped memory, touched or not, so `MemoryError`
    comes early. The resident memory of all processes together is held to the same figure by a look
    every 50 ms, a page shared by two counted twice; going over it kills the run."""

    max_processes: int = 16
    """Processes and threads alive at once, the program itself included. `fork` fails beyond it."""

    max_output_bytes: int = 20_000
    """Kept of stdout, and of stderr: the beginning of each. The rest is read and thrown away."""

    max_file_mb: int = 8
    """Largest file (RLIMIT_FSIZE). /tmp, the one writable folder, holds four times as much."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type is int
            if not (math.isfinite(value) and value > 0 and (isinstance(value, int) or not whole)):
                raise ConfigError(
                    f"The sandbox cannot work with this {field.name}",
                    got=value,
                    expected=f"a {'whole' if whole else 'finite'} number above zero",
                    next=f"leave SandboxLimits.{field.name} at {field.default}, or lower it",
                )


@dataclass(frozen=True)
class SandboxResult:
    """What came of one run. Text that is not UTF-8 has its bad bytes replaced."""

    status: Status
    """ok: exit code 0. error: another exit code, an exception among them. timeout: wall clock or
    CPU time used up. killed: a signal, or the memory of the whole run, ended it; the last line of
    stderr says which."""

    exit_code: int | None
    """None when the program did not exit by itself."""

    stdout: str
    stderr: str

    duration_s: float
    """Wall clock of the program, without the building of the sandbox."""

    @property
    def passed(self) -> bool:
        """The program ended by itself with exit code 0."""
        return self.status == "ok"
