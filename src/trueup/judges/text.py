"""What code can tell about a text: its words, its numbers, and where they came from."""

import re
from typing import NamedTuple

from trueup.records import Messages

__all__ = ["Grounding", "admits_ignorance", "content_words", "grounding", "sentences", "words"]

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,:]\d+)*", re.UNICODE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])|\n+")
_CONTEXT = re.compile(r"context:\s*(?P<context>.*?)\n\s*question:\s*(?P<question>.*)", re.I | re.S)
_ADMITS = re.compile(
    r"(context|article|text|information|it|guide)\s+(given\s+|provided\s+)?(does\s*n[o']t|doesn['’]t|did\s+not)\s+"
    r"(\w+\s+)?(say|mention|specify|state|give|include|provide|tell|contain)"
    r"|\b(is|are|was)\s*(not|n['’]t)\s+(\w+\s+)?(mentioned|specified|stated|given|provided|included|known)"
    r"|\bno\s+(information|mention|details?)\b|\b(i\s+)?(do\s+not|don['’]t|cannot|can['’]t)\s+(know|say|tell|find)\b"
    r"|\bnot\s+(mentioned|specified|stated|provided)\b|\bunknown\b",
    re.I,
)
_STOP_WORDS = """
a about above after again against all also am an and any are as at be because been before being
below between both but by can could did do does doing done down during each few for from further
get had has have he her here him his how i if in into is it its itself just may me might more
most must my no nor not of off on once one only or other our out over own per same shall she
should so some such than that the their them then there these they this those through to too
under until up upon very was we were what when where which while who whom why will with would
yes you your
"""
_STOP = frozenset(_STOP_WORDS.split())


class Grounding(NamedTuple):
    """A prompt in its parts. `context` is empty where the prompt brings none."""

    system: str
    context: str
    question: str


def grounding(prompt: Messages) -> Grounding:
    """Split the last user message at `Context:` and `Question:`, the form grounded prompts use."""
    system = " ".join(m.content for m in prompt if m.role == "system")
    last = next((m.content for m in reversed(prompt) if m.role == "user"), "")
    parts = _CONTEXT.search(last)
    if parts is None:
        return Grounding(system, "", last)
    return Grounding(system, parts["context"], parts["question"])


def words(text: str) -> list[str]:
    """Words and numbers in order, lower case; trailing punctuation is not part of a number."""
    return [w.lower().replace("’", "'") for w in _WORD.findall(text)]


def content_words(text: str) -> list[str]:
    """The words that carry meaning, reduced to a rough stem so that "charges" meets "charging"."""
    return [_stem(w) for w in words(text) if w not in _STOP and (len(w) > 1 or w.isdigit())]


def sentences(text: str) -> list[str]:
    """Sentences, by their punctuation and by line breaks."""
    return [s.strip() for s in _SENTENCE.split(text.strip()) if s and s.strip()]


def admits_ignorance(text: str) -> bool:
    """True where the text says that it does not know."""
    return bool(_ADMITS.search(text))


def _stem(word: str) -> str:
    if word[0].isdigit():
        return word.replace(",", "")
    word = word.removesuffix("'s")
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
