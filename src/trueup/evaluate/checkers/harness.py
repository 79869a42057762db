"""Puts tests to an answer without letting the answer near the tests. A script, not a module.

`code.py` gives this file to the sandbox as the program, and answer and tests as its input. It
starts a second interpreter for the answer and talks to it through a pipe: arguments go there,
plain data comes back, and the tests see nothing else. So an answer cannot leave before its tests,
redefine what they use, return an object that equals everything, or say that it passed: the word
is spoken on this side, to which the other has no handle. This process is not dumpable, so its
memory and its files are closed to the answer, which has the same user id.

What is plain: numbers, texts, bytes, None, and containers of these. Arguments are copies; an
answer that works in place must return its result, too. What cannot be closed: an answer may know
the tests by heart.
"""

import ctypes
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from itertools import islice
from typing import IO, Any

PR_SET_DUMPABLE = 4
MOST_BYTES = 16 << 20  # of one value on the pipe
MOST_ITEMS = 100_000  # of an iterator that an answer returns
PLAIN = {
    "builtins": {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int"}
    | {"list", "range", "set", "slice", "str", "tuple"},
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
}


class Broken(Exception):
    """The answer could not be loaded, or returned what cannot be compared."""


# --- the side of the tests


def run_tests() -> None:
    """Read the job, run its tests, print one line of JSON: whether they passed, and why not."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("the tests could not be hidden from the answer")
    job = json.load(sys.stdin)
    told, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  what tests print is noise
    try:
        answer = Answer(job["answer"], job["entry_point"])
        space: dict[str, Any] = {"__name__": "tests"}
        exec(compile(job["given"], "given", "exec"), space)
        space[job["entry_point"]] = answer
        exec(compile(job["test"], "test", "exec"), space)
        if job["calls_check"]:
            space["check"](answer)
        said = {"passed": True, "reason": ""}
    except BaseException as error:
        said = {"passed": False, "reason": f"{type(error).__name__}: {error}"[:200]}
    told.write(json.dumps(said) + "\n")
    told.flush()
    os._exit(0)


class Answer:
    """The answer's function, as the tests may call it."""

    def __init__(self, code: str, entry_point: str) -> None:
        arguments = [sys.executable, "-I", "-S", "-B", "-X", "utf8", __file__, "answer"]
        process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdin and process.stdout
        self._to, self._from = process.stdin, process.stdout
        self._ask((code, entry_point))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask((args, kwargs))

    def _ask(self, question: Any) -> Any:
        try:
            write(self._to, pickle.dumps(question))
            kind, value = Plain(io.BytesIO(read(self._from))).load()
        except (OSError, EOFError):
            raise Broken("the answer ended before its tests did") from None
        except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError) as why:
            raise Broken(f"the answer returned no plain data: {why}") from None
        if kind == "value":
            return value
        if kind == "iterator":
            return iter(value)
        if kind == "coroutine":
            return given_later(value)
        name, message = (str(part)[:150] for part in value)
        raise exception_of(name)(message)


async def given_later(value: Any) -> Any:
    return value


def exception_of(name: str) -> type[Exception]:
    """The built-in exception of that name, for tests that expect one."""
    import builtins

    found = getattr(builtins, name, None)
    if not isinstance(found, type) or not issubclass(found, Exception):
        return Broken
    return Broken if issubclass(found, UnicodeError) else found


class Plain(pickle.Unpickler):
    """Reads data and no code: a class that is not listed is an error."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if global_name not in PLAIN.get(module_name, ()):
            raise pickle.UnpicklingError(f"a {global_name}")
        return super().find_class(module_name, global_name)


# --- the side of the answer


def serve_answer() -> None:
    """Load the answer, then return what its function makes of every call."""
    questions, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    code, entry_point = pickle.loads(read(questions))
    space: dict[str, Any] = {"__name__": "answer"}
    reply(replies, lambda: load(code, entry_point, space))
    while True:
        args, kwargs = pickle.loads(read(questions))
        reply(replies, lambda args=args, kwargs=kwargs: space[entry_point](*args, **kwargs))


def load(code: str, entry_point: str, space: dict[str, Any]) -> None:
    exec(compile(code, "answer", "exec"), space)
    if not callable(space.get(entry_point)):
        raise NameError(f"the answer defines no {entry_point}")


def reply(replies: IO[bytes], work: Any) -> None:
    """Send what the work returns, or the exception that it raises."""
    try:
        message = pickle.dumps(sendable(work()))
    except BaseException as error:
        message = pickle.dumps(("raised", (type(error).__name__, str(error))))
    write(replies, message)


def sendable(value: Any) -> tuple[str, Any]:
    """An iterator is run to its end, a coroutine to its result."""
    if hasattr(type(value), "__next__"):
        return "iterator", list(islice(value, MOST_ITEMS))
    if hasattr(type(value), "__await__"):
        import asyncio

        return "coroutine", asyncio.run(value)
    return "value", value


# --- the pipe


def write(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(struct.pack(">Q", len(message)) + message)
    pipe.flush()


def read(pipe: IO[bytes]) -> bytes:
    """One message.

    Raises:
        EOFError: the other side has ended; ValueError: the message is too long.
    """
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    (size,) = struct.unpack(">Q", head)
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes")
    message = pipe.read(size)
    if len(message) < size:
        raise EOFError
    return message


if __name__ == "__main__":
    serve_answer() if sys.argv[1:] == ["answer"] else run_tests()
