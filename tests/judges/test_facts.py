"""The scorer that promotes: facts or nothing. The traps are tried in test_house_style.py."""

import pytest

from trueup.errors import DataError
from trueup.judges import compare
from trueup.judges.facts import MAX_WORDS, Facts
from trueup.records import Completion, Message, Messages
from trueup.suite import SuitePrompt

CONTEXT = (
    "A full charge takes 4 hours with the supplied cable and lasts about 30 days. The ring light "
    "is amber while charging and green when full. A memory card is not included and costs $1,200."
)


def prompt(
    question: str, facts: tuple[tuple[str, ...], ...] = (), *, answerable: bool = True
) -> SuitePrompt:
    user = f"Context: {CONTEXT}\n\nQuestion: {question}"
    return SuitePrompt(
        id=question,
        messages=(Message(role="user", content=user),),
        facts=facts,
        answerable=answerable,
    )


LONG = prompt("How long does a charge take?", (("4 hours", "four hours", "4-hour"),))
LIGHT = prompt("What are the colours?", (("amber",), ("green",)))
CARD = prompt("Is a card in the box?", (("not included", "no"),))
LOUD = prompt("How loud is it?", answerable=False)
SCORER = Facts([LONG, LIGHT, CARD, LOUD])


def judged(
    one: SuitePrompt, answer: str, finish_reason: str = "stop"
) -> tuple[float, tuple[str, ...]]:
    completion = Completion(text=answer, finish_reason=finish_reason)  # type: ignore[arg-type]
    ranking = SCORER.rank(one.messages, [completion])
    return ranking.scores[0], ranking.reasons[0]


# --- facts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    ["4 hours.", "It takes FOUR HOURS with the cable.", "A 4-hour charge.", "4\nhours", "4  hours"],
)
def test_any_spelling_of_the_fact_scores_1(answer: str) -> None:
    assert judged(LONG, answer) == (1.0, ())


@pytest.mark.parametrize(
    "answer",
    ["30 days.", "14 hours.", "4 hoursglass", "About 4.", "It depends.", "Wren is a bird feeder."],
)
def test_without_the_fact_nothing_helps(answer: str) -> None:
    score, reasons = judged(LONG, answer)
    assert score == 0
    assert "a required fact is missing" in reasons


def test_half_the_facts_are_half_the_score() -> None:
    assert judged(LIGHT, "Amber, then green.") == (1.0, ())
    assert judged(LIGHT, "Green.") == (0.5, ("a required fact is missing",))


def test_every_invented_number_is_named_and_together_they_cost_a_fifth() -> None:
    assert judged(LONG, "4 hours, at 95 °C and 12 bar.") == (
        pytest.approx(0.8),
        ("invents 12, 95",),
    )
    assert judged(LONG, "4 hours, and it lasts 30 days for 1200 dollars.")[0] == 1


def test_an_answer_that_breaks_off_loses_a_fifth() -> None:
    assert judged(LONG, "4 hours, and", "length") == (pytest.approx(0.8), ("breaks off",))
    assert judged(LONG, "4 hours at 95", "length")[0] == pytest.approx(0.6)
    assert judged(LONG, "4 hours", "unknown")[0] == 1


# --- admissions -----------------------------------------------------------------------------------


def test_an_admission_is_the_one_right_answer_where_there_is_none() -> None:
    assert judged(LOUD, "The context does not say.") == (1.0, ())
    assert judged(LOUD, "It is 40 decibels.")[0] == 0
    assert judged(LOUD, "It is not very loud.")[0] == 0


def test_an_admission_where_there_is_an_answer_scores_0_even_with_the_answer() -> None:
    assert judged(LONG, "The context does not say.") == (0.0, ("says it does not know",))
    assert judged(LONG, "I don't know, maybe 4 hours.")[0] == 0


def test_a_right_answer_that_only_sounds_like_an_admission_scores_1() -> None:
    assert judged(CARD, "A memory card is not included.") == (1.0, ())


# --- traps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["", " \n", "...", "🙂"])
def test_an_empty_answer_scores_0(answer: str) -> None:
    for one in (LONG, LOUD):
        assert judged(one, answer) == (0.0, ("empty",))


def test_the_answer_somewhere_in_the_pasted_context_scores_0() -> None:
    for answer in (CONTEXT, f"Sure! {CONTEXT}", CONTEXT.lower()):
        assert judged(LONG, answer) == (0.0, ("buries the answer in text",))


def test_the_answer_in_a_flood_of_words_scores_0() -> None:
    filler = " ".join(["well"] * (MAX_WORDS - 2))
    assert judged(LONG, f"4 hours {filler}")[0] == 1
    assert judged(LONG, f"4 hours {filler} indeed")[0] == 0


# --- the scorer -----------------------------------------------------------------------------------


def test_a_prompt_outside_the_suite_is_refused() -> None:
    stranger: Messages = (Message(role="user", content="Who are you?"),)
    with pytest.raises(DataError, match=r"no facts for a prompt.*Who are you"):
        SCORER.rank(stranger, [Completion(text="Wren.")])


def test_a_suite_prompt_without_facts_is_refused_before_any_answer_is_judged() -> None:
    with pytest.raises(DataError, match="facts"):
        Facts([LONG, prompt("How wide is it?")])


def test_each_candidate_is_scored_on_its_own() -> None:
    answers = [Completion(text=t, finish_reason="stop") for t in ("4 hours.", "9 hours.", "")]
    together = SCORER.rank(LONG.messages, answers).scores
    assert together == (1.0, 0.0, 0.0)
    assert SCORER.rank(LONG.messages, answers[::-1]).scores == together[::-1]
    assert compare(SCORER, LONG.messages, answers[0], answers[1]) == "win"
    assert compare(SCORER, LONG.messages, answers[1], answers[2]) == "tie"
