"""Where else does a text stand? Found in the length of what is searched, however many texts."""

from collections.abc import Iterable
from typing import Any

from trueup.records import Record

__all__ = ["ERASED", "Needles", "texts_of"]

ERASED = "[erased]"
START = 24
"""Characters of a text's beginning that give it away wherever they stand, quoted or cut short."""
SHORTEST = 8
"""A shorter text, such as a greeting, is anybody's."""


class Needles:
    """Texts to be found inside of others."""

    def __init__(self, texts: Iterable[str]) -> None:
        kept = {text.strip() for text in texts}
        self._whole = {text for text in kept if len(text) >= SHORTEST}
        self._starts = {text[:START] for text in self._whole if len(text) >= START}

    def are_in(self, text: str) -> bool:
        """True where the text is one of them, or holds the beginning of one."""
        if text.strip() in self._whole:
            return True
        places = range(len(text) - START + 1) if self._starts else ()
        return any(text[at : at + START] in self._starts for at in places)

    def blotted(self, value: Any) -> Any:
        """JSON with `[erased]` in place of every text that holds one of them; the same object
        where none does."""
        if isinstance(value, str):
            return ERASED if self.are_in(value) else value
        if isinstance(value, dict):
            made = {key: self.blotted(inner) for key, inner in value.items()}
            return value if all(made[key] is value[key] for key in value) else made
        if isinstance(value, list):
            listed = [self.blotted(inner) for inner in value]
            return value if all(a is b for a, b in zip(listed, value, strict=True)) else listed
        return value


def texts_of(record: Record) -> list[str]:
    """What people and models wrote in a record of traffic; a system prompt is everybody's."""
    data = record.model_dump(mode="json")
    found = [turn["content"] for turn in data.get("prompt", ()) if turn["role"] != "system"]
    answers = [data.get(name) for name in ("completion", "chosen", "rejected")]
    for answer in [*answers, *data.get("candidates", ()), *data.get("completions", ())]:
        if answer:
            found += [answer["text"], *(c["arguments"] for c in answer.get("tool_calls", ()))]
    found += [data.get(name) or "" for name in ("edit", "comment")]
    return [text for text in found if text]
