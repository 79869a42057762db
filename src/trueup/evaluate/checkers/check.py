"""From a checker's type to the function that marks an answer."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trueup.evaluate.checkers.answers import (
    check_choice,
    check_contains,
    check_exact,
    check_numeric,
    check_regex,
)
from trueup.evaluate.checkers.code import check_python, check_unit_test
from trueup.evaluate.checkers.fields import validate
from trueup.evaluate.checkers.ifeval import check_ifeval
from trueup.evaluate.checkers.judged import check_judge
from trueup.evaluate.checkers.outcome import Outcome
from trueup.evaluate.checkers.rules import check_instruction
from trueup.evaluate.checkers.text import is_empty
from trueup.records import Messages

if TYPE_CHECKING:
    from trueup.evaluate.checkers.code import RunPython
    from trueup.judges import Judge

__all__ = ["CHECKERS", "check"]

CHECKERS: dict[str, Callable[..., Outcome]] = {
    "choice": check_choice,
    "contains": check_contains,
    "exact": check_exact,
    "ifeval": check_ifeval,
    "instruction": check_instruction,
    "judge": check_judge,
    "numeric": check_numeric,
    "python": check_python,
    "regex": check_regex,
    "unit_test": check_unit_test,
}


def check(
    checker: dict[str, Any],
    text: str,
    *,
    prompt: Messages = (),
    run_python: "RunPython | None" = None,
    judge: "Judge | None" = None,
) -> Outcome:
    """Marks one answer.

    Args:
        prompt: what was asked; a `judge` item needs it.
        run_python: what runs code; by default `trueup.sandbox`.
        judge: who grades `judge` items; without one they are undecided.

    Raises:
        GoldSetError: the checker is malformed.
        UpstreamError: the judge's server is down.
    """
    validate(checker)
    kind = checker["type"]
    if kind == "ifeval":  # says of an empty text, too, which instructions it breaks
        return check_ifeval(checker, text)
    if is_empty(text):
        return Outcome(False, "empty answer")
    if kind in ("python", "unit_test"):
        return CHECKERS[kind](checker, text, run_python)
    if kind == "judge":
        return check_judge(checker, text, prompt, judge)
    return CHECKERS[kind](checker, text)
