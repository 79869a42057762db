"""What each checker accepts, refuses and survives."""

import json
import pickle

import pytest

from trueup.errors import GoldSetError
from trueup.evaluate.checkers import Outcome, check, validate
from trueup.sandbox import SandboxResult

EXACT = {"type": "exact", "answers": ["Paris", "the city of Paris"]}
CONTAINS = {"type": "contains", "all": ["cat"], "any": ["red", "blue"]}
NUMERIC = {"type": "numeric", "answer": 42}
CHOICE = {"type": "choice", "choices": ["A", "B", "C"], "answer": "B"}
REGEX = {"type": "regex", "pattern": r"^\d{4}-\d{2}$"}
PYTHON = {"type": "python", "entry_point": "double", "tests": ["assert double(2) == 4"]}
UNIT_TEST = {
    "type": "unit_test",
    "entry_point": "double",
    "given": "def double(x):\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
ALL = [EXACT, CONTAINS, NUMERIC, CHOICE, REGEX, PYTHON, UNIT_TEST]


class RecordingSandbox:
    """Runs nothing: keeps what it was asked to run, and answers as the harness would."""

    def __init__(self, passed: bool = True) -> None:
        self.passed, self.jobs = passed, []

    def __call__(self, code: str, *, stdin: str = "") -> SandboxResult:
        self.jobs.append(json.loads(stdin))
        said = {"passed": self.passed, "reason": "" if self.passed else "AssertionError: "}
        return SandboxResult("ok", 0, json.dumps(said) + "\n", "", 0.0)


def passes(checker: dict, text: str) -> bool | None:
    return check(checker, text, run_python=RecordingSandbox()).passed


def follows(text: str, *rules: dict) -> bool | None:
    return check({"type": "instruction", "rules": list(rules)}, text).passed


# --- every type -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "checker", [*ALL, {"type": "instruction", "rules": [{"rule": "no_commas"}]}]
)
@pytest.mark.parametrize("text", ["", "   \n\t", "\u200b\u200e", "\x00"])
def test_an_empty_text_passes_nothing(checker: dict, text: str) -> None:
    assert check(checker, text, run_python=RecordingSandbox()).passed is False


@pytest.mark.parametrize("checker", ALL)
def test_a_huge_text_is_marked_without_trouble(checker: dict) -> None:
    assert passes(checker, "((( , 1a " * 20_000) is False


def test_an_outcome_gives_its_reason() -> None:
    outcome = check(NUMERIC, "It is 41.")
    assert outcome == Outcome(False, "last number is 41, not 42")


# --- exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["Paris", "paris.", " **PARIS** ", '"Paris"', "The  city\nof Paris!"]
)
def test_exact_ignores_case_spacing_and_outer_punctuation(text: str) -> None:
    assert passes(EXACT, text) is True


@pytest.mark.parametrize("text", ["London", "Paris or London", "not Paris", "Pariss", "..."])
def test_exact_wants_nothing_else(text: str) -> None:
    assert passes(EXACT, text) is False


# --- contains ---------------------------------------------------------------------------------


def test_contains_wants_all_of_all_and_one_of_any() -> None:
    assert passes(CONTAINS, "A RED Cat.") is True
    assert passes(CONTAINS, "A red dog") is False
    assert passes(CONTAINS, "A green cat") is False


@pytest.mark.parametrize("text", ["concatenate red", "cat reddish", "cat_red", "the red cats"])
def test_contains_matches_whole_words(text: str) -> None:
    assert passes(CONTAINS, text) is False


def test_contains_takes_its_words_literally() -> None:
    assert passes({"type": "contains", "any": [".*"]}, "anything") is False
    assert passes({"type": "contains", "any": ["$5"]}, "It costs $5.") is True


# --- numeric ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["42", "42.", "It is 42!", "$42", "42.0", "+42", "42%", "42 apples", "42km", "40 + 2 = 42",
     "first 7, then 42", "**42**", "(42)", "84-42", "x=42", "042"],
)  # fmt: skip
def test_numeric_reads_the_last_number(text: str) -> None:
    assert passes(NUMERIC, text) is True


