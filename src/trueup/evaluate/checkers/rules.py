"""The rules of an `instruction` checker: small things a program can see in a text."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from trueup.evaluate.checkers.outcome import Outcome, verdict
from trueup.evaluate.checkers.text import CURLY, has_word, lines_of, sentences_of, words_of

__all__ = ["RULES", "Rule", "check_instruction"]


def check_instruction(checker: dict[str, Any], text: str) -> Outcome:
    """Every rule holds. An answer without a single word follows no instruction."""
    if not words_of(text):
        return Outcome(False, "no words in the answer")
    broken = [
        rule["rule"]
        for rule in checker["rules"]
        if not RULES[rule["rule"]].holds(text.strip(), rule.get("value"))
    ]
    return verdict(not broken, f"breaks {broken}")


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
