"""What a checker says of one answer."""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Outcome", "Part", "verdict"]


class Part(NamedTuple):
    """One instruction of an item that has several."""

    name: str
    passed: bool
    loose: bool
    """Passed by the answer or by it without its first line, its last line or its emphasis."""


@dataclass(frozen=True)
class Outcome:
    """`passed` is None when the answer could not be checked on this machine."""

    passed: bool | None
    reason: str
    parts: tuple[Part, ...] = ()
    """Of an `ifeval` item; empty for every other."""


def verdict(passed: bool, reason: str) -> Outcome:
    """The outcome, with the reason where it is a no."""
    return Outcome(passed, "as expected" if passed else reason)
