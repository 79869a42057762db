"""Every error trueup raises on purpose, as one tree.

    TrueupError
    ├── ConfigError (ValueError)          a setting is wrong or unknown
    ├── DataError (ValueError)            records or files that cannot be used
    │   ├── RecordNotFound (LookupError)  an id that is not in the store
    │   └── GoldSetError                  a gold item that cannot be checked
    ├── ModelError (ValueError)           a model folder, adapter or checkpoint that cannot be used
    │   └── IdentityError                 the starting policy is not the model that is served
    ├── TrainingError (ArithmeticError)   non-finite loss, nothing left to train on
    ├── UpstreamError (ConnectionError)   a server we call is down or answers nonsense
    │   └── UnreadableVerdict             a judge answered, but named no winner
    ├── StorageError (OSError)            the disk is full, or the store cannot be written
    ├── ProjectBusy (BlockingIOError)     another process is turning the loop on this project
    ├── SandboxUnavailable (OSError)      the kernel will not isolate generated code here
    └── MissingDependency (ImportError)   an extra is not installed

A message has four parts: what was wrong, what we got, what we expected, and what to do next.
A gate that says no is not an error: it is a `records.Verdict`, and exit code 3.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "GoldSetError",
    "IdentityError",
    "MissingDependency",
    "ModelError",
    "ProjectBusy",
    "RecordNotFound",
    "SandboxUnavailable",
    "StorageError",
    "TrainingError",
    "TrueupError",
    "UnreadableVerdict",
    "UpstreamError",
]


class TrueupError(Exception):
    """Root of the tree. The terminal prints these without a traceback and exits with 1."""

    def __init__(
        self, what: str, *, got: object = None, expected: str = "", next: str = ""
    ) -> None:
        self.what, self.got, self.expected, self.next = what, got, expected, next
        parts = [what.rstrip(".") + "."]
        if got is not None:
            parts.append(f"Got {got!r}.")
        if expected:
            parts.append(f"Expected {expected.rstrip('.')}.")
        if next:
            parts.append(f"Next: {next.rstrip('.')}.")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.what, self.got, self.expected, self.next)


def _rebuild(kind: type, what: str, got: object, expected: str, next: str) -> TrueupError:
    """Pickle calls the class with positional arguments only; ours are keywords."""
    return kind(what, got=got, expected=expected, next=next)


class ConfigError(TrueupError, ValueError):
    """A setting is wrong, unknown, or contradicts another."""


class DataError(TrueupError, ValueError):
    """Records or files that cannot be used."""


class RecordNotFound(DataError, LookupError):
    """An id or alias that is not in the store."""


class GoldSetError(DataError):
    """A gold item is malformed, or its checker does not exist."""


class ModelError(TrueupError, ValueError):
    """A model folder, adapter or checkpoint that cannot be used."""


class IdentityError(ModelError):
    """Training would not start from exactly the model that is served."""


class TrainingError(TrueupError, ArithmeticError):
    """Training cannot go on: a non-finite loss, or no usable pairs."""


class UpstreamError(TrueupError, ConnectionError):
    """A server we depend on is down, or answered something we cannot use."""


class UnreadableVerdict(UpstreamError):
    """A judge is up and answers, but not with a verdict, however often it is asked."""


class StorageError(TrueupError, OSError):
    """The store cannot be written: disk full, read-only, or locked for too long."""


class ProjectBusy(TrueupError, BlockingIOError):
    """Another process is turning the loop on this project."""


class SandboxUnavailable(TrueupError, OSError):
    """This machine cannot isolate generated code, so it will not be run."""


class MissingDependency(TrueupError, ImportError):
    """A part needs an extra that is not installed."""
