"""Starts the launcher, reads what the program prints, and ends it when its time is up.

The launcher keeps the limits from inside; this side believes only its report pipe and the clock.
Whatever happens here, an exception included, the launcher's process group is killed before
`run_python` returns, and with init goes the whole pid namespace.

The promise: no report of a complete sandbox, no run. Memory here is bounded by the output limit,
however much is printed. Safe to call from several threads at once.
"""

import contextlib
import copy
import functools
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trueup.errors import SandboxUnavailable
from trueup.sandbox.layout import build_plan
from trueup.sandbox.types import SandboxLimits, SandboxResult, Status

__all__ = ["check_available", "run_python"]

LAUNCHER = Path(__file__).with_name("launcher.py")
DEFAULT_LIMITS = SandboxLimits()
SETUP_TIMEOUT_S = 10.0  # building takes some 30 ms; this is for a machine on its knees
GRACE_S = 0.5  # init keeps the time; we step in when it is this late
READ_BYTES = 1 << 16


def run_python(
    code: str, *, stdin: str = "", limits: SandboxLimits = DEFAULT_LIMITS
) -> SandboxResult:
    """Run a program that nobody has read, and say what came of it.

    The program gets the standard library and nothing else, an empty environment, no network,
    `stdin` as its input, and /tmp as its only writable folder, which is gone afterwards. A program
    that fails, in whatever way, is a result and not an exception.

    Costs some 70 ms beyond the program's own time, and in the first call of a process twice that.

    Raises:
        SandboxUnavailable: this machine cannot isolate the program. It was not run.
    """
    check_available()
    return _run(code, limits, stdin)


def check_available() -> None:
    """Make sure that generated code can be isolated here, by isolating some. Cached per process.

    Raises:
        SandboxUnavailable: it cannot; the message says at which step, and what to do.
    """
    reason = _probe()
    if reason is not None:
        raise copy.copy(reason)  # one exception raised twice would collect two tracebacks


@functools.cache
def _probe() -> SandboxUnavailable | None:
    try:
        result = _run("print('sealed')", DEFAULT_LIMITS)
    except SandboxUnavailable as error:
        return error
    if result.passed and result.stdout == "sealed\n":
        return None
    return _unavailable(f"a first program that ended as {result.status}: {result.stderr[-500:]}")


def _run(code: str, limits: SandboxLimits, stdin: str = "") -> SandboxResult:
    with _launch(build_plan(code, limits, stdin)) as (process, report):
        return _Watch(process, report, limits).result()


