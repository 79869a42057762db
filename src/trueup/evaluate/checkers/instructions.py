"""The twenty-five instructions of IFEval, each a question a program can answer of a text.

Zhou et al. 2023, arXiv:2311.07911, Table 1. What the paper leaves open (what a bullet is, what
parts a section) follows the benchmark's published data and conventions, so that figures compare.
Departures: keywords are plain text and no regular expressions; sentences are split by `text.py`
and languages told by py3langid, where the benchmark takes NLTK and langdetect; and a language
that cannot be told is a no.

An instruction sees the stripped text, which is not empty, and its own keyword arguments.
"""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from trueup.evaluate.checkers.text import sentences_of

__all__ = ["INSTRUCTIONS", "Instruction", "language_of"]


def language_of(text: str) -> str:
    """The likeliest language, as two letters of ISO 639-1. Case is ignored: a text in capitals
    has none of the letters that the statistics know."""
    from py3langid import classify

    return classify(text.lower())[0]


def compares(found: int, relation: str, number: int) -> bool:
    """`at least` or `less than`, the two relations of the benchmark."""
    return found >= number if relation == "at least" else found < number


# --- keywords, language, length -----------------------------------------------------------------


def existence(text: str, keywords: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return compares(text.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    """Whole words: `art` may stand in `part`."""
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
        for word in forbidden_words
    )


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compares(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, language: str) -> bool:
    return language_of(text) == language


def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return compares(len(sentences_of(text)), relation, num_sentences)


def number_words(text: str, num_words: int, relation: str) -> bool:
    return compares(len(re.findall(r"\w+", text)), relation, num_words)


def filled(parts: list[str]) -> list[str] | None:
    """The parts between dividers; empty ones may stand at either end and nowhere else."""
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return [part.strip() for part in parts if part.strip()]


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Divided by `***`."""
    parts = filled(re.split(r"\s?\*\*\*\s?", text))
    return parts is not None and len(parts) == num_paragraphs


def nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Divided by an empty line; the word without quotation marks, up to its punctuation."""
    parts = [part.strip() for part in re.split(r"\n\n", text) if part.strip()]
    if len(parts) != num_paragraphs:
        return False
    opening = parts[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", opening)[0].lower() == first_word.lower()


# --- content and format -------------------------------------------------------------------------


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """A space may stand after each of the marker's points."""
    marker = re.escape(postscript_marker.strip().lower()).replace(r"\.", r"\.\s?")
    return re.search(marker, text.lower()) is not None


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*\n]|-).*$", text, re.MULTILINE)) == num_bullets


OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def constrained_response(text: str) -> bool:
    return any(option in text for option in OPTIONS)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """`*so*` and `**so**`, within a line."""
    single = re.findall(r"\*([^\n*]*)\*", text)
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(one.strip()) for one in single + double) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """`SECTION 1`, `SECTION 2` and so on, in the case that was asked for."""
    heading = rf"{re.escape(section_spliter.strip())}\s?\d+"
    return len(re.findall(heading, text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole text is JSON; a fence around it is allowed."""
    fenced = re.sub(r"\A```(?:json)?", "", text, flags=re.IGNORECASE).removesuffix("```")
    try:
        json.loads(fenced)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """`<<so>>`, within a line."""
    return any(one.strip("<> \t") for one in re.findall(r"<<[^\n]+>>", text))


# --- combinations, start and end, case, punctuation -----------------------------------------------


def two_responses(text: str) -> bool:
    """Divided by `******`, and not the same twice."""
    parts = filled(text.split("******"))
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"\w+(?:-\w+)*", text)
    return compares(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper() and language_of(text) == "en"


def english_lowercase(text: str) -> bool:
    return text.islower() and language_of(text) == "en"


def no_comma(text: str) -> bool:
    return "," not in text


class Instruction(NamedTuple):
    holds: Callable[..., bool]
    """Of the stripped text and the keyword arguments."""
    takes: dict[str, str]
    """Keyword arguments, each with what it must be: a key of ARGUMENTS."""
    tells_languages: bool = False


INSTRUCTIONS: dict[str, Instruction] = {
    "change_case:capital_word_frequency": Instruction(
        capital_word_frequency, {"capital_frequency": "count", "capital_relation": "relation"}
    ),
    "change_case:english_capital": Instruction(english_capital, {}, tells_languages=True),
    "change_case:english_lowercase": Instruction(english_lowercase, {}, tells_languages=True),
    "combination:repeat_prompt": Instruction(repeat_prompt, {"prompt_to_repeat": "text"}),
    "combination:two_responses": Instruction(two_responses, {}),
    "detectable_content:number_placeholders": Instruction(
        number_placeholders, {"num_placeholders": "count"}
    ),
    "detectable_content:postscript": Instruction(postscript, {"postscript_marker": "text"}),
    "detectable_format:constrained_response": Instruction(constrained_response, {}),
    "detectable_format:json_format": Instruction(json_format, {}),
    "detectable_format:multiple_sections": Instruction(
        multiple_sections, {"section_spliter": "text", "num_sections": "count"}
    ),
    "detectable_format:number_bullet_lists": Instruction(
        number_bullet_lists, {"num_bullets": "count"}
    ),
    "detectable_format:number_highlighted_sections": Instruction(
        number_highlighted_sections, {"num_highlights": "count"}
    ),
    "detectable_format:title": Instruction(title, {}),
    "keywords:existence": Instruction(existence, {"keywords": "texts"}),
    "keywords:forbidden_words": Instruction(forbidden_words, {"forbidden_words": "texts"}),
    "keywords:frequency": Instruction(
        frequency, {"keyword": "text", "frequency": "count", "relation": "relation"}
    ),
    "keywords:letter_frequency": Instruction(
        letter_frequency, {"letter": "letter", "let_frequency": "count", "let_relation": "relation"}
    ),
    "language:response_language": Instruction(
        response_language, {"language": "language"}, tells_languages=True
    ),
    "length_constraints:nth_paragraph_first_word": Instruction(
        nth_paragraph_first_word,
        {"num_paragraphs": "count", "nth_paragraph": "count", "first_word": "text"},
    ),
    "length_constraints:number_paragraphs": Instruction(
        number_paragraphs, {"num_paragraphs": "count"}
    ),
    "length_constraints:number_sentences": Instruction(
        number_sentences, {"num_sentences": "count", "relation": "relation"}
    ),
    "length_constraints:number_words": Instruction(
        number_words, {"num_words": "count", "relation": "relation"}
    ),
    "punctuation:no_comma": Instruction(no_comma, {}),
    "startend:end_checker": Instruction(end_checker, {"end_phrase": "text"}),
    "startend:quotation": Instruction(quotation, {}),
}
"""By the benchmark's own ids; `section_spliter` is spelled as it spells it."""
