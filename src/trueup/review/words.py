"""Where two answers differ, word by word.

A word is its letters with the space behind it; spaces alone make no difference. A word or a
comma that agrees by chance between two changes is counted with them, so that a reader sees few
long marks and not many short ones.
"""

import difflib
import re
from typing import NamedTuple

__all__ = ["Part", "differing"]

WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
MOST_WORDS = 3000
"""In both texts: comparing takes time with the product of their lengths."""
SHORT = 2
"""Words in a row that agree, with a change on either side, and count as changed."""


class Part(NamedTuple):
    """A stretch of a text, and whether the other text lacks it."""

    text: str
    is_only_here: bool


def differing(first: str, second: str) -> tuple[list[Part], list[Part]] | None:
    """Both texts in parts, which joined give them back. None where they are too long to compare."""
    a, b = WORD.findall(first), WORD.findall(second)
    if len(a) + len(b) > MOST_WORDS:
        return None
    blocks = difflib.SequenceMatcher(
        None, [one.strip() for one in a], [one.strip() for one in b]
    ).get_opcodes()
    ours: list[Part] = []
    theirs: list[Part] = []
    for place, (tag, a0, a1, b0, b1) in enumerate(blocks):
        is_between = 0 < place < len(blocks) - 1
        is_same = tag == "equal" and not (is_between and a1 - a0 <= SHORT)
        _append(ours, "".join(a[a0:a1]), not is_same)
        _append(theirs, "".join(b[b0:b1]), not is_same)
    return _trimmed(ours), _trimmed(theirs)


def _trimmed(parts: list[Part]) -> list[Part]:
    """The space behind a mark belongs to what follows."""
    found: list[Part] = []
    for text, is_only_here in parts:
        words = text.rstrip() if is_only_here else text
        _append(found, words, is_only_here)
        _append(found, text[len(words) :], False)
    return found


def _append(parts: list[Part], text: str, is_only_here: bool) -> None:
    if not text:
        return
    if parts and parts[-1].is_only_here == is_only_here:
        parts[-1] = Part(parts[-1].text + text, is_only_here)
    else:
        parts.append(Part(text, is_only_here))
