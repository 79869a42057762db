"""The judge that labels: each rule by itself, and answers that would game it lose.

The held-out prompts of the support example are answered by rules: a decent answer made of each
prompt's own facts, weak but honest answers like a small model gives, and traps.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from trueup.judges import text
from trueup.judges.facts import Facts
from trueup.judges.house_style import HouseStyle, is_pasted
from trueup.records import Completion, Message, Messages
from trueup.suite import SuitePrompt, read_suite

SYSTEM = (
    "You are the support assistant for Wren, a smart bird feeder. Answer in one short sentence."
)
CONTEXT = (
    "Wren runs on a built-in battery. A full charge takes 4 hours with the supplied cable and "
    "lasts about 30 days. The ring light is amber while charging and green when full. The battery "
    "is not replaceable."
)
JUDGE = HouseStyle()


def asked(question: str, context: str = CONTEXT) -> Messages:
    user = f"Context: {context}\n\nQuestion: {question}" if context else question
    return (Message(role="system", content=SYSTEM), Message(role="user", content=user))


def judged(
    answer: str, question: str = "How long does a full charge take?", context: str = CONTEXT
) -> tuple[float, tuple[str, ...]]:
    ranking = JUDGE.rank(asked(question, context), [Completion(text=answer)])
    return ranking.scores[0], ranking.reasons[0]


# --- rule by rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", ["4 hours.", "A full charge takes 4 hours.", "It takes 4 hours with the cable."]
)
def test_one_short_sentence_from_the_context_scores_1(answer: str) -> None:
    assert judged(answer) == (pytest.approx(1), ())


@pytest.mark.parametrize("answer", ["", "  \n", "...", "🙂", "?!"])
def test_an_empty_answer_scores_0(answer: str) -> None:
    assert judged(answer) == (0.0, ("empty",))


@pytest.mark.parametrize(
    "answer", [CONTEXT, f"Sure! {CONTEXT}", CONTEXT.upper(), CONTEXT.split("The battery")[0]]
)
def test_pasting_the_context_scores_0(answer: str) -> None:
    assert judged(answer) == (0.0, ("pastes the context",))


def test_quoting_one_sentence_is_no_paste() -> None:
    assert not is_pasted(CONTEXT, text.sentences(CONTEXT)[1])
    assert not is_pasted("Too short to tell.", "Too short to tell.")


def test_a_preamble_costs_a_tenth() -> None:
    for preamble in ("The answer:", "Sure,", "Here's"):
        score, reasons = judged(f"{preamble} 4 hours.")
        assert score <= 0.9 + 1e-9
        assert "opens with a preamble" in reasons
    assert judged("The answer: 4 hours.")[0] == pytest.approx(0.9)


def test_a_second_sentence_or_a_long_one_costs_a_fifth() -> None:
    assert judged("It takes 4 hours. It lasts 30 days.") == (
        pytest.approx(0.8),
        ("longer than one short sentence",),
    )
    long = "It takes 4 hours " + "with the supplied cable and the ring light " * 4
    assert judged(long)[0] == pytest.approx(0.8)


def test_words_from_nowhere_cost_with_the_square_of_their_share() -> None:
    """Four content words of which one is new: 0.4 · (3/4)² + 0.3 + 0.2 + 0.1."""
    score, reasons = judged("A full charge takes magic.")
    assert score == pytest.approx(0.4 * 0.75**2 + 0.6)
    assert reasons == ("25% of its content words are not in the context",)


def test_an_invented_number_weighs_three_times_an_invented_word() -> None:
    word, number = judged("A full charge takes magic.")[0], judged("A full charge takes 9.")[0]
    assert number == pytest.approx(0.4 * 0.5**2 + 0.6)
    assert number < word


def test_an_answer_about_something_else_in_the_context_costs_three_tenths() -> None:
    score, reasons = judged("The ring light is green.")
    assert (score, reasons) == (pytest.approx(0.7), ("does not speak to the question",))


def test_a_yes_or_no_with_a_reason_speaks_to_the_question() -> None:
    assert judged("No, it is built-in.", "Can I swap the battery?")[0] >= 0.99


def test_an_admission_is_right_where_the_context_is_silent_and_wrong_where_it_is_not() -> None:
    assert judged("The context does not say.", "How loud are the microphones?") == (1.0, ())
    score, reasons = judged("The context does not say.")
    assert score == 0.1
    assert reasons == ("says it does not know, but the context seems to say",)


def test_a_statement_where_the_context_is_silent_loses_three_fifths() -> None:
    score, reasons = judged("The battery is green.", "How loud are the microphones?")
    assert score <= 0.4
    assert reasons[-1] == "does not admit that the context is silent"


@pytest.mark.parametrize(
    "answer",
    [
        "Wren is a smart bird feeder.",
        "Yes.",
        "No.",
        "Yes, it is.",
        "How long does a full charge take?",
        "A full charge of Wren.",
    ],
)
def test_an_answer_that_adds_nothing_to_the_question_is_worth_a_wrong_admission(
    answer: str,
) -> None:
    assert judged(answer) == (0.1, ("adds nothing to the question",))


@pytest.mark.parametrize("answer", ["Yes, it does.", "Wren takes a full charge.", "No, it cannot."])
def test_a_question_that_asks_for_yes_or_no_may_be_answered_in_its_own_words(answer: str) -> None:
    assert judged(answer, "Does Wren take a full charge?")[0] >= 0.9


def test_a_prompt_without_a_context_is_judged_by_its_own_words() -> None:
    score, _ = judged("A spring opens the feeder.", "How does the feeder open?", context="")
    assert 0.6 < score < 1
    assert judged("", "How does the feeder open?", context="")[0] == 0


def test_scores_stay_within_0_and_1() -> None:
    for answer in ("4 hours.", "x" * 5000, "9 " * 400, "Sure! Hello. As an AI, 7.", CONTEXT):
        assert 0 <= judged(answer)[0] <= 1


def test_the_order_and_the_company_of_candidates_play_no_part() -> None:
    answers = ["4 hours.", "Sure! 9 hours.", "", CONTEXT]
    together = JUDGE.rank(asked("How long?"), [Completion(text=a) for a in answers]).scores
    reverse = JUDGE.rank(asked("How long?"), [Completion(text=a) for a in answers[::-1]]).scores
    assert together == reverse[::-1]
    assert together[0] == JUDGE.rank(asked("How long?"), [Completion(text="4 hours.")]).scores[0]


# --- the traps, over the held-out prompts of the support example ----------------------------------

SUITE = read_suite(Path(__file__).parents[2] / "examples" / "support" / "prompts.jsonl")
Answer = Callable[[SuitePrompt], str]


def parts(prompt: SuitePrompt) -> text.Grounding:
    return text.grounding(prompt.messages)


def ranked_sentences(prompt: SuitePrompt) -> list[str]:
    """The context's sentences, the one that shares most words with the question first."""
    asks = set(text.content_words(parts(prompt).question))
    every = text.sentences(parts(prompt).context)
    return sorted(every, key=lambda s: -len(asks & set(text.content_words(s))))


