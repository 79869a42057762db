"""Pairs: best against worst, every label that gives none counted, nothing that measures let in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from trueup.pair import HeldOut, PairConfig, freeze, new_pairs, run
from trueup.records import Completion, Dataset, Label, Message, Messages, PreferencePair
from trueup.store import Store

NOBODY = HeldOut([])
QUESTION = (
    "How many days does a full charge of the feeder usually last when the camera sleeps at night?"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def asked(text: str) -> Messages:
    return (Message(role="system", content="Be brief."), Message(role="user", content=text))


def label(
    texts: tuple[str, ...] = ("4 hours.", "Well, 4 hours."),
    scores: tuple[float, ...] = (1.0, 0.0),
    *,
    prompt: str = "How long?",
    annotator: str = "ann",
) -> Label:
    return Label(
        prompt=asked(prompt),
        candidates=tuple(
            Completion(text=t, token_ids=(n,), logprobs=(-0.5,), weights="weights_1")
            for n, t in enumerate(texts)
        ),
        scores=scores,
        annotator=annotator,
        annotator_kind="human",
    )


def pairs(store: Store) -> list[PreferencePair]:
    return store.all(PreferencePair)


# --- the step -------------------------------------------------------------------------------------


def test_the_best_candidate_meets_the_worst(store: Store) -> None:
    one = label(("b", "best", "worst", "c"), (0.4, 0.9, 0.2, 0.5))
    store.add(one)
    assert run(store, PairConfig(), NOBODY) == {}
    (pair,) = pairs(store)
    assert (pair.chosen.text, pair.rejected.text) == ("best", "worst")
    assert pair.margin == pytest.approx(0.7)
    assert (pair.label_ids, pair.prompt) == ((one.id,), one.prompt)
    assert store.parents(pair.id) == [one]


def test_a_pair_keeps_what_is_known_of_both_answers(store: Store) -> None:
    one = label()
    store.add(one)
    run(store, PairConfig(), NOBODY)
    (pair,) = pairs(store)
    assert (pair.chosen, pair.rejected) == one.candidates
    assert pair.chosen.logprobs == (-0.5,)


SKIPPED = {
    "unpaired": label(("4 hours.",), (1.0,)),
    "tie": label(scores=(0.50, 0.45)),
    "chosen equals rejected": label((" 4 hours.", "4 hours. \n"), (1.0, 0.0)),
    "empty chosen": label((" \n", "4 hours."), (1.0, 0.0)),
    "held out": label(prompt="Is it waterproof?"),
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_a_label_that_gives_no_pair_is_counted_under_its_reason(store: Store, reason: str) -> None:
    store.add(SKIPPED[reason])
    skipped = run(store, PairConfig(), HeldOut([asked("Is it waterproof?")]))
    assert skipped == {reason: 1}
    assert pairs(store) == []


def test_reasons_are_counted_side_by_side_and_the_good_labels_still_pair(store: Store) -> None:
    store.add_all([*SKIPPED.values(), label(scores=(0.3, 0.3)), label()])
    skipped = run(store, PairConfig(), HeldOut([asked("Is it waterproof?")]))
    assert skipped == {**dict.fromkeys(SKIPPED, 1), "tie": 2}
    assert len(pairs(store)) == 1


def test_the_smallest_margin_is_enough_and_no_margin_never_is(store: Store) -> None:
    store.add(label(scores=(0.75, 0.5)), label(scores=(0.5, 0.5)))
    assert run(store, PairConfig(min_margin=0.25), NOBODY) == {"tie": 1}
    assert [p.margin for p in pairs(store)] == [0.25]
    assert run(store, PairConfig(min_margin=0.0), NOBODY) == {"tie": 1}


def test_an_empty_rejected_answer_is_a_fair_lesson(store: Store) -> None:
    store.add(label(("4 hours.", ""), (1.0, 0.0)))
    assert run(store, PairConfig(), NOBODY) == {}
    assert pairs(store)[0].rejected.text == ""


def test_running_twice_writes_nothing_new(store: Store) -> None:
    store.add(label(), *SKIPPED.values())
    run(store, PairConfig(), NOBODY)
    before = pairs(store)
    run(store, PairConfig(), NOBODY)
    assert pairs(store) == before
    store.add(label(prompt="How wide?"))
    run(store, PairConfig(), NOBODY)
    assert len(pairs(store)) == len(before) + 1


def test_equal_prompts_share_a_hash_and_others_do_not(store: Store) -> None:
    store.add(label(), label(("a", "b")), label(prompt="How wide?"))
    run(store, PairConfig(), NOBODY)
    first, second, third = (p.prompt_hash for p in pairs(store))
    assert first == second != third


# --- what must not be trained on ------------------------------------------------------------------


@pytest.mark.parametrize(
    "again",
    ["Is it waterproof?", "is it WATERPROOF", "  Is it, waterproof?!  ", "Is it\n“waterproof”…"],
)
def test_a_held_out_prompt_is_known_again_in_other_case_and_punctuation(again: str) -> None:
    assert HeldOut([asked("Is it waterproof?")]).contains(asked(again))


@pytest.mark.parametrize(
    "again",
    [
        QUESTION,
        f"Hello! {QUESTION.upper()} Thanks a lot",
        f"Context: something else entirely.\n\nQuestion: {QUESTION.rstrip('?')}",
    ],
)
def test_a_long_held_out_question_is_known_inside_a_longer_message(again: str) -> None:
    assert HeldOut([asked(QUESTION)]).contains(asked(again))


@pytest.mark.parametrize(
    "other",
    [
        "Is it waterproofed?",
        "It is waterproof?",
        "Is it waterproof? And the cable?",
        "How many days does a full charge of the feeder usually last?",
        "",
    ],
)
def test_another_question_is_not_held_out(other: str) -> None:
    held_out = HeldOut([asked("Is it waterproof?"), asked(QUESTION)])
    assert not held_out.contains(asked(other))


def test_what_counts_is_the_last_thing_the_user_said() -> None:
    held_out = HeldOut([asked("Is it waterproof?")])
    long_talk = (
        *asked("Hello"),
        Message(role="assistant", content="Hi."),
        Message(role="user", content="Is it waterproof"),
    )
    assert held_out.contains(long_talk)
    assert not held_out.contains((*long_talk, Message(role="user", content="And the cable?")))
    other_system = (Message(role="user", content="Is it waterproof?"),)
    assert held_out.contains(other_system), "another system message is no other question"


def test_a_short_prompt_does_not_hold_out_every_prompt_it_stands_in() -> None:
    assert not HeldOut([asked("How long?")]).contains(asked("How long? And how wide is it?"))


def grounded(question: str, context: str) -> str:
    return f"Context: {context}\n\nQuestion: {question}"


LAMP = "The lamp ships with one bulb. A full charge takes four hours, and it shines for nine."
FEEDER = "The feeder opens at six. Its bowl holds two kilos, which a cat empties in twelve days."


@pytest.mark.parametrize(
    "again",
    [
        grounded("How long does it last?", FEEDER),
        grounded("HOW LONG, does it last", f"{LAMP} It has a dimmer, too."),
        f"Use only this.\ncontext:\n{FEEDER}\nquestion: How long does it last?",
        "How long does it last?",
    ],
    ids=["another", "longer", "other words", "none"],
)
def test_a_held_out_question_is_known_again_under_another_context(again: str) -> None:
    held_out = HeldOut([asked(grounded("How long does it last?", LAMP))])
    assert held_out.contains(asked(again))


def test_a_question_held_out_without_a_context_is_known_again_under_one() -> None:
    assert HeldOut([asked("How long does it last?")]).contains(
        asked(grounded("How long does it last?", LAMP))
    )


@pytest.mark.parametrize("question", ["Is it free?", "How long?", "Is it really free?"])
def test_a_question_too_short_to_identify_is_held_out_with_its_context_only(question: str) -> None:
    held_out = HeldOut([asked(grounded(question, LAMP))])
    assert held_out.contains(asked(grounded(question.upper(), LAMP)))
    assert not held_out.contains(asked(grounded(question, FEEDER)))
    assert not held_out.contains(asked(question))


def test_another_question_under_a_held_out_context_is_not_held_out() -> None:
    held_out = HeldOut([asked(grounded("How long does it last?", LAMP))])
    assert not held_out.contains(asked(grounded("How many bulbs does it ship with?", LAMP)))
    assert not held_out.contains(asked(LAMP))


def test_a_label_and_a_pair_of_a_held_out_question_are_left_out(store: Store) -> None:
    held_out = HeldOut([asked(grounded("How long does it last?", LAMP))])
    store.add(
        label(prompt=grounded("How long does it last?", FEEDER)),
        label(prompt=grounded("Is it free?", FEEDER)),
    )
    assert run(store, PairConfig(), held_out) == {"held out": 1}
    store.add(label(prompt="How long does it last?"))
    run(store, PairConfig(), NOBODY)  # held out only since then
    assert len(pairs(store)) == 3
    kept = [pair.prompt[-1].content for pair in new_pairs(store, held_out)]
    assert kept == [grounded("Is it free?", FEEDER)]


# --- data sets ------------------------------------------------------------------------------------


def paired(store: Store, *labels: Label) -> list[PreferencePair]:
    store.add_all(labels)
    run(store, PairConfig(), NOBODY)
    return new_pairs(store)


def test_pairs_are_new_until_a_data_set_of_the_loop_names_them(store: Store) -> None:
    first = paired(store, label(), label(prompt="How wide?"))
    assert len(first) == 2
    freeze(store, first)
    assert new_pairs(store) == []
    assert [p.prompt for p in paired(store, label(prompt="How high?"))] == [asked("How high?")]


def test_a_data_set_from_a_file_uses_nothing_up(store: Store) -> None:
    first = paired(store, label())
    freeze(store, first, source="file:theirs.jsonl")
    assert new_pairs(store) == first


def test_of_equal_pairs_the_one_with_the_widest_margin_is_kept(store: Store) -> None:
    narrow, wide, middle = (
        label(scores=(gap, 0.0), annotator=f"ann {gap}") for gap in (0.3, 0.9, 0.5)
    )
    assert [p.margin for p in paired(store, narrow, wide, middle)] == [0.9]


def test_a_pair_like_one_that_was_used_is_not_new_however_wide(store: Store) -> None:
    freeze(store, paired(store, label(scores=(0.3, 0.0))))
    again = label((" 4 hours.", "Well, 4 hours.\n"), annotator="bob")
    assert paired(store, again) == []
    assert len(pairs(store)) == 2


def test_the_same_answers_the_other_way_round_are_another_pair(store: Store) -> None:
    assert len(paired(store, label(), label(scores=(0.0, 1.0)))) == 2


def test_the_same_pairs_are_the_same_data_set(store: Store) -> None:
    found = paired(store, label(), label(prompt="How wide?"))
    first, again = freeze(store, found), freeze(store, found)
    other = freeze(store, found[:1])
    assert first.id == again.id != other.id
    assert store.count(Dataset) == 2
    assert store.get(Dataset, first.id).pair_ids == tuple(p.id for p in found)


def test_a_data_set_says_what_was_skipped(store: Store) -> None:
    store.add_all([label(), *SKIPPED.values()])
    skipped = run(store, PairConfig(), NOBODY)
    dataset = freeze(store, new_pairs(store), skipped=skipped)
    assert store.get(Dataset, dataset.id).skipped == dict(skipped)
    assert sum(dataset.skipped.values()) == 4, "nobody was held out this time"
