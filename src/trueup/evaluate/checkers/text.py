"""Words, sentences, lines: how the checkers read a text."""

import re
import unicodedata

__all__ = ["CURLY", "has_word", "is_empty", "lines_of", "normalised", "sentences_of", "words_of"]

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


END_OF_SENTENCE = re.compile(r"[.!?…。！？।]+[\"'\u2019\u201d)\]*_]*(?=\s|$)|(?<=[。！？])")
NEVER_LAST = re.compile(
    r"(?:^|\W)(?:(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Mt|Rev|Gen|Col|Capt|Lt|Sgt|vs|cf|approx|[A-HJ-Z])\."
    r"|e\.g\.|i\.e\.)$"
)
RARELY_LAST = re.compile(r"(?:^|\W)(?:etc|Inc|Ltd|Co|a\.m|p\.m|Ph\.D|(?:[A-Z]\.)+[A-Z])\.$")
NUMBERING = re.compile(r"(?:^|\n)\s*\(?(?:\d{1,3}|[A-Za-z])\.$")


def sentences_of(text: str) -> list[str]:
    """Split at end marks followed by space, and at empty lines.

    The point of a title, an initial or a list's number ends nothing, nor does the one in `3.5`;
    the one of `etc.` and its like only before a capital letter.
    """
    return [
        part
        for block in re.split(r"\n\s*\n", text)
        for part in _sentences_in(block)
        if words_of(part)
    ]


def _sentences_in(block: str) -> list[str]:
    parts, start = [], 0
    for end in END_OF_SENTENCE.finditer(block):
        so_far, rest = block[start : end.end()], block[end.end() :].lstrip()
        goes_on = RARELY_LAST.search(so_far) and not rest[:1].isupper()
        if goes_on or NEVER_LAST.search(so_far) or NUMBERING.search(block[: end.end()]):
            continue
        parts.append(so_far)
        start = end.end()
    return [*parts, block[start:]]


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if words_of(line)]
