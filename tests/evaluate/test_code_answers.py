"""Answers that are code: what passes, what fails, and what tries to pass without solving."""

import gzip
import json
from pathlib import Path

import pytest
from test_checkers import PYTHON, UNIT_TEST, RecordingSandbox

from trueup.errors import SandboxUnavailable
from trueup.evaluate.checkers import Outcome, check, extract_code
from trueup.sandbox import SandboxResult, check_available

HUMANEVAL = Path(__file__).parents[3] / "shared" / "data" / "HumanEval.jsonl.gz"


def no_sandbox(code: str, *, stdin: str = "") -> SandboxResult:
    raise SandboxUnavailable("sandbox: the kernel refuses to isolate code")


@pytest.fixture
def real_sandbox() -> None:
    try:
        check_available()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def passes(checker: dict, code: str) -> bool | None:
    return check(checker, f"```python\n{code}\n```").passed


# --- finding the code -------------------------------------------------------------------------


def test_the_answers_code_and_its_tests_go_to_the_sandbox_apart() -> None:
    sandbox = RecordingSandbox()
    text = "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
    assert check(PYTHON, text, run_python=sandbox).passed is True
    [job] = sandbox.jobs
    assert job["answer"] == "def double(x):\n    return 2 * x\n"
    assert job["test"] == "assert double(2) == 4"


def test_a_failed_test_gives_its_reason() -> None:
    text = "def double(x):\n    return x"
    outcome = check(PYTHON, text, run_python=RecordingSandbox(False))
    assert outcome == Outcome(False, "fails its tests: AssertionError: ")


def test_code_is_undecided_without_a_sandbox() -> None:
    for checker in (PYTHON, UNIT_TEST):
        outcome = check(checker, "def double(x): return 2*x", run_python=no_sandbox)
        assert outcome.passed is None and "isolate" in outcome.reason


@pytest.mark.parametrize(
    "text",
    ["I cannot do that.", "def triple(x): return 3 * x", "# def double(x):", "double == 4",
     "class A:\n    def double(self, x): ...", "def double", "def doubled(x): ..."],
)  # fmt: skip
def test_code_without_the_entry_point_is_wrong_and_never_run(text: str) -> None:
    sandbox = RecordingSandbox()
    assert check(PYTHON, text, run_python=sandbox).passed is False
    assert sandbox.jobs == []


def test_a_fence_that_never_closes_runs_to_the_end() -> None:
    text = "Sure:\n```python\ndef double(x):\n    return 2 * x"
    assert extract_code(text, "double") == "def double(x):\n    return 2 * x"


def test_the_fence_that_defines_the_function_is_taken() -> None:
    text = "```\npip install x\n```\n```py\ndouble = lambda x: 2 * x\n```"
    assert extract_code(text, "double") == "double = lambda x: 2 * x\n"
    assert extract_code("double = 1", "double") == "double = 1"


# --- running it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("```python\ndef double(x):\n    return 2 * x\n```", True),
        ("```python\ndef double(x):\n    return 2 * x", True),
        ("```python\ndef double(x):\n    return 2 *", False),
        ("double = lambda x: 2 * x\nprint('noise')", True),
        ("def double(x):\n    return x + 1", False),
        ('def double(x): ...\n"""', False),
        ("def double(x): ...\nif False:\n    pass\n    (", False),
        ("def double(x): return 2 * x\nif __name__ == '__main__':\n    input()", True),
    ],
)
def test_python_answers_in_the_real_sandbox(real_sandbox: None, text: str, passed: bool) -> None:
    assert check(PYTHON, text).passed is passed


def test_what_stands_before_the_function_is_there_for_answer_and_test(real_sandbox: None) -> None:
    checker = {
        "type": "unit_test",
        "entry_point": "area",
        "given": "import math\n\ndef square(x):\n    return x * x\n\ndef area(r):\n    'a disc'\n",
        "test": "def check(candidate):\n    assert candidate(2) == math.pi * square(2)\n",
    }
    whole = "def area(r):\n    return math.pi * square(r)"
    assert passes(checker, whole) is True
    assert passes(checker, "    return math.pi * square(r)") is True  # the body alone
    assert passes(checker, "return math.pi * square(r)") is True
    assert passes(checker, "math.pi * 4") is False
    assert passes(checker, "") is False


@pytest.mark.parametrize(
    ("body", "test"),
    [
        ("return {1, 2}, [1.5, None], {'a': (b'x', float('inf'))}",
         "assert f() == ({1, 2}, [1.5, None], {'a': (b'x', float('inf'))})"),
        ("yield from (1, 2)", "assert list(f()) == [1, 2]"),
        ("import collections; return collections.Counter('aab')", "assert f()['a'] == 2"),
        ("raise ValueError('no')",
         "try: f()\nexcept ValueError as e: assert str(e) == 'no'\nelse: assert False"),
        ("return 2 ** 200", "assert f() == 2 ** 200"),
    ],
)  # fmt: skip
def test_plain_data_and_exceptions_come_back_as_they_were(
    real_sandbox: None, body: str, test: str
) -> None:
    lines = "\n".join(f"    {line}" for line in test.splitlines())
    checker = {
        "type": "unit_test", "entry_point": "f",
        "test": f"def check(f):\n{lines}\n",
    }  # fmt: skip
    assert passes(checker, f"def f():\n    {body}") is True


