"""Words, sentences, the parts of a prompt, and who admits that they do not know."""

import pytest

from trueup.judges.text import admits_ignorance, content_words, grounding, sentences, words
from trueup.records import Message, Messages


def prompt(*turns: tuple[str, str]) -> Messages:
    return tuple(Message(role=role, content=content) for role, content in turns)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Yes, it DOES.", ["yes", "it", "does"]),
        ("It costs $1,000.", ["it", "costs", "1,000"]),
        ("3.5 °C at 02:00.", ["3.5", "c", "at", "02:00"]),
        ("don't, it’s", ["don't", "it's"]),
        ("4-hour USB-C", ["4", "hour", "usb", "c"]),
        ("né ß 日本語 при", ["né", "ß", "日本語", "при"]),
        ("snake_case", ["snake", "case"]),
        ("... 🙂 !", []),
        ("", []),
    ],
)
def test_words_are_lower_case_without_punctuation(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_content_words_leave_out_what_carries_no_meaning() -> None:
    assert content_words("Is it on the 5 of the feeders? Yes, a C.") == ["5", "feeder"]
    assert content_words("is the of and it's don't cannot, we’ll") == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("charges", "charging"), ("charge", "charged"), ("Wren's", "wren"), ("1,000", "1000")],
)
def test_forms_of_a_word_meet(one: str, other: str) -> None:
    assert content_words(one) == content_words(other)


@pytest.mark.parametrize(("one", "other"), [("red", "reed"), ("5", "50"), ("sing", "sting")])
def test_short_words_are_not_stemmed_into_each_other(one: str, other: str) -> None:
    assert content_words(one) != content_words(other)


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It is 3.5 m long. Yes.", ["It is 3.5 m long.", "Yes."]),
        ("Use e.g. a cable", ["Use e.g. a cable"]),
        ("- first\n- second\n\n", ["- first", "- second"]),
        ('He said. "No." 4 hours', ["He said.", '"No." 4 hours']),
        ("  ", []),
    ],
)
def test_sentences_end_at_punctuation_and_line_breaks(text: str, found: list[str]) -> None:
    assert sentences(text) == found


# --- the parts of a prompt ------------------------------------------------------------------------


def test_a_grounded_prompt_has_a_system_message_a_context_and_a_question() -> None:
    parts = grounding(
        prompt(
            ("system", "You are Wren's assistant."),
            ("user", "Context: It takes 4 hours.\nIt is green.\n\nQuestion: How long?"),
        )
    )
    assert parts == ("You are Wren's assistant.", "It takes 4 hours.\nIt is green.", "How long?")


def test_the_marks_are_found_in_any_case_and_after_other_text() -> None:
    parts = grounding(prompt(("user", "Please help.\ncontext: A.\nQUESTION: B?")))
    assert (parts.context, parts.question) == ("A.", "B?")


def test_without_the_marks_all_that_was_said_is_the_question() -> None:
    assert grounding(prompt(("user", "What is the context: a or b?"))).context == ""
    assert grounding(prompt(("user", "How long?"))) == ("", "", "How long?")


def test_the_last_user_message_counts_and_all_system_messages_do() -> None:
    parts = grounding(
        prompt(
            ("system", "One."),
            ("user", "Context: old.\nQuestion: old?"),
            ("assistant", "No."),
            ("system", "Two."),
            ("user", "And now?"),
        )
    )
    assert parts == ("One. Two.", "", "And now?")
    assert grounding(()) == ("", "", "")


# --- admissions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "The context does not say.",
        "The context doesn't say how loud it is.",
        "The context doesn’t mention it.",
        "The article does not specify the price.",
        "The given context does not provide this.",
        "The information provided does not include the price.",
        "Unfortunately, the text does not actually state that.",
        "It does not say.",
        "That is not mentioned.",
        "It isn't specified.",
        "The price is not included in the context.",
        "This is not covered in the context.",
        "It cannot be determined from the context.",
        "There is no information about that.",
        "The context says nothing about that.",
        "Not stated.",
        "I don't know.",
        "I do not know how loud it is.",
        "I can't tell from the context.",
        "I am not sure.",
        "That is unknown.",
    ],
)
def test_an_admission_is_recognised(text: str) -> None:
    assert admits_ignorance(text)


@pytest.mark.parametrize(
    "text",
    [
        "A full charge takes 4 hours.",
        "No, it does not.",
        "The memory card is not included.",
        "The cable is not provided.",
        "The kit does not include batteries.",
        "It does not include a battery.",
        "It does not give any light.",
        "It does not tell your neighbours.",
        "No details are stored.",
        "If Wren cannot find your network, move it closer.",
        "An unknown visitor is kept for 7 days.",
        "You cannot tell them apart by colour.",
        "The price given in the context is $5.",
        "",
    ],
)
def test_a_statement_about_the_product_is_no_admission(text: str) -> None:
    assert not admits_ignorance(text)
