"""Decides whether a text answers a gold item.

A checker is a small JSON object stored with the item: `{"type": "numeric", "answer": 42}`. Each
type is one function here; `validate` finds a malformed checker when the gold set is loaded, long
before a model is asked anything.

Two promises. A checker that cannot decide says no: an ambiguous choice, an unreadable number or a
truncated function is a wrong answer, and an empty text passes nothing. And code written by a model
runs in `trueup.sandbox` only; without a sandbox the outcome is `None`, which is neither right nor
wrong, so a gate can refuse instead of guessing.
"""

import json
import math
import re
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from trueup.errors import GoldSetError, SandboxUnavailable

if TYPE_CHECKING:
    from trueup.sandbox import SandboxResult

    RunPython = Callable[[str], SandboxResult]

__all__ = ["Outcome", "check", "extract_code", "validate"]


@dataclass(frozen=True)
class Outcome:
    """`passed` is None when the answer could not be checked on this machine."""

    passed: bool | None
    reason: str


def check(checker: dict, text: str, *, run_python: "RunPython | None" = None) -> Outcome:
    """Marks one answer. Only `python` items run code; by default in `trueup.sandbox`."""
    validate(checker)
    if is_empty(text):
        return Outcome(False, "empty answer")
    if checker["type"] == "python":
        return check_python(checker, text, run_python)
    return CHECKERS[checker["type"]](checker, text)


# --- text -------------------------------------------------------------------------------------

CURLY = "\u2018\u2019\u201c\u201d"
"""Typographic quotes, single and double."""


def is_empty(text: str) -> bool:
    """True if nothing would be seen: white space, control and zero-width characters only."""
    return all(c.isspace() or unicodedata.category(c).startswith("C") for c in text)


def normalised(text: str) -> str:
    """For comparing answers: case, spacing, quotes, emphasis and outer punctuation removed."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(" .,;:!?\"'`*_()[]" + CURLY)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def has_word(text: str, word: str) -> bool:
    """Whole words only, in any case: `cat` is not in `concatenate`."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def verdict(passed: bool, reason: str) -> Outcome:
    return Outcome(passed, "as expected" if passed else reason)


# --- one function per type --------------------------------------------------------------------


def check_exact(checker: dict, text: str) -> Outcome:
    """The whole answer is one of `answers`, whatever its case and outer punctuation."""
    wanted = {normalised(answer) for answer in checker["answers"]}
    return verdict(normalised(text) in wanted, f"{text[:60]!r} is none of {checker['answers']}")


def check_contains(checker: dict, text: str) -> Outcome:
    """Every word of `all` and at least one of `any` stands in the text, as whole words."""
    missing = [word for word in checker.get("all", []) if not has_word(text, word)]
    if missing:
        return Outcome(False, f"lacks {missing}")
    options = checker.get("any", [])
    found = not options or any(has_word(text, word) for word in options)
    return verdict(found, f"has none of {options}")


NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>(?<!\))[-\u2212+])?\$?"  # in `12-5` and `(3)-5` the dash is an operator
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?![0-9_]|,[0-9]{3}(?![0-9])|[a-zA-Z]*[0-9_])(?!(?:st|nd|rd|th)\b)"  # no `2nd`, no `0x1f`
)


def check_numeric(checker: dict, text: str) -> Outcome:
    """The last number in the text equals `answer` within `tolerance` (by default, exactly)."""
    found = list(NUMBER.finditer(text))
    if not found:
        return Outcome(False, "no number in the answer")
    value = float(found[-1]["digits"].replace(",", ""))
    value = -value if found[-1]["sign"] in ("-", "\u2212") else value
    # The 1e-9 absorbs the binary spelling of decimals such as 0.1, not wrong digits.
    near = math.isclose(
        value, checker["answer"], rel_tol=1e-9, abs_tol=checker.get("tolerance", 0) + 1e-9
    )
    return verdict(near, f"last number is {value:g}, not {checker['answer']:g}")


CONCLUSION = re.compile(
    r"\banswer(?:\s+is\b|\s*:)\s*(.*?)(?:[.!]\s|[.!]?$)", re.IGNORECASE | re.MULTILINE
)
ARTICLE = re.compile(r"(?<![\w(])(?:A|I)(?=\s+(?!(?:and|because|but|is|or|since)\b)\w)")
LETTER = re.compile(r"\((\w)\)|(?<![\w'\u2019(])(\w)\)|(?<![\w'\u2019-])([A-Z])(?![\w'\u2019-])")