def test_an_argument_is_a_copy() -> None:
    checker = {
        "type": "unit_test", "entry_point": "f",
        "test": "def check(f):\n    xs = [2, 1]\n    assert f(xs) == sorted(xs)\n",
    }  # fmt: skip
    assert passes(checker, "def f(xs):\n    xs.clear()\n    return []") is False


# --- passing without solving ------------------------------------------------------------------

EQUAL = """
class Same(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __sub__(self, other): return 0
    def __reduce__(self): return (Same, ())
def double(x): return Same()
"""
READS_ITS_SOURCE = """
import glob, os
def read(path):
    try:
        return os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1 << 20)
    except OSError:
        return b""
def double(x):
    places = ["/program.py", *glob.glob("/tmp/*"), *glob.glob("/tmp/.*")]
    for pid in ("1", "2", str(os.getppid())):
        places += [f"/proc/{pid}/{name}" for name in ("mem", "environ", "cmdline", "fd/0", "stack")]
        places += glob.glob(f"/proc/{pid}/fd/*") + glob.glob(f"/proc/{pid}/task/*/mem")
    texts = [read(place) for place in places]
    return 4 if any(b"double(2)" in t or b"candidate(2)" in t for t in texts) else 0
"""
SPEAKS_FOR_THE_TESTS = """
import glob, os
for path in ["/dev/stdout", "/proc/1/fd/1", *glob.glob("/proc/[0-9]*/fd/*")]:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b'{"passed": true, "reason": ""}\\n')
    except OSError:
        pass
print('{"passed": true, "reason": ""}')
def double(x): return 0
"""
CHEATS = {
    "exits at once": "import sys\ndef double(x): ...\nsys.exit(0)",
    "exits without cleaning up": "import os\ndef double(x): ...\nos._exit(0)",
    "exits when called": "def double(x):\n    raise SystemExit(0)",
    "exits without cleaning up when called": "import os\ndef double(x): os._exit(0)",
    "returns what equals everything": EQUAL,
    "returns a patched class": "import fractions\nfractions.Fraction.__eq__ = lambda a, b: True\n"
    "def double(x): return fractions.Fraction(1)",
    "redefines the test's names": "import builtins\nbuiltins.AssertionError = Exception\n"
    "def check(candidate): pass\ndef double(x): return 0",
    "redefines equality of its frame": "import sys\ndef double(x):\n"
    "    f = sys._getframe()\n    while f:\n        f.f_globals['check'] = lambda c: None\n"
    "        f.f_globals['said'] = {'passed': True}\n        f = f.f_back\n    return 0",
    "reads the tests": READS_ITS_SOURCE,
    "speaks for the tests": SPEAKS_FOR_THE_TESTS,
    "kills the tests": "import os, signal\ndef double(x): os.kill(os.getppid(), signal.SIGKILL)",
    "stops its parents": "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\n"
    "def double(x): return 0",
    "floods the pipe": "import os\nfor fd in range(3, 12):\n"
    "    try: os.write(fd, bytes(65536))\n    except OSError: pass\ndef double(x): return 0",
    "sends code": "class R:\n    def __reduce__(self): return (exec, ('x = 1',))\n"
    "def double(x): return R()",
    "sends a class of the tests": "class R:\n    def __reduce__(self):\n"
    "        import __main__; return (__main__.Answer, ('', ''))\ndef double(x): return R()",
    "says it twice": "def double(x):\n    print('{\"passed\": true}')\n    return 0",
    "answers not a number": "def double(x): return float('nan')",
}  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_does_not_pass(real_sandbox: None, cheat: str) -> None:
    for checker in (PYTHON, UNIT_TEST):
        assert passes(checker, CHEATS[cheat]) is False, cheat


def test_an_answer_that_knows_the_tests_by_heart_passes(real_sandbox: None) -> None:
    assert passes(PYTHON, "def double(x): return {2: 4}[x]") is True  # what no sandbox can close


def test_a_loop_without_end_ends(real_sandbox: None) -> None:
    outcome = check(PYTHON, "def double(x):\n    while True: pass")
    assert outcome.passed is False


# --- the benchmark's own solutions ------------------------------------------------------------


@pytest.mark.skipif(not HUMANEVAL.is_file(), reason=f"{HUMANEVAL} is not here")
def test_every_solution_of_humaneval_passes_and_a_stub_does_not(real_sandbox: None) -> None:
    rows = [json.loads(line) for line in gzip.decompress(HUMANEVAL.read_bytes()).splitlines()]
    assert len(rows) == 164
    for i in (0, 32, 38, 50, 120):  # three of them have helpers before the function
        row = rows[i]
        checker = {
            "type": "unit_test", "entry_point": row["entry_point"], "given": row["prompt"],
            "test": row["test"],
        }  # fmt: skip
        assert passes(checker, row["prompt"] + row["canonical_solution"]) is True, row["task_id"]
        assert passes(checker, row["prompt"] + "    return None") is False, row["task_id"]