@pytest.mark.parametrize(
    "text",
    ["41", "-42", "42 or 43", "x42", "v1.42", "item_42", "42nd", "0x42", "4 2", "forty-two",
     "1,042", "42,000", "420", "4.2", "42_000", "42e3", "inf", "nan", "\u0664\u0662"],
)  # fmt: skip
def test_numeric_refuses_other_numbers_and_digits_in_names(text: str) -> None:
    assert passes(NUMERIC, text) is False


@pytest.mark.parametrize(
    ("text", "answer"),
    [("1,234", 1234), ("$1,234.50", 1234.5), ("-7", -7), ("\u22127", -7), ("-$7", -7), ("$-7", -7),
     ("0.1", 0.1), (".5", 0.5), ("1,234,567", 1234567), ("12-5", 5), ("12 - 5 = 7", 7),
     ("1, 2, 3", 3), ("the answer is: -3.", -3)],
)  # fmt: skip
def test_numeric_reads_separators_signs_and_decimals(text: str, answer: float) -> None:
    assert passes({"type": "numeric", "answer": answer}, text) is True


def test_numeric_tolerance_is_absolute() -> None:
    third = {"type": "numeric", "answer": 0.333, "tolerance": 0.01}
    assert passes(third, "0.34") is True
    assert passes(third, "0.35") is False
    assert passes({"type": "numeric", "answer": 1_000_000}, "1000001") is False


def test_numeric_survives_a_number_beyond_float() -> None:
    assert passes(NUMERIC, "9" * 5000) is False


# --- choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["B", "b", "B.", "(b)", "B)", "b)", "B) a car", "**B**", "The answer is B.", "Answer: B",
     "answer: (b)", "The answer is B, not A.", "I think it is B.", "Option B is right.",
     "A) no B) yes C) no. The answer is B.", "The answer is B because a car is heavy", "'B'",
     "A car is heavy, so B."],
)  # fmt: skip
def test_choice_finds_the_letter(text: str) -> None:
    assert passes(CHOICE, text) is True


@pytest.mark.parametrize(
    "text",
    ["A", "C)", "A or B", "A and B", "The answer is A or B.", "A) feather B) car", "D", "Bob",
     "a car", "The answer is a big car.", "The answer is A. The answer is B.", "B-52", "not B",
     "bb", "Vitamin B12", "AB"],
)  # fmt: skip
def test_choice_refuses_other_and_ambiguous_answers(text: str) -> None:
    assert passes(CHOICE, text) is False


def test_choice_tells_the_letter_a_from_the_article() -> None:
    first = {**CHOICE, "answer": "A"}
    assert passes(first, "A is right") is True
    assert passes(first, "A) a feather") is True
    assert passes(first, "A feather is light") is False


# --- regex ------------------------------------------------------------------------------------


def test_regex_searches_the_stripped_text() -> None:
    assert passes(REGEX, " 2024-05\n") is True
    assert passes(REGEX, "in 2024-05") is False


# --- instruction ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"rule": "max_words", "value": 3}, "one two three", "one two three four"),
        ({"rule": "min_words", "value": 2}, "well-known fact", "well-known"),
        ({"rule": "num_words", "value": 2}, "don't stop", "stop"),
        ({"rule": "num_sentences", "value": 1}, "It is 3.5 km.", "It is. It was"),
        ({"rule": "num_sentences", "value": 2}, 'He said "no!" Then he left', "One only?!"),
        ({"rule": "no_commas"}, "a b", "a, b"),
        ({"rule": "uppercase"}, "HELLO 2 YOU", "HELLo"),
        ({"rule": "lowercase"}, "hello 2 you", "Hello"),
        ({"rule": "starts_with", "value": "Today"}, '"today is fine', "Todays news"),
        ({"rule": "starts_with", "value": "Dear Ann,"}, "Dear Ann, hello", "Hello Dear Ann,"),
        ({"rule": "ends_with", "value": "?"}, 'Is it "so?"', "It is so."),
        ({"rule": "num_lines", "value": 2}, "one\n\ntwo", "one two"),
        ({"rule": "num_items", "value": 3}, "a, b, and c", "a, b"),
        ({"rule": "num_items", "value": 3}, "- a\n- b, x\n- c\n", "- a\n- b"),
        ({"rule": "num_items", "value": 2}, "Two:\n1. a\n2. b", "Two:\n1. a\n2. b\n3. c"),
        ({"rule": "contains_word", "value": "cat"}, "The Cat.", "concatenate"),
        ({"rule": "avoids_word", "value": "cat"}, "category", "a CAT"),
        ({"rule": "contains_digit"}, "room 5", "room five"),
        ({"rule": "one_word"}, "Paris.", "Paris, France"),
        ({"rule": "json_object", "value": ["a", "b"]}, '{"a": 1, "b": []}', '{"a": 1}'),
        ({"rule": "json_object", "value": ["a"]}, '```json\n{"a": 1}\n```', '{"a": 1, "b": 2}'),
        ({"rule": "json_object", "value": ["a"]}, '{"a": null}', "[" * 50_000),
        ({"rule": "json_object", "value": ["a"]}, '{"a": {}}', '"a"'),
    ],
)
def test_each_rule_accepts_and_refuses(rule: dict, good: str, bad: str) -> None:
    assert follows(good, rule) is True
    assert follows(bad, rule) is False


