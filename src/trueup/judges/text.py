"""What code can tell about a text: its words, its numbers, and where they came from."""

import re
from typing import NamedTuple

from trueup.records import Messages

__all__ = [
    "Grounding",
    "admits_ignorance",
    "asks_yes_or_no",
    "content_words",
    "grounding",
    "sentences",
    "words",
]

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,:]\d+)*", re.UNICODE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])|\n+")
_YES_NO_WORDS = "am are can could did do does has have is may must should was were will would"
_YES_NO = frozenset(_YES_NO_WORDS.split())
_CONTEXT = re.compile(r"context:\s*(?P<context>.*?)\n\s*question:\s*(?P<question>.*)", re.I | re.S)
_SOURCE = r"(?:context|article|text|information|guide|document|passage)"
_NOT = r"(?:\s+not|n['’]t)"
_ADMISSIONS = (
    # the context does not say / say anything / mention / include …; "it" only says or states
    rf"\b{_SOURCE}\s+(?:\w+\s+)?(?:does|did){_NOT}\s+(?:\w+\s+)?"
    r"(?:say|mention|specify|state|give|include|provide|tell|contain|cover|answer)",
    rf"\bit\s+(?:does|did){_NOT}\s+(?:say|mention|specify|state)\b",
    rf"\b{_SOURCE}\s+says\s+nothing\b",
    # that is not mentioned; the price is not included in the context
    rf"\b(?:is|are|was){_NOT}\s+(?:\w+\s+)?(?:mentioned|specified|stated)\b",
    rf"\b(?:is|are|was){_NOT}\s+(?:included|given|provided|covered|known)\s+(?:in|by)\s+the\s+{_SOURCE}",
    r"\b(?:cannot|can['’]t)\s+be\s+(?:determined|known|said)\b",
    r"\bno\s+(?:information|mention)\b",
    r"^not\s+(?:mentioned|specified|stated|given)\b",
    rf"\bi\s+(?:do{_NOT}\s+know|can(?:not|['’]t)\s+(?:say|tell|find))\b",
    r"\bi\s*(?:am|['’]m)\s+not\s+(?:sure|certain)\b",
    r"\b(?:is|are)\s+(?:unknown|not\s+known)\b",
)
_ADMITS = re.compile("|".join(_ADMISSIONS), re.I | re.M)
_STOP_WORDS = """
a about above after again against all also am an and any are as at be because been before being
below between both but by can cannot could did do does doing done down during each few for from
further get had has have he her here him his how i i'm if in into is it it'll it's its itself
just may me might more most must my no nor not of off on once one only or other our out over own
per same shall she should so some such than that that's the their them then there there's these
they they're this those through to too under until up upon very was we we'll were what when
where which while who whom why will with would yes you you're your
"""
_NEGATED = "aren't can't couldn't didn't don't doesn't isn't shouldn't wasn't won't wouldn't"
_STOP = frozenset(f"{_STOP_WORDS} {_NEGATED}".split())


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


def admits_ignorance(text: str, *, context: str = "") -> bool:
    """True where the text says that it does not know, in words the context does not use itself:
    "a cable is not included" may be the very answer."""
    found = _ADMITS.search(text)
    return found is not None and found[0].lower() not in context.lower()


def asks_yes_or_no(question: str) -> bool:
    """True where the question opens with a verb that yes or no answers."""
    return next(iter(words(question)), "") in _YES_NO


def _stem(word: str) -> str:
    if word[0].isdigit():
        return word.replace(",", "")
    word = word.removesuffix("'s")
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
