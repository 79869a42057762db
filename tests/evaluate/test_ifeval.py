"""The instructions of IFEval: each with answers that follow it and answers that do not."""

import json
from pathlib import Path

import pytest

from trueup.errors import GoldSetError
from trueup.evaluate.checkers import INSTRUCTIONS, check, validate
from trueup.evaluate.checkers.ifeval import loose_forms
from trueup.evaluate.checkers.text import sentences_of

IFEVAL = Path(__file__).parents[3] / "shared" / "data" / "ifeval.jsonl"
ENGLISH = "The weather in the north of the country was cold and wet for most of the year."

# (instruction, kwargs, answers that follow it, answers that do not)
CASES = [
    ("keywords:existence", {"keywords": ["sun", "Moon"]},
     ["The sun and the moon.", "MOONLIGHT on Sunday"], ["The sun alone.", "stars"]),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"},
     ["Tea, more tea.", "teapot tea tea"], ["One tea.", "none"]),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"},
     ["One tea.", "none"], ["Tea, more tea."]),
    ("keywords:forbidden_words", {"forbidden_words": ["rock", "c++"]},
     ["A rocket.", "stone"], ["It rocks, Rock!", "I like C++."]),
    ("keywords:letter_frequency",
     {"letter": "o", "let_frequency": 3, "let_relation": "at least"},
     ["oOo", "good book shop"], ["go on", "x"]),
    ("keywords:letter_frequency",
     {"letter": "#", "let_frequency": 2, "let_relation": "less than"},
     ["# one", "none"], ["# one\n# two"]),
    ("language:response_language", {"language": "de"},
     ["Das Wetter im Norden des Landes war das ganze Jahr über kalt und nass."], [ENGLISH]),
    ("language:response_language", {"language": "hi"},
     ["उत्तर में मौसम साल के अधिकांश समय ठंडा और गीला था।"], [ENGLISH]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     ["One. Two!", "Dr. Li came. He left."], ["Only one.", "Dr. Li came."]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"},
     ["It is 3.5 km.", "No end mark"], ["One. Two."]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"},
     ["one two three", "one-two three"], ["one two", "x"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"},
     ["one two"], ["one two three"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     ["one\n***\ntwo", "***\none\n***\ntwo\n***"], ["one\n\ntwo", "one\n***\n***\ntwo", "one"]),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
     ["One.\n\nThen, two.", 'One.\n\n"Then" two.'],
     ["Then one.\n\nTwo.", "One. Then two.", "One.\n\nThen two.\n\nThree.", "One.\n\nThence."]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2},
     ["[name] lives in [city]", "[a][b][c]"], ["[name] only", "(a) (b)"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."},
     ["Bye.\nP.S. More.", "p. s. more"], ["Bye.", "PS more"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"},
     ["P.P.S More.", "p.p. s more"], ["P.S. More."]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2},
     ["* one\n* two", "- one\n  - two", "Here:\n* one\n- two"],
     ["* one", "* one\n* two\n* three", "**one**\n**two**", "1. one\n2. two"]),
    ("detectable_format:constrained_response", {},
     ["My answer is no.", "Well. My answer is maybe."], ["No.", "My answer is perhaps."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     ["*one* and *two*", "**one** and *two*"], ["*one*", "* one\n* two", "** **"]),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     ["SECTION 1\nx\nSECTION 2\ny", "SECTION1 SECTION2 SECTION3"],
     ["SECTION 1", "Section 1\nSection 2", "SECTION I\nSECTION II"]),
    ("detectable_format:json_format", {},
     ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', "[]"], ["{'a': 1}", 'So: {"a": 1}', "[" * 9999]),
    ("detectable_format:title", {},
     ["<<A title>>\nText", "x <<t>>"], ["<A title>", "<< >>", "<<a\nb>>"]),
    ("combination:two_responses", {},
     ["one\n******\ntwo", "one ****** two ******"],
     ["one", "one****** ******two", "one******one", "a******b******c", "one ***** two"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a poem. "},
     ["Write a poem. Roses.", "WRITE A POEM.\nRoses."], ["Roses.", "Here: Write a poem."]),
    ("startend:end_checker", {"end_phrase": "Any questions?"},
     ["So. Any questions?", '"So. any questions?"'], ["Any questions? Ask.", "So."]),
    ("startend:quotation", {}, ['"All of it."', '""'], ['"Half', "None", '"']),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "at least"},
     ["NASA and ESA", "I am A"], ["NASA only", "Nasa And Esa"]),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "less than"}, ["NASA only"], ["NASA and ESA"]),
    ("change_case:english_capital", {},
     [ENGLISH.upper()], [ENGLISH, "DAS WETTER IM NORDEN WAR DAS GANZE JAHR KALT UND NASS."]),
    ("change_case:english_lowercase", {},
     [ENGLISH.lower()], [ENGLISH, "das wetter im norden war das ganze jahr kalt und nass."]),
    ("punctuation:no_comma", {}, ["No comma; none."], ["One, two."]),
]  # fmt: skip


def item(*instructions: tuple[str, dict]) -> dict:
    return {
        "type": "ifeval",
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [kwargs for _, kwargs in instructions],
    }


