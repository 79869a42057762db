"""Runs Python that a model wrote, on this machine, without trusting it.

    result = run_python("print(6 * 7, end='')")
    result.passed, result.stdout      # True, "42"

A completion that is code has to be run to be judged, and the code is whatever the model said. So
each run gets its own world: new user, mount, pid, network, ipc, uts and cgroup namespaces, a root
folder that holds the interpreter and nothing else, no capabilities, a filter on system calls, and
limits on time, memory, processes, files and output. `launcher.py` says how, step by step.

The promise: code is never run with less than all of that. A machine that cannot give it raises
`SandboxUnavailable`; there is no switch to run bare.

What it does not promise: a bug in the kernel is a way out, and `passed` only says that the program
exited with 0, which a program may also do on its second line. Print something and compare it when
that matters.
"""

from trueup.sandbox.run import check_available, run_python
from trueup.sandbox.types import SandboxLimits, SandboxResult

__all__ = ["SandboxLimits", "SandboxResult", "check_available", "run_python"]
