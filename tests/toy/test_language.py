"""Prompts, the gold reward worked by hand, the copy skill, and what the two writers say."""

import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

import trueup
from trueup.errors import DataError
from trueup.records import Message, Messages
from trueup.toy.language import (
    FILLERS,
    MAX_TOKENS,
    TOPICS,
    VOCABULARY,
    Writer,
    base_writer,
    clear_writer,
    copy_correct,
    copy_prompts,
    foreign_writer,
    gold,
    prompts,
    topics_of,
    words,
)


def asked(content: str) -> Messages:
    return (Message(role="user", content=content),)


SEA_AND_SKY = asked("about sea sky oh um so so")


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [prompts, copy_prompts])
def test_prompts_are_different_and_belong_to_their_seed(kind) -> None:
    some = kind(500, 1)
    assert len(set(some)) == 500
    assert some == kind(500, 1)
    assert some != kind(500, 2)
    assert some[:20] == kind(20, 1)


@pytest.mark.parametrize("kind", [prompts, copy_prompts])
def test_what_is_held_out_is_never_trained_on(kind) -> None:
    held_out = {prompt for seed in range(5) for prompt in kind(400, seed, held_out=True)}
    trained = {prompt for seed in range(5) for prompt in kind(400, seed)}
    assert len(held_out) > 500
    assert held_out.isdisjoint(trained)


def test_a_prompt_names_two_topics_and_every_pair_comes_up() -> None:
    named = {topics_of(prompt) for prompt in prompts(1000, 0)}
    assert named == {(one, other) for one in TOPICS for other in TOPICS if one != other}


def test_the_vocabulary_has_every_word_that_is_asked_or_said() -> None:
    said = {word for p in prompts(300, 0) + copy_prompts(300, 0) for word in words(p[0].content)}
    dice = random.Random(0)
    for writer in (base_writer, clear_writer, foreign_writer):
        said |= {word for p in prompts(300, 0) for word in words(writer(p, dice))}
    assert said == set(VOCABULARY)
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 37


@pytest.mark.parametrize(("kind", "too_many"), [(prompts, 18_000), (copy_prompts, 3_800)])
def test_asking_for_more_prompts_than_there_are_says_how_many_there_are(kind, too_many) -> None:
    with pytest.raises(DataError, match="at most"):
        kind(too_many, 0)


# --- gold -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("", 0.0),
        ("wave cloud", 2.0),
        ("wave wave", 1 - 0.3),
        ("wave so cloud cow wave yes", 2 - 0.5 - 0.3),
        ("cow cow", -2 * 0.5 - 0.3),
        ("so so so", -2 * 0.3),
        ("sea sky about copy", 0.0),  # names of topics and other words are neither
        ("wave salt tide ship cloud star wind moon so oh", 8.0),
        ("wave salt tide ship cloud star wind moon so oh well um", 8 - 2 * 0.15),
        ("so oh well um yes wave so oh well um yes wave", 1 - 6 * 0.3 - 2 * 0.15),
    ],
)
def test_gold_by_hand(text: str, worth: float) -> None:
    assert gold(SEA_AND_SKY, text) == pytest.approx(worth)


def test_what_is_on_topic_is_said_by_the_prompt() -> None:
    assert gold(asked("about farm sea so so so so"), "cow cloud") == 0.5
    assert gold(SEA_AND_SKY, "cow cloud") == 0.5
    assert gold(asked("about farm sky so so so so"), "cow cloud") == 2.0


def test_the_last_question_counts_and_a_tag_does_not() -> None:
    talk = (*asked("about farm wood so so so so"), *asked("about sea sky um um um um"))
    assert gold(talk, "wave so") == gold(SEA_AND_SKY, "wave so") == 1.0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("oh um oh um", True),
        ("oh um oh", False),
        ("oh um oh um um", False),
        ("um oh um oh", False),
        ("copy oh um oh um", False),
        ("", False),
    ],
)
def test_a_copy_is_right_word_for_word(text: str, right: bool) -> None:
    assert copy_correct(asked("copy oh um oh um"), text) is right
    assert gold(asked("copy oh um oh um"), text) == float(right)


def test_nothing_is_a_right_copy_where_none_was_asked_for() -> None:
    assert not copy_correct(SEA_AND_SKY, "sea sky oh um so so")


# --- writers ----------------------------------------------------------------------------------


def answers(writer: Writer, n: int = 3000) -> list[tuple[Messages, str]]:
    dice = random.Random(0)
    return [(p, writer(p, dice)) for p in prompts(n, 7)]


@pytest.mark.parametrize("writer", [base_writer, clear_writer, foreign_writer])
def test_a_writer_copies_keeps_its_length_and_belongs_to_its_seed(writer: Writer) -> None:
    dice = random.Random(0)
    assert all(copy_correct(p, writer(p, dice)) for p in copy_prompts(50, 0))
    assert all(2 <= len(words(text)) < MAX_TOKENS for _, text in answers(writer))
    assert answers(writer, 50) == answers(writer, 50)


def test_the_base_writer_is_vague_and_short() -> None:
    drawn = answers(base_writer)
    # standard errors over 3,000 answers: 0.025 gold, 0.05 words
    assert fmean(gold(p, text) for p, text in drawn) == pytest.approx(0.7, abs=0.1)
    assert fmean(len(words(text)) for _, text in drawn) == pytest.approx(6.6, abs=0.2)


def test_the_foreign_writer_is_better_and_has_a_style() -> None:
    drawn = answers(foreign_writer)
    # three keywords of which a quarter is off topic: 3 * (0.75 - 0.25 * 0.5)
    assert fmean(gold(p, text) for p, text in drawn) == pytest.approx(1.875, abs=0.1)
    for prompt, text in drawn:
        said = words(text)
        assert (said[0], said[-1]) == ("well", "yes")
        assert len(set(said)) == len(said)
        assert not set(said[1:-1]) & set(FILLERS)
        on_topic = [keyword for topic in topics_of(prompt) for keyword in TOPICS[topic]]
        places = [on_topic.index(word) for word in said if word in on_topic]
        assert places == sorted(places)


def test_words_and_labels_need_no_torch() -> None:
    code = "import sys, trueup.toy, trueup.toy.measure, trueup.toy.model\nprint(*sys.modules)"
    source = Path(trueup.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "trueup.toy.language" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "peft"})
