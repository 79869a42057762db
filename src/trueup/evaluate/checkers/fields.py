"""What a checker's fields must be, so that a malformed one is found when the file is read."""

import ast
import math
import re
from collections.abc import Callable
from typing import Any

from trueup.errors import GoldSetError
from trueup.evaluate.checkers.code import split_given
from trueup.evaluate.checkers.ifeval import problem_with
from trueup.evaluate.checkers.rules import RULES
from trueup.evaluate.checkers.text import is_empty, normalised

__all__ = ["FIELDS", "validate"]


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not is_empty(value)


def is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def is_list_of(test: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(test(part) for part in value)


def is_pattern(value: Any) -> bool:
    try:
        return is_text(value) and re.compile(value).search("") is None
    except re.error:
        return False


def is_code(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(compile(value, "test", "exec"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def is_assert(value: Any) -> bool:
    return is_text(value) and value.startswith("assert ") and "\n" not in value


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "any": (lambda value: True, "anything"),
    "answers": (
        lambda value: is_list_of(lambda part: is_text(part) and bool(normalised(part)), value),
        "a list of texts with at least one letter or digit",
    ),
    "asserts": (lambda value: is_list_of(is_assert, value), "a list of one-line assert statements"),
    "code": (is_code, "Python that compiles"),
    "count": (lambda value: type(value) is int and value >= 1, "a whole number from 1 on"),
    "letter": (lambda value: is_text(value) and len(value) == 1, "one letter"),
    "letters": (
        lambda value: is_list_of(lambda part: is_text(part) and len(part) == 1, value),
        "a list of single letters",
    ),
    "name": (lambda value: isinstance(value, str) and value.isidentifier(), "a Python name"),
    "number": (is_number, "a finite number"),
    "pattern": (is_pattern, "a regular expression that does not match an empty text"),
    "rules": (lambda value: is_list_of(is_rule, value), f"rules out of {sorted(RULES)}"),
    "source": (lambda value: isinstance(value, str), "the beginning of a program"),
    "text": (is_text, "a text that is not empty"),
    "texts": (lambda value: is_list_of(is_text, value), "a list of texts that are not empty"),
    "tolerance": (lambda value: is_number(value) and value >= 0, "a number from 0 on"),
}

FIELDS: dict[str, dict[str, str]] = {
    "choice": {"choices": "letters", "answer": "letter"},
    "contains": {"any": "texts", "all": "texts"},
    "exact": {"answers": "answers"},
    "instruction": {"rules": "rules"},
    "numeric": {"answer": "number", "tolerance": "tolerance"},
    "ifeval": {"instruction_id_list": "any", "kwargs": "any"},
    "judge": {"beats": "text", "min_score": "number"},
    "python": {"entry_point": "name", "tests": "asserts"},
    "regex": {"pattern": "pattern"},
    "unit_test": {"entry_point": "name", "given": "source", "test": "code"},
}
OPTIONAL = {"all", "any", "beats", "given", "min_score", "tolerance"}
AT_LEAST_ONE = {"contains": ("all", "any"), "judge": ("beats", "min_score")}
"""Checkers whose fields are optional one by one, but not all of them."""


def is_rule(value: Any) -> bool:
    """`{"rule": name}`, or `{"rule": name, "value": …}` for the rules that take one."""
    name = value.get("rule") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in RULES:
        return False
    kind = RULES[name].value
    if kind is None:
        return set(value) == {"rule"}
    return set(value) == {"rule", "value"} and KINDS[kind][0](value["value"])


def validate(checker: dict[str, Any]) -> None:
    """Finds a checker that `check` could not use, whatever the answer.

    Raises:
        GoldSetError: names the field, what it got and what was expected.
    """
    kind = checker.get("type") if isinstance(checker, dict) else None
    if not isinstance(kind, str) or kind not in FIELDS:
        raise GoldSetError(
            "evaluate: a gold item has no usable checker type",
            got=checker or "nothing",
            expected=f"an object whose 'type' is one of {sorted(FIELDS)}",
            next="correct the item's 'checker' in the gold set",
        )
    fields = FIELDS[kind]
    if unknown := sorted(set(checker) - set(fields) - {"type"}):
        raise malformed(kind, f"unknown field {unknown[0]!r}", checker, f"only {sorted(fields)}")
    for name, field in fields.items():
        test, expected = KINDS[field]
        if name not in checker and name in OPTIONAL:
            continue
        if not test(checker.get(name)):
            raise malformed(kind, f"cannot use field {name!r}", checker, expected)
    either = AT_LEAST_ONE.get(kind)
    if either and not set(either) & set(checker):
        raise malformed(kind, "asks for nothing", checker, f"'{either[0]}', '{either[1]}' or both")
    if kind == "choice" and checker["answer"] not in checker["choices"]:
        raise malformed(kind, "'answer' is not a choice", checker, "one of 'choices'")
    if kind == "ifeval":
        problem = problem_with(checker.get("instruction_id_list"), checker.get("kwargs"))
        if problem:
            raise malformed(kind, problem[0], checker, problem[1])
    if kind == "unit_test":
        _validate_unit_test(checker)


def _validate_unit_test(checker: dict[str, Any]) -> None:
    tree = ast.parse(checker["test"])
    if not any(isinstance(one, ast.FunctionDef) and one.name == "check" for one in tree.body):
        raise malformed(
            "unit_test", "'test' defines no 'check'", checker, "def check(candidate): …"
        )
    before, _ = split_given(checker.get("given", ""), checker["entry_point"])
    if not is_code(before):
        raise malformed(
            "unit_test", "'given' breaks off before the function", checker, "Python that compiles"
        )


def malformed(kind: str, problem: str, checker: dict[str, Any], expected: str) -> GoldSetError:
    return GoldSetError(
        f"evaluate: a {kind!r} checker is malformed: {problem}",
        got=checker,
        expected=expected,
        next="correct the item's 'checker' in the gold set",
    )