@contextlib.contextmanager
def _launch(plan: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The launcher and the reading end of its report pipe; both are gone afterwards.

    The launcher's text is its stdin, so that /proc/1/cmdline inside names no folder of the project.
    The plan is a file in memory, because a pipe would have to be fed while it is read.
    """
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(LAUNCHER.open("rb"))
            plan_file = stack.enter_context(open(os.memfd_create("plan"), "w+b"))
            plan_file.write(json.dumps(plan).encode("ascii"))
            plan_file.seek(0)
            report, report_end = os.pipe()
            stack.callback(os.close, report)
            with open(report_end, "wb"):  # closed here once the launcher has its copy
                process = _start(plan["interpreter"], source, (plan_file.fileno(), report_end))
        except OSError as error:
            raise _unavailable(f"a launcher that could not be started: {error}") from error
        stack.enter_context(process)
        stack.callback(_end, process)
        yield process, report


def _start(
    interpreter: str, source: IO[bytes], inherited: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [interpreter, "-I", "-S", "-", *map(str, inherited)],
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
        pass_fds=inherited,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill guard and init, if they are still there; the kernel kills what init leaves behind."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Watch:
    """Reads the three pipes of one run until they end or its time is up."""

    def __init__(
        self, process: subprocess.Popen[bytes], report: int, limits: SandboxLimits
    ) -> None:
        self.limits = limits
        self.deadline = time.monotonic() + SETUP_TIMEOUT_S
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.ended: dict[str, Any] | None = None
        self.late = False
        self.lines = bytearray()
        self.stdout, self.stderr = bytearray(), bytearray()
        self.selector = selectors.DefaultSelector()
        for stream, sink in ((process.stdout, self.stdout), (process.stderr, self.stderr)):
            self.selector.register(_fd(stream), selectors.EVENT_READ, sink)
        self.selector.register(report, selectors.EVENT_READ, self.lines)

    def result(self) -> SandboxResult:
        with self.selector:
            self._read_all()
        if self.started_at is None:
            detail = "a launcher that did not finish in time" if self.late else self._tail()
            raise _unavailable(detail)
        status, note = self._status()
        stderr = bytes(self.stderr)
        if note:
            line = f"sandbox: {note}\n".encode()
            stderr = stderr[: max(0, self.limits.max_output_bytes - len(line))] + line
        return SandboxResult(
            status=status,
            exit_code=None if self.ended is None else self.ended.get("exit_code"),
            stdout=self.stdout.decode("utf-8", "replace"),
            stderr=stderr.decode("utf-8", "replace"),
            duration_s=(self.ended_at or time.monotonic()) - self.started_at,
        )

    def _read_all(self) -> None:
        while self.selector.get_map():
            ready = self.selector.select(max(0.0, self.deadline - time.monotonic()))
            for key, _ in ready:
                self._read(key)  # which may move the deadline: look before giving up
            # After the end what is left in the pipes is finite, so it is read even when late.
            if time.monotonic() >= self.deadline and not (self.ended and ready):
                self.late = True
                return

    def _read(self, key: selectors.SelectorKey) -> None:
        chunk = os.read(key.fd, READ_BYTES)
        if not chunk:
            self.selector.unregister(key.fd)
        elif key.data is self.lines:
            self.lines += chunk
            self._hear()
        else:
            room = self.limits.max_output_bytes - len(key.data)
            key.data.extend(chunk[: max(0, room)])

    def _hear(self) -> None:
        """Act on the complete lines of the report."""
        while b"\n" in self.lines:
            line, _, rest = self.lines.partition(b"\n")
            self.lines[:] = rest
            event, now = json.loads(line), time.monotonic()
            if event["event"] == "refused":
                raise _unavailable(event["detail"])
            if event["event"] == "started":
                self.started_at = now
                self.deadline = now + self.limits.timeout_s + GRACE_S
            else:
                # The pipes end now, unless a fork in another thread holds a copy of them.
                self.ended, self.ended_at, self.deadline = event, now, now + GRACE_S

    def _status(self) -> tuple[Status, str]:
        if self.ended is None:
            if self.late:
                return "timeout", "wall clock used up"
            return "killed", "the sandbox itself was killed"
        match self.ended["why"]:
            case "exit":
                return ("ok" if self.ended["exit_code"] == 0 else "error"), ""
            case "timeout":
                return "timeout", f"wall clock of {self.limits.timeout_s} s used up"
            case "cpu":
                return "timeout", f"CPU time of {self.limits.cpu_s} s used up"
            case "memory":
                return "killed", f"more than {self.limits.memory_mb} MB in all processes together"
            case "signal":
                return "killed", f"signal {self.ended['signal']}"
        return "killed", "the watch over time and memory was broken"

    def _tail(self) -> str:
        text = self.stderr.decode("utf-8", "replace").strip()
        return text[-500:] or "a launcher that ended without a word"


def _fd(stream: IO[bytes] | None) -> int:
    assert stream is not None  # both were asked for
    return stream.fileno()


def _unavailable(detail: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        "This machine cannot isolate generated code, so it was not run",
        got=detail,
        expected="Linux 5.14 or newer that lets this user make user, mount, pid, network, ipc, uts "
        "and cgroup namespaces",
        next="run as root with all capabilities, or allow unprivileged user namespaces "
        "(sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 "
        "kernel.apparmor_restrict_unprivileged_userns=0); in a container, start it privileged",
    )