def check_choice(checker: dict, text: str) -> Outcome:
    """The text settles on one letter of `choices`, and it is `answer`. Naming two is no answer."""
    conclusions = CONCLUSION.findall(text)
    named = letters_in("; ".join(conclusions), checker["choices"])
    named = named or letters_in(text, checker["choices"])
    return verdict(named == {checker["answer"].upper()}, f"chose {sorted(named) or 'nothing'}")


def letters_in(text: str, choices: list[str]) -> set[str]:
    """The choices a text names: a bare letter, `(b)`, `b)` or a capital on its own, but not in
    `not A`, nor the words `A` and `I`."""
    if len(normalised(text)) == 1:
        named = {normalised(text).upper()}
    else:
        text = re.sub(r"\bnot\s+\(?\w\b\)?", "", ARTICLE.sub("", text), flags=re.IGNORECASE)
        named = {letter.upper() for match in LETTER.findall(text) for letter in match if letter}
    return named & {choice.upper() for choice in choices}


def check_regex(checker: dict, text: str) -> Outcome:
    """`pattern` occurs in the text; anchor it to ask for the whole answer."""
    found = re.search(checker["pattern"], text.strip()) is not None
    return verdict(found, f"no match for {checker['pattern']!r}")


FENCE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def extract_code(text: str, entry_point: str = "") -> str:
    """The first fenced block that defines `entry_point`, else the first block, else the text.

    A fence that never closes (the answer hit its token limit) runs to the end.
    """
    blocks = FENCE.findall(text)
    defining = [block for block in blocks if defines(block, entry_point)]
    return (defining or blocks or [text])[0]


def defines(code: str, name: str) -> bool:
    pattern = rf"^(?:async\s+)?(?:def\s+{re.escape(name)}\s*\(|{re.escape(name)}\s*=[^=])"
    return re.search(pattern, code, re.MULTILINE) is not None


def check_python(checker: dict, text: str, run_python: "RunPython | None") -> Outcome:
    """The code of the answer defines `entry_point` and survives every assert of `tests`."""
    code = extract_code(text, checker["entry_point"])
    if not defines(code, checker["entry_point"]):
        return Outcome(False, f"does not define {checker['entry_point']!r}")
    if run_python is None:
        from trueup.sandbox import run_python
    marker = f"passed {secrets.token_hex(8)}"
    try:
        result = run_python(with_tests(code, checker["tests"], marker))
    except SandboxUnavailable as error:
        return Outcome(None, f"not run: {error}")
    reached = result.stdout.rstrip().endswith(marker)
    return verdict(result.passed and reached, f"fails its tests: {last_line(result.stderr)}")


def with_tests(code: str, tests: list[str], marker: str) -> str:
    """The answer, its tests, and a word printed at the end: exit code 0 alone proves nothing, for
    an answer may exit before its tests. (An answer that makes an object equal to everything, or
    reads its own source, still passes: this guards against luck, not against an attacker.)"""
    return "\n".join([code.rstrip(), "", *tests, f"print({marker!r})", ""])


def last_line(stderr: str) -> str:
    return stderr.strip().rpartition("\n")[2][:120] or "it ended before them"


def check_instruction(checker: dict, text: str) -> Outcome:
    """Every rule holds. An answer without a single word follows no instruction."""
    if not words_of(text):
        return Outcome(False, "no words in the answer")
    broken = [
        rule["rule"]
        for rule in checker["rules"]
        if not RULES[rule["rule"]].holds(text.strip(), rule.get("value"))
    ]
    return verdict(not broken, f"breaks {broken}")


# --- the rules of `instruction` ---------------------------------------------------------------


def sentences_of(text: str) -> list[str]:
    """Split at end marks followed by space, so `3.5` is one word. Abbreviations are not known."""
    return [
        part for part in re.split(r"[.!?…]+[\"'\u2019\u201d)*]*(?:\s+|$)", text) if words_of(part)
    ]


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if words_of(line)]


BULLET = re.compile(r"\s*(?:[-*+\u2022]|\(?\d+[.)])\s+\S")


