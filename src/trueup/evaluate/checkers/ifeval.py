"""IFEval items: does the answer follow its instructions?

Zhou et al. 2023, arXiv:2311.07911. Strictly, an instruction holds for the text as it is; loosely,
it holds for the text or for what is left of it without its first line ("Sure, here it is:"), its
last line, its asterisks, or any of these together (Section 3.2). An item passes where every
instruction holds strictly; `Outcome.parts` has them one by one, both ways.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from trueup.evaluate.checkers.instructions import INSTRUCTIONS
from trueup.evaluate.checkers.outcome import Outcome, Part, verdict
from trueup.evaluate.checkers.text import is_empty

__all__ = ["INSTRUCTIONS", "check_ifeval", "problem_with"]


def check_ifeval(checker: dict[str, Any], text: str) -> Outcome:
    """Every instruction holds, strictly. An empty text follows none."""
    forms = list(loose_forms(text))
    parts = [
        part_of(name, said(kwargs), text, forms)
        for name, kwargs in zip(checker["instruction_id_list"], checker["kwargs"], strict=True)
    ]
    broken = [part.name for part in parts if not part.passed]
    marked = verdict(not broken, f"breaks {broken}")
    return Outcome(marked.passed, marked.reason, tuple(parts))


def part_of(name: str, kwargs: dict[str, Any], text: str, forms: Sequence[str]) -> Part:
    """One instruction, strictly on the text and loosely on its forms."""

    def holds(form: str) -> bool:
        return not is_empty(form) and INSTRUCTIONS[name].holds(form.strip(), **kwargs)

    strict = holds(text)
    return Part(name, strict, strict or any(holds(form) for form in forms))


def loose_forms(text: str) -> Iterator[str]:
    """The text with and without its first line, its last line and its asterisks: eight forms."""
    lines = text.split("\n")
    for first, last, stars in product((0, 1), (0, 1), (False, True)):
        form = "\n".join(lines[first : len(lines) - last]).strip()
        yield form.replace("*", "") if stars else form


def said(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without what is None: some copies of the data name every argument in every row."""
    return {name: value for name, value in kwargs.items() if value is not None}


# --- validation -----------------------------------------------------------------------------------

ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "count": (lambda value: type(value) is int and value >= 0, "a whole number from 0 on"),
    "language": (
        lambda value: isinstance(value, str) and len(value) == 2 and value.isalpha(),
        "two letters of ISO 639-1",
    ),
    "letter": (lambda value: isinstance(value, str) and len(value) == 1, "one character"),
    "relation": (lambda value: value in ("at least", "less than"), "'at least' or 'less than'"),
    "text": (lambda value: isinstance(value, str) and not is_empty(value), "a text"),
    "texts": (
        lambda value: (
            isinstance(value, list)
            and bool(value)
            and all(isinstance(one, str) and not is_empty(one) for one in value)
        ),
        "a list of texts",
    ),
}


def problem_with(names: Any, kwargs: Any) -> tuple[str, str] | None:
    """What is wrong with an item's instructions and what was expected; None where nothing is.

    Raises:
        ModuleNotFoundError: an instruction needs the extra `ifeval`.
    """
    if not isinstance(names, list) or not names:
        return "'instruction_id_list' names no instruction", "a list of instructions"
    if not isinstance(kwargs, list) or len(kwargs) != len(names):
        return "'kwargs' has not one object an instruction", f"a list of {len(names)} objects"
    for name, given in zip(names, kwargs, strict=True):
        if not isinstance(name, str) or name not in INSTRUCTIONS:
            return f"there is no instruction {name!r}", f"one of {sorted(INSTRUCTIONS)}"
        if not isinstance(given, dict):
            return f"the kwargs of {name!r} are no object", "an object"
        problem = _wrong_argument(name, said(given))
        if problem:
            return problem
        if INSTRUCTIONS[name].tells_languages:
            import py3langid  # noqa: F401  missing, it is missed before a model is asked
    return None


def _wrong_argument(name: str, given: dict[str, Any]) -> tuple[str, str] | None:
    takes = INSTRUCTIONS[name].takes
    if set(given) != set(takes):
        return f"{name!r} has the kwargs {sorted(given)}", f"exactly {sorted(takes)}"
    for argument, kind in takes.items():
        test, expected = ARGUMENTS[kind]
        if not test(given[argument]):
            return f"{name!r} cannot use {argument}={given[argument]!r}", expected
    if "nth_paragraph" in given and not 1 <= given["nth_paragraph"] <= given["num_paragraphs"]:
        return f"{name!r} asks for a paragraph it has not", "from 1 to num_paragraphs"
    return None
