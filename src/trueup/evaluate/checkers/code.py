"""Answers that are code: found in the text, and run against tests in the sandbox.

The promise: what decides is said by a process that the answer cannot reach. `harness.py` keeps
tests and answer apart; this side believes the last line of its output, and only where the sandbox
says that it ended well.
"""

import ast
import json
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trueup.errors import SandboxUnavailable
from trueup.evaluate.checkers.outcome import Outcome, verdict

if TYPE_CHECKING:
    from trueup.sandbox import SandboxResult

__all__ = ["RunPython", "check_python", "check_unit_test", "extract_code"]

CPU_S = 4
TIMEOUT_S = 20.0  # on a busy machine 4 s of CPU time take longer; the CPU time is what judges


class RunPython(Protocol):
    """Runs a program somewhere safe; `trueup.sandbox.run_python` by default."""

    def __call__(self, code: str, *, stdin: str = "") -> "SandboxResult": ...


FENCE = re.compile(
    r"```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE
)


def extract_code(text: str, entry_point: str = "") -> str:
    """The first fenced block that defines `entry_point`, else the first block, else the text.

    A fence that never closes (the answer hit its token limit) runs to the end.
    """
    blocks = FENCE.findall(text)
    defining = [block for block in blocks if defines(block, entry_point)]
    return (defining or blocks or [text])[0]


def defines(code: str, name: str) -> bool:
    """True where the code looks as if it did; it need not compile."""
    pattern = rf"^(?:async\s+)?(?:def\s+{re.escape(name)}\s*\(|{re.escape(name)}\s*=[^=])"
    return re.search(pattern, code, re.MULTILINE) is not None


def check_python(checker: dict[str, Any], text: str, run_python: RunPython | None) -> Outcome:
    """The code of the answer defines `entry_point`, which survives every assert of `tests`."""
    code = extract_code(text, checker["entry_point"])
    if not defines(code, checker["entry_point"]):
        return Outcome(False, f"does not define {checker['entry_point']!r}")
    return marked(
        run_python,
        answer=code,
        given="",
        test="\n".join(checker["tests"]),
        entry_point=checker["entry_point"],
        calls_check=False,
    )


def check_unit_test(checker: dict[str, Any], text: str, run_python: RunPython | None) -> Outcome:
    """The function of the answer survives `check(candidate)`, in the manner of HumanEval.

    Chen et al. 2021, arXiv:2107.03374. What stands in `given` before the function (imports,
    helpers) is there for the answer and for the tests. An answer that is only the function's body
    is put below the head that `given` ends with.
    """
    name, given = checker["entry_point"], checker.get("given", "")
    before, head = split_given(given, name)
    code = extract_code(text, name)
    if not defines(code, name):
        code = as_body(head, code)
    if not defines(code, name):
        return Outcome(False, f"does not define {name!r}")
    return marked(
        run_python,
        answer=f"{before}\n{code}",
        given=before,
        test=checker["test"],
        entry_point=name,
        calls_check=True,
    )


def split_given(given: str, name: str) -> tuple[str, str]:
    """What stands before the function, and its head."""
    found = re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\s*\(", given, re.MULTILINE)
    return (given[: found.start()], given[found.start() :]) if found else (given, "")


def as_body(head: str, code: str) -> str:
    """The code below the head, if that is a program: as it stands, or indented."""
    if not head:
        return code
    for body in (code, textwrap.indent(textwrap.dedent(code), "    ")):
        whole = f"{head.rstrip()}\n{body}"
        try:
            tree = ast.parse(whole)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if len(getattr(tree.body[0], "body", ())) > 1:  # more than its docstring
            return whole
    return code


def marked(run_python: RunPython | None, **job: Any) -> Outcome:
    """What the harness says of answer and tests; undecided where there is no sandbox."""
    try:
        result = (run_python or sandboxed)(_harness(), stdin=json.dumps(job))
    except SandboxUnavailable as error:
        return Outcome(None, f"not run: {error}")
    said = _last_line(result.stdout)
    if not result.passed or not isinstance(said, dict):
        return Outcome(False, f"fails its tests: {_why_ended(result)}")
    return verdict(said.get("passed") is True, f"fails its tests: {said.get('reason')}")


def sandboxed(code: str, *, stdin: str = "") -> "SandboxResult":
    """`trueup.sandbox`, with limits that judge by CPU time and not by how busy the machine is."""
    from trueup.sandbox import SandboxLimits, run_python

    return run_python(code, stdin=stdin, limits=SandboxLimits(timeout_s=TIMEOUT_S, cpu_s=CPU_S))


@cache
def _harness() -> str:
    return Path(__file__).with_name("harness.py").read_text(encoding="utf-8")


def _last_line(stdout: str) -> Any:
    try:
        return json.loads(stdout.rstrip("\n").rpartition("\n")[2])
    except ValueError:
        return None


def _why_ended(result: "SandboxResult") -> str:
    return result.stderr.strip().rpartition("\n")[2][:120] or "it ended before them"
