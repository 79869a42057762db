"""Has the candidate changed its language or its form?

A language is known by its script and, for a few languages of the Latin script, by their most
common words; what cannot be told is None and counts for nothing. A form is a sign in the text.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from trueup.guard.answers import Answers
from trueup.judges import text as judge_text
from trueup.records import Completion

__all__ = ["FORMS", "form_rates", "language", "language_changes"]

MIN_LETTERS = 8
MIN_COMMON_WORDS = 2

_COMMON: Mapping[str, str] = {
    "en": "the and is are of to in that it you for with not this was have on be your can",
    "de": "der die das und ist nicht ein eine ich sie es mit für auf zu den dem von auch sind",
    "fr": "le la les et est des une un du que vous je il elle pour dans pas avec sur sont",
    "es": "el la los las y es una un que de en por con para no se su lo está son",
    "it": "il lo la gli e è una un che di in per con non si sono del della questo anche",
    "pt": "o a os as e é uma um que de em por com para não se seu você está são",
    "nl": "de het een en is niet van in dat op voor met zijn ik je u te deze ook",
}
_COMMON_WORDS = {name: frozenset(words.split()) for name, words in _COMMON.items()}


def language(text: str) -> str | None:
    """`en`, `de`, …, or the script's name in lower case; None where it cannot be told.

    Latin text needs two common words of a language, and more of it than of any other.
    """
    letters = [char for char in text if char.isalpha()]
    if len(letters) < MIN_LETTERS:
        return None
    scripts = Counter(unicodedata.name(char, "unknown").partition(" ")[0] for char in letters)
    script, count = scripts.most_common(1)[0]
    if count < 0.5 * len(letters):
        return None
    return script.lower() if script != "LATIN" else _latin(judge_text.words(text))


def _latin(words: list[str]) -> str | None:
    found = Counter({name: sum(w in known for w in words) for name, known in _COMMON_WORDS.items()})
    (first, most), (_, second) = found.most_common(2)
    return first if most >= MIN_COMMON_WORDS and most > second else None


def language_changes(ours: Answers, theirs: Answers) -> list[float]:
    """For each prompt 1 where the candidate's answers are in another language than the champion's,
    0 where not or where either cannot be told."""
    changes = []
    for mine, yours in zip(ours, theirs, strict=True):
        said, before = _usual(mine), _usual(yours)
        changes.append(float(said is not None and before is not None and said != before))
    return changes


def _usual(group: Sequence[Completion]) -> str | None:
    """The language of all answers to a prompt together."""
    return language("\n".join(one.text for one in group))


# --- form -----------------------------------------------------------------------------------------

_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.M)
_MARKDOWN = re.compile(r"^#{1,6}\s|\*\*[^*\n]+\*\*|^\|.+\|\s*$|^>\s", re.M)
_CODE = re.compile(r"```|^(?:def|class|import|from) \w+|^ {4}(?:return|if|for) ", re.M)


def _is_json(text: str) -> bool:
    said = text.strip()
    if not said.startswith(("{", "[")):
        return False
    try:
        json.loads(said)
    except (ValueError, RecursionError):
        return False
    return True


FORMS: Mapping[str, Callable[[str], bool]] = {
    "list": lambda text: len(_LIST.findall(text)) >= 2,
    "markdown": lambda text: _MARKDOWN.search(text) is not None,
    "json": _is_json,
    "code": lambda text: _CODE.search(text) is not None,
}
"""Each form with what tells it."""


def form_rates(answers: Answers, form: str) -> list[float]:
    """Share of the answers to each prompt that have this form."""
    has = FORMS[form]
    return [sum(has(c.text) for c in group) / len(group) for group in answers]