def items_of(text: str) -> list[str]:
    """Bullets or numbers if there are several, else lines, else the parts between commas and `and`.

    So an opening line such as `Here are three:` does not count as an item.
    """
    lines = lines_of(text)
    bullets = [line for line in lines if BULLET.match(line)]
    if len(bullets) > 1:
        return bullets
    parts = lines if len(lines) > 1 else re.split(r",\s*(?:and\s+|or\s+)?|\s+and\s+|;", text)
    return [part for part in parts if words_of(part)]


def starts_with(text: str, start: str) -> bool:
    opening = text.lstrip("\"'`*_ " + CURLY).casefold()
    rest = opening.removeprefix(start.casefold())
    return opening != rest and not (start[-1].isalnum() and rest[:1].isalnum())


def ends_with(text: str, end: str) -> bool:
    bare = text.rstrip("\"'`*_ " + CURLY).casefold()
    return bare.endswith(end.casefold()) or text.casefold().endswith(end.casefold())


def json_object(text: str, keys: list[str]) -> bool:
    """The answer is one JSON object with exactly these keys; a code fence around it is allowed."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL | re.IGNORECASE)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(value) == set(keys)


class Rule(NamedTuple):
    holds: Callable[[str, Any], bool]
    """Of the stripped text and the rule's value."""
    value: str | None
    """What kind of value the rule takes; a key of KINDS, or None for no value."""


RULES: dict[str, Rule] = {
    "avoids_word": Rule(lambda text, word: not has_word(text, word), "text"),
    "contains_digit": Rule(lambda text, _: re.search("[0-9]", text) is not None, None),
    "contains_word": Rule(has_word, "text"),
    "ends_with": Rule(ends_with, "text"),
    "json_object": Rule(json_object, "texts"),
    "lowercase": Rule(lambda text, _: text.islower(), None),
    "max_words": Rule(lambda text, most: len(words_of(text)) <= most, "count"),
    "min_words": Rule(lambda text, least: len(words_of(text)) >= least, "count"),
    "no_commas": Rule(lambda text, _: not re.search("[,\u060c\uff0c\u3001]", text), None),
    "num_items": Rule(lambda text, number: len(items_of(text)) == number, "count"),
    "num_lines": Rule(lambda text, number: len(lines_of(text)) == number, "count"),
    "num_sentences": Rule(lambda text, number: len(sentences_of(text)) == number, "count"),
    "num_words": Rule(lambda text, number: len(words_of(text)) == number, "count"),
    "one_word": Rule(lambda text, _: len(words_of(text)) == 1, None),
    "starts_with": Rule(starts_with, "text"),
    "uppercase": Rule(lambda text, _: text.isupper(), None),
}

CHECKERS: dict[str, Callable[..., Outcome]] = {
    "choice": check_choice,
    "contains": check_contains,
    "exact": check_exact,
    "instruction": check_instruction,
    "numeric": check_numeric,
    "python": check_python,
    "regex": check_regex,
}


# --- validation -------------------------------------------------------------------------------


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


def is_assert(value: Any) -> bool:
    return is_text(value) and value.startswith("assert ") and "\n" not in value


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "answers": (
        lambda value: is_list_of(lambda part: is_text(part) and bool(normalised(part)), value),
        "a list of texts with at least one letter or digit",
    ),
    "asserts": (lambda value: is_list_of(is_assert, value), "a list of one-line assert statements"),
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
    "python": {"entry_point": "name", "tests": "asserts"},
    "regex": {"pattern": "pattern"},
}
OPTIONAL = {"any", "all", "tolerance"}


def is_rule(value: Any) -> bool:
    """`{"rule": name}`, or `{"rule": name, "value": …}` for the rules that take one."""
    name = value.get("rule") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in RULES:
        return False
    kind = RULES[name].value
    if kind is None:
        return set(value) == {"rule"}
    return set(value) == {"rule", "value"} and KINDS[kind][0](value["value"])


def validate(checker: dict) -> None:
    """Raises GoldSetError if `check` could not use this checker, whatever the answer."""
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
    if kind == "contains" and not {"any", "all"} & set(checker):
        raise malformed(kind, "asks for nothing", checker, "'any', 'all' or both")
    if kind == "choice" and checker["answer"] not in checker["choices"]:
        raise malformed(kind, "'answer' is not a choice", checker, "one of 'choices'")


def malformed(kind: str, problem: str, checker: dict, expected: str) -> GoldSetError:
    return GoldSetError(
        f"evaluate: a {kind!r} checker is malformed: {problem}",
        got=checker,
        expected=expected,
        next="correct the item's 'checker' in the gold set",
    )
