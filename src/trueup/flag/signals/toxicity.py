"""Words that an answer should not need, from a list.

A list knows words and not what is said: it finds curses and insults, and also who quotes them, and
it misses every cruel sentence in polite words. English alone; whole words, so that Scunthorpe is a
town. `flag.toxic_words` names a list of your own, a word or phrase a line.
"""

import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from trueup.errors import ConfigError
from trueup.flag.signals.base import Context
from trueup.records import Interaction

__all__ = ["Toxic", "pattern_of", "shipped_words"]


class Toxic:
    """Listed words that the prompt does not hold itself."""

    name, version = "toxic", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """0.6 for one, 0.1 more for each other."""
        pattern = _pattern(context.config.toxic_words)
        asked = " ".join(m.content for m in interaction.prompt).lower()
        found = {hit.lower() for hit in pattern.findall(interaction.completion.text)}
        found = {hit for hit in found if hit not in asked}
        return min(1.0, 0.5 + 0.1 * len(found)) if found else 0.0


def shipped_words() -> list[str]:
    """The list that comes with trueup."""
    return _words(files("trueup.flag.signals").joinpath("toxic_words.txt").read_text("utf-8"))


def pattern_of(words: list[str]) -> re.Pattern[str]:
    """Whole words of either case; an asterisk at the end stands for any ending."""
    parts = [
        re.escape(one.rstrip("*")) + (r"\w*" if one.endswith("*") else "")
        for one in sorted(words, key=len, reverse=True)
    ]
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.I)


@lru_cache(maxsize=4)
def _pattern(file: str) -> re.Pattern[str]:
    if not file:
        return pattern_of(shipped_words())
    try:
        words = _words(Path(file).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(file, str(error)) from None
    if not words:
        raise _unusable(file, "no word")
    return pattern_of(words)


def _unusable(file: str, got: str) -> ConfigError:
    return ConfigError(
        f"The word list {file} cannot be used",
        got=got,
        expected="a text file with a word or phrase a line",
        next="set flag.toxic_words, or leave it out for the shipped list",
    )


def _words(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip().lower() for line in text.splitlines())
    return [line for line in lines if line]
