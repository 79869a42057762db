"""Where else does a text stand? Found in the length of what is searched, however many texts."""

from collections.abc import Iterable, Sequence
from typing import Any

from trueup.records import Record

__all__ = ["ERASED", "START", "Needles", "Talks", "texts_of"]

ERASED = "[erased]"
START = 24
"""Characters of a text's beginning that give it away wherever they stand, quoted or cut short."""
SHORTEST = 8
"""A shorter text, such as a greeting, is anybody's where it stands alone."""

Turns = Sequence[dict[str, Any]]
"""A conversation as its JSON has it."""


class Talks:
    """Conversations to be found again, whole or in longer ones; what the system said before does
    not tell them apart."""

    def __init__(self, prompts: Iterable[Turns]) -> None:
        self._talks = {_said(turns) for turns in prompts}
        self._sizes = {len(talk) for talk in self._talks}
        said = {text.strip() for talk in self._talks for text in talk}
        self._turns = {text for text in said if len(text) >= SHORTEST}

    def __bool__(self) -> bool:
        return bool(self._talks)

    def has(self, turns: Turns) -> bool:
        """True for one of them."""
        return bool(self._talks) and _said(turns) in self._talks

    def are_in(self, turns: Turns) -> bool:
        """True also for one that goes on from one of them, or repeats a turn of one."""
        said = _said(turns)
        if any(text.strip() in self._turns for text in said):
            return True
        return any(
            said[at : at + size] in self._talks
            for size in self._sizes
            for at in range(len(said) - size + 1)
        )


class Needles:
    """Texts to be found inside of others."""

    def __init__(
        self, texts: Iterable[str], *, whole: Iterable[str] = (), talks: Talks | None = None
    ) -> None:
        """
        Args:
            whole: texts that begin as anybody's do: found only where all of one stands.
            talks: conversations of which every turn goes, however short.
        """
        kept = {text.strip() for text in texts}
        self._whole = {text for text in kept if len(text) >= SHORTEST}
        self._starts = {text[:START] for text in self._whole if len(text) >= START}
        self._whole |= {text.strip() for text in whole}
        self._talks = talks

    def are_in(self, text: str) -> bool:
        """True where the text is one of them, or holds the beginning of one."""
        if text.strip() in self._whole:
            return True
        places = range(len(text) - START + 1) if self._starts else ()
        return any(text[at : at + START] in self._starts for at in places)

    def blotted(self, value: Any) -> Any:
        """JSON with `[erased]` in place of every text that holds one of them, names of fields
        among them; the same object where none does."""
        if isinstance(value, str):
            return ERASED if self.are_in(value) else value
        if isinstance(value, dict):
            return self._blotted_fields(value)
        if isinstance(value, list):
            if self._talks and _is_talk(value) and self._talks.has(value):
                return [{"role": turn["role"], "content": ERASED} for turn in value]
            listed = [self.blotted(inner) for inner in value]
            return value if all(a is b for a, b in zip(listed, value, strict=True)) else listed
        return value

    def _blotted_fields(self, value: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        is_same = True
        for key, inner in value.items():
            name, number = self.blotted(key), 1
            while name is not key and (name in made or name in value):  # two that go are still two
                number += 1
                name = f"{ERASED} {number}"
            made[name] = self.blotted(inner)
            is_same = is_same and name is key and made[name] is inner
        return value if is_same else made


def texts_of(record: Record) -> list[str]:
    """What people and models wrote in a record of traffic; a system prompt may be everybody's."""
    data = record.model_dump(mode="json")
    turns = [turn for turn in data.get("prompt", ()) if turn["role"] != "system"]
    answers = [data.get(name) for name in ("completion", "chosen", "rejected")]
    answers += [*data.get("candidates", ()), *data.get("completions", ())]
    found = [turn["content"] for turn in turns]
    found += [answer["text"] for answer in answers if answer]
    for one in (*turns, *filter(None, answers)):
        found += [call["arguments"] for call in one.get("tool_calls", ())]
    found += [data.get(name) or "" for name in ("edit", "comment")]
    return [text for text in found if text]


def _said(turns: Turns) -> tuple[str, ...]:
    """What was said after the system's words; those, where there is nothing else."""
    said = tuple(turn["content"] for turn in turns if turn["role"] != "system")
    return said or tuple(turn["content"] for turn in turns)


def _is_talk(value: list[Any]) -> bool:
    return bool(value) and all(
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in value
    )
