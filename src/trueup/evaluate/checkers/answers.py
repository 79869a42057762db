"""Checkers of an answer that is a value: a text, a word, a number, a letter, a pattern."""

import math
import re
from typing import Any

from trueup.evaluate.checkers.outcome import Outcome, verdict
from trueup.evaluate.checkers.text import has_word, normalised

__all__ = ["check_choice", "check_contains", "check_exact", "check_numeric", "check_regex"]


def check_exact(checker: dict[str, Any], text: str) -> Outcome:
    """The whole answer is one of `answers`, whatever its case and outer punctuation."""
    wanted = {normalised(answer) for answer in checker["answers"]}
    return verdict(normalised(text) in wanted, f"{text[:60]!r} is none of {checker['answers']}")


def check_contains(checker: dict[str, Any], text: str) -> Outcome:
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


def check_numeric(checker: dict[str, Any], text: str) -> Outcome:
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


def check_choice(checker: dict[str, Any], text: str) -> Outcome:
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


def check_regex(checker: dict[str, Any], text: str) -> Outcome:
    """`pattern` occurs in the text; anchor it to ask for the whole answer."""
    found = re.search(checker["pattern"], text.strip()) is not None
    return verdict(found, f"no match for {checker['pattern']!r}")