def test_there_are_twenty_five_instructions_and_each_has_a_case() -> None:
    assert len(INSTRUCTIONS) == 25
    assert {name for name, *_ in CASES} == set(INSTRUCTIONS)


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES, ids=lambda v: str(v)[:40])
def test_an_instruction_is_followed_or_not(
    name: str, kwargs: dict, good: list[str], bad: list[str]
) -> None:
    checker = item((name, kwargs))
    for text in good:
        assert check(checker, text).passed is True, text
    for text in [*bad, "", " \n"]:
        outcome = check(checker, text)
        assert outcome.passed is False, text
        assert name in outcome.reason


def test_an_item_passes_when_every_instruction_holds() -> None:
    checker = item(("punctuation:no_comma", {}), ("startend:quotation", {}))
    assert check(checker, '"All"').passed is True
    mixed = check(checker, '"All, of it"')
    assert mixed.passed is False and "quotation" not in mixed.reason
    assert [(p.name, p.passed) for p in mixed.parts] == [
        ("punctuation:no_comma", False), ("startend:quotation", True),
    ]  # fmt: skip
    assert [p.passed for p in check(checker, "").parts] == [False, False]


def test_loosely_an_opening_line_a_closing_line_and_asterisks_are_forgiven() -> None:
    checker = item(("startend:quotation", {}))
    for text in ('Sure:\n"So."', '"So."\nBye!', '*"So."*', 'Sure:\n**"So."**\nBye!'):
        [part] = check(checker, text).parts
        assert (part.passed, part.loose) == (False, True), text
    [part] = check(checker, "So.").parts
    assert (part.passed, part.loose) == (False, False)


def test_there_are_eight_loose_forms_and_the_text_itself_is_one() -> None:
    forms = list(loose_forms("a\n*b*\nc"))
    assert len(forms) == 8 and "a\n*b*\nc" in forms and "b" in forms


def test_what_holds_strictly_holds_loosely() -> None:
    for name, kwargs, good, bad in CASES:
        for text in [*good, *bad]:
            [part] = check(item((name, kwargs)), text).parts
            assert part.loose or not part.passed


@pytest.mark.parametrize(
    "checker",
    [
        {"type": "ifeval"},
        {"type": "ifeval", "instruction_id_list": [], "kwargs": []},
        {"type": "ifeval", "instruction_id_list": ["startend:quotation"], "kwargs": []},
        {"type": "ifeval", "instruction_id_list": ["startend:quotation"], "kwargs": [None]},
        item(("startend:quotations", {})),
        item(("startend:quotation", {"x": 1})),
        item(("keywords:existence", {})),
        item(("keywords:existence", {"keywords": "sun"})),
        item(("keywords:existence", {"keywords": []})),
        item(("keywords:frequency", {"keyword": "a", "frequency": 1, "relation": "more than"})),
        item(("length_constraints:number_words", {"num_words": -1, "relation": "at least"})),
        item(("length_constraints:number_words", {"num_words": "9", "relation": "at least"})),
        item(("language:response_language", {"language": "german"})),
        item(("keywords:letter_frequency",
              {"letter": "ab", "let_frequency": 1, "let_relation": "at least"})),
        item(("length_constraints:nth_paragraph_first_word",
              {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"})),
    ],
)  # fmt: skip
def test_malformed_instructions_are_found_early(checker: dict) -> None:
    with pytest.raises(GoldSetError, match=r"'ifeval' checker is malformed.*Expected .*Next: "):
        validate(checker)


def test_arguments_that_say_nothing_are_left_out() -> None:
    checker = item(("startend:quotation", {"num_words": None, "relation": None}))
    assert check(checker, '"So."').passed is True


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Mr. Smith met Dr. J. R. Hall at 3.30 p.m. on Monday. They spoke.", 2),
        ("It rained, e.g. in Rome. It snowed.", 2),
        ("We met at 5 p.m. Then we left.", 2),
        ("Apples, pears, etc. are fruit. So are figs.", 2),
        ("My answer is no. Why? Because!", 3),
        ("1. First thing.\n2. Second thing.", 2),
        ("A heading\n\nA sentence.", 2),
        ("Wait... what? Yes.", 3),
        ('"Stop!" he said. She did (at last).', 3),
        ("This is it. 今天很冷。我在家。", 3),
        ("...", 0),
    ],
)
def test_sentences_are_counted_as_a_reader_would(text: str, number: int) -> None:
    assert len(sentences_of(text)) == number, sentences_of(text)


@pytest.mark.skipif(not IFEVAL.is_file(), reason=f"{IFEVAL} is not here")
def test_every_row_of_the_benchmark_is_well_formed_and_an_echo_fails_most() -> None:
    rows = [json.loads(line) for line in IFEVAL.read_text().splitlines()]
    assert len(rows) == 270
    passed = 0
    for row in rows:
        checker = {
            "type": "ifeval", "instruction_id_list": row["instruction_id_list"],
            "kwargs": row["kwargs"],
        }  # fmt: skip
        passed += check(checker, "I cannot help with that.").passed is True
    assert 0 < passed < 60  # a refusal has no comma and few words, and does little else