def test_all_rules_must_hold() -> None:
    rules = {"rule": "uppercase"}, {"rule": "one_word"}
    assert follows("HELLO", *rules) is True
    assert follows("HELLO YOU", *rules) is False
    assert follows("hello", *rules) is False


@pytest.mark.parametrize("text", ["...", "---", "!", "\u200b."])
def test_an_answer_without_words_follows_no_instruction(text: str) -> None:
    assert follows(text, {"rule": "no_commas"}) is False


# --- malformed checkers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "checker",
    [
        None, [], "exact", {}, {"type": "vibes"}, {"type": ["exact"]},
        {"type": "exact"}, {"type": "exact", "answers": []}, {"type": "exact", "answers": "Paris"},
        {"type": "exact", "answers": ["..."]}, {"type": "exact", "answers": ["a"], "anwser": 1},
        {"type": "contains"}, {"type": "contains", "any": []}, {"type": "contains", "all": [""]},
        {"type": "numeric", "answer": "42"}, {"type": "numeric", "answer": True},
        {"type": "numeric", "answer": float("nan")}, {"type": "numeric", "answer": float("inf")},
        {"type": "numeric", "answer": 1, "tolerance": -1},
        {"type": "choice", "choices": ["A", "B"], "answer": "C"},
        {"type": "choice", "choices": [], "answer": "A"},
        {"type": "choice", "choices": ["AA"], "answer": "AA"},
        {"type": "regex", "pattern": "("}, {"type": "regex", "pattern": ".*"}, {"type": "regex"},
        {"type": "python", "entry_point": "a b", "tests": ["assert a"]},
        {"type": "python", "entry_point": "f", "tests": []},
        {"type": "python", "entry_point": "f", "tests": ["print(f())"]},
        {"type": "python", "entry_point": "f", "tests": ["assert 1\nimport os"]},
        {"type": "judge"}, {"type": "judge", "beats": ""}, {"type": "judge", "min_score": "high"},
        UNIT_TEST | {"test": "def check(:"}, UNIT_TEST | {"test": "x = 1"},
        UNIT_TEST | {"given": 3},
        {"type": "instruction", "rules": []}, {"type": "instruction", "rules": ["uppercase"]},
        {"type": "instruction", "rules": [{"rule": "be_nice"}]},
        {"type": "instruction", "rules": [{"rule": ["uppercase"]}]},
        {"type": "instruction", "rules": [{"rule": "max_words"}]},
        {"type": "instruction", "rules": [{"rule": "max_words", "value": 0}]},
        {"type": "instruction", "rules": [{"rule": "max_words", "value": True}]},
        {"type": "instruction", "rules": [{"rule": "uppercase", "value": 1}]},
    ],
)  # fmt: skip
def test_a_malformed_checker_is_refused_early_and_when_used(checker: object) -> None:
    with pytest.raises(GoldSetError) as caught:
        validate(checker)
    assert "Got " in str(caught.value) and "Expected " in str(caught.value)
    assert "Next: " in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(GoldSetError):
        check(checker, "text")


@pytest.mark.parametrize("checker", ALL)
def test_well_formed_checkers_validate(checker: dict) -> None:
    assert validate(checker) is None