def decent(prompt: SuitePrompt) -> str:
    if not prompt.answerable:
        return "The context does not say."
    return f"It is {' and '.join(spellings[0] for spellings in prompt.facts)}."


WEAK: dict[str, Answer] = {
    "the right answer after a preamble": lambda p: f"Sure! Based on the context: {decent(p)}",
    "a chatty one": lambda p: (
        f"Great question! {ranked_sentences(p)[0]} Let me know if there is anything else I can do."
    ),
    "two sentences, one of them beside the point": lambda p: " ".join(
        (ranked_sentences(p)[0], ranked_sentences(p)[-1])
    ),
    "an invented detail": lambda p: f"{ranked_sentences(p)[0].rstrip('.')} after 97 updates.",
}
TRAPS: dict[str, Answer] = {
    "empty": lambda p: "",
    "a slogan": lambda p: "Wren is a smart bird feeder.",
    "always silent": lambda p: "The context does not say.",
    "always yes": lambda p: "Yes.",
    "always yes, it does": lambda p: "Yes, it does.",
    "the context pasted": lambda p: parts(p).context,
    "the whole prompt pasted": lambda p: p.messages[-1].content,
    "the question echoed": lambda p: parts(p).question,
    "the system message": lambda p: parts(p).system,
}
SCORERS = {"house-style": JUDGE, "facts": Facts(SUITE)}
ANSWERS: dict[str, Answer] = {"decent": decent, **WEAK, **TRAPS}


@cache
def scores(scorer: str, name: str) -> list[float]:
    """Of this answer to every held-out prompt; neither scorer looks at company."""
    done = [Completion(text=ANSWERS[name](p), finish_reason="stop") for p in SUITE]
    judge = SCORERS[scorer]
    return [judge.rank(p.messages, [c]).scores[0] for p, c in zip(SUITE, done, strict=True)]


def win_rate(scorer: str, ours: str, theirs: str) -> float:
    """Share of prompts where `ours` scores higher, ties by half."""
    both = zip(scores(scorer, ours), scores(scorer, theirs), strict=True)
    return fmean((a > b) + 0.5 * (a == b) for a, b in both)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_decent_answer_scores_high(scorer: str) -> None:
    assert fmean(scores(scorer, "decent")) > 0.85


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_loses_to_a_decent_answer(scorer: str, trap: str) -> None:
    assert fmean(scores(scorer, trap)) < 0.35
    assert win_rate(scorer, trap, "decent") < 0.25


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_loses_even_to_weak_answers(scorer: str, trap: str) -> None:
    for weak in WEAK:
        assert fmean(scores(scorer, trap)) < fmean(scores(scorer, weak)), weak
        assert win_rate(scorer, trap, weak) < 0.5, weak


@pytest.mark.parametrize("weak", WEAK)
def test_a_weak_answer_loses_to_a_decent_one_in_house_style(weak: str) -> None:
    assert win_rate("house-style", weak, "decent") < 0.35
