"""Flags: each cheap signal by itself, and a step that runs again without doing anything twice."""

import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueup.errors import StorageError
from trueup.flag import FLAGGER, FlagConfig, run
from trueup.flag.signals import Population, repetition, signals
from trueup.records import Completion, Feedback, Flag, Interaction, Message
from trueup.store import Store

CONTEXT = (
    "Context: A full charge takes 4 hours with the supplied cable and lasts about 30 days.\n\n"
    "Question: How long does a full charge take?"
)
GOOD = "A full charge takes 4 hours."


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def interaction(
    text: str,
    *,
    prompt: str = CONTEXT,
    logprobs: tuple[float, ...] | None = None,
    finish_reason: str = "stop",
    name: str = "",
) -> Interaction:
    return Interaction(
        prompt=(Message(role="user", content=prompt),),
        completion=Completion(text=text, logprobs=logprobs, finish_reason=finish_reason),
        source="gateway",
        request_id=name,
    )


def found(one: Interaction, *feedback: Feedback, among: tuple[Interaction, ...] = ()) -> dict:
    return signals(one, feedback, Population((one, *among)), FlagConfig())


def down(one: Interaction) -> Feedback:
    return Feedback(interaction_id=one.id, rating=-1)


# --- signals --------------------------------------------------------------------------------------


def test_a_good_answer_shows_no_sign() -> None:
    assert max(found(interaction(GOOD)).values()) == 0


@pytest.mark.parametrize("text", ["", "   \n", "...", "🙂"])
def test_an_answer_without_a_word_is_empty(text: str) -> None:
    assert found(interaction(text))["empty"] == 1


def test_an_answer_that_was_cut_off_is_truncated() -> None:
    assert found(interaction(GOOD, finish_reason="length"))["truncated"] == 0.6
    assert found(interaction(GOOD, finish_reason="unknown"))["truncated"] == 0


def test_repetition_is_the_share_of_three_word_runs_said_before() -> None:
    """Six words give four runs; `a b c a b c` says one of them twice."""
    assert repetition("a b c d e f") == 0
    assert repetition("a b c a b c") == 0.25
    assert repetition("no no no no no no no no") == pytest.approx(5 / 6)
    assert repetition("no no no") == 0, "too short to tell"
    assert repetition("A b, c! a B c.") == 0.25, "case and punctuation are not other words"


def test_half_the_words_from_nowhere_is_past_the_line_and_a_third_is_on_it() -> None:
    line = found(interaction("Charge takes magic."))["ungrounded"]
    assert line == pytest.approx(0.5 * (1 / 3) / 0.34, abs=1e-4)
    assert found(interaction("Magic elves."))["ungrounded"] == 1
    assert "ungrounded" not in found(interaction("Magic elves.", prompt="Who are you?"))


def test_words_of_the_system_message_are_known() -> None:
    prompt = (
        Message(role="system", content="You speak for Wren."),
        Message(role="user", content=CONTEXT),
    )
    one = Interaction(prompt=prompt, completion=Completion(text="Wren takes 4 hours."), source="x")
    assert found(one)["ungrounded"] == 0


def test_an_answer_less_likely_than_the_others_is_unlikely() -> None:
    usual = tuple(
        interaction(GOOD, logprobs=(mean, mean), name=str(mean)) for mean in (-0.4, -0.5, -0.6)
    )
    odd = interaction(GOOD, logprobs=(-3.0,), name="odd")
    # the median is -0.55 and the median deviation 0.1: (3 - 0.55) / (1.4826 * 0.1) spreads away
    assert found(odd, among=usual)["unlikely"] == 1
    assert found(usual[1], among=usual[:1] + usual[2:])["unlikely"] == 0
    likely = interaction(GOOD, logprobs=(-0.01,), name="sure")
    assert found(likely, among=usual)["unlikely"] == 0, "only the low side is suspicious"


def test_the_line_for_unlikely_lies_at_the_z_of_the_settings() -> None:
    usual = [interaction(GOOD, logprobs=(m,), name=str(m)) for m in (-0.3, -0.4, -0.5, -0.6, -0.7)]
    spread = 1.4826 * 0.1
    at_two = interaction(GOOD, logprobs=(-0.5 - 2 * spread,), name="z2")
    value = signals(at_two, (), Population(usual), FlagConfig(outlier_z=2.0))["unlikely"]
    assert value == pytest.approx(0.5, abs=1e-4)


def test_without_log_probs_or_without_spread_nothing_is_said_of_likelihood() -> None:
    assert "unlikely" not in found(interaction(GOOD))
    same = tuple(interaction(GOOD, logprobs=(-0.5,), name=str(n)) for n in range(3))
    assert "unlikely" not in found(same[0], among=same[1:])


def test_a_thumb_down_or_an_edit_calls_for_a_label_and_a_thumb_up_does_not() -> None:
    one = interaction(GOOD)
    assert found(one, down(one))["feedback"] == 1
    assert found(one, Feedback(interaction_id=one.id, edit="4 h."))["feedback"] == 1
    assert found(one, Feedback(interaction_id=one.id, rating=1))["feedback"] == 0
    assert found(one, Feedback(interaction_id=one.id, comment="hm"))["feedback"] == 0


# --- the step -------------------------------------------------------------------------------------


def test_every_examined_interaction_gets_one_flag_and_the_weak_ones_are_raised(
    store: Store,
) -> None:
    good, empty, cut = (
        interaction(GOOD),
        interaction(""),
        interaction(GOOD, finish_reason="length", name="cut"),
    )
    store.add(good, empty, cut)
    flags = run(store, FlagConfig())
    assert flags == store.all(Flag)
    said = {f.interaction_id: (f.raised, f.score, f.reasons) for f in flags}
    assert said == {
        good.id: (False, 0.0, ()),
        empty.id: (True, 1.0, ("empty",)),
        cut.id: (True, 0.6, ("truncated",)),
    }
    assert store.parents(flags[0].id) == [good]


def test_the_score_is_the_worst_signals_and_all_that_reach_the_line_are_reasons(
    store: Store,
) -> None:
    store.add(interaction("elves elves elves elves elves elves", finish_reason="length"))
    (flag,) = run(store, FlagConfig())
    assert flag.score == 1
    assert flag.reasons == ("truncated", "repetitive", "ungrounded")
    assert set(flag.signals) >= {"empty", "truncated", "repetitive", "feedback", "ungrounded"}


def test_a_higher_threshold_raises_fewer(store: Store) -> None:
    store.add(interaction(GOOD, finish_reason="length"))
    assert not run(store, FlagConfig(threshold=0.7))[0].raised


def test_running_again_writes_nothing_until_there_is_new_traffic(store: Store) -> None:
    store.add(interaction(GOOD), interaction(""))
    assert len(run(store, FlagConfig())) == 2
    assert run(store, FlagConfig()) == []
    store.add(interaction("Four hours.", name="new"))
    assert len(run(store, FlagConfig())) == 1
    assert store.count(Flag) == 3


def test_feedback_that_came_after_the_first_flag_gives_one_second_flag(store: Store) -> None:
    one = interaction(GOOD)
    store.add(one)
    run(store, FlagConfig())
    store.add(Feedback(interaction_id=one.id, rating=1))
    assert run(store, FlagConfig()) == [], "a thumb up calls for nothing"
    store.add(down(one))
    (second,) = run(store, FlagConfig())
    assert (second.raised, second.reasons) == (True, ("feedback",))
    store.add(Feedback(interaction_id=one.id, edit="4 h."))
    assert run(store, FlagConfig()) == [], "it is raised already"
    assert [f.raised for f in store.each(Flag)] == [False, True]


def test_a_thumb_up_gives_nothing_to_look_at_again(store: Store) -> None:
    """Or every liked answer would be scored anew by each call, and flagged by another threshold."""
    one = interaction("A charge takes 4 hours somewhere.")
    store.add(one)
    assert not run(store, FlagConfig())[0].raised
    store.add(Feedback(interaction_id=one.id, rating=1))
    assert run(store, FlagConfig(threshold=0.001, max_ungrounded=0.001)) == []


def test_what_was_examined_before_is_not_kept_in_memory(store: Store) -> None:
    old = [interaction("long words " * 200, name=str(n)) for n in range(5_000)]
    store.add_all(old)
    store.add_all(
        Flag(interaction_id=one.id, flagger=FLAGGER, score=0, raised=False) for one in old
    )
    store.add(interaction("A new one.", name="new"))
    del old
    tracemalloc.start()
    assert len(run(store, FlagConfig())) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9e6, "11 MB of text are there"


def test_flags_of_another_flagger_do_not_count_as_examined(store: Store) -> None:
    one = interaction("")
    store.add(one, Flag(interaction_id=one.id, flagger="theirs/1", score=0, raised=False))
    assert [f.raised for f in run(store, FlagConfig())] == [True]


def test_an_empty_store_gives_no_flags(store: Store) -> None:
    assert run(store, FlagConfig()) == []


def test_when_the_store_fails_half_way_no_flag_is_written_and_the_next_run_does_all(
    store: Store,
) -> None:
    store.add(*(interaction(GOOD, name=str(n)) for n in range(5)))
    with sqlite3.connect(store.folder / "store.sqlite") as connection:
        connection.execute(
            "CREATE TRIGGER third BEFORE INSERT ON flag WHEN (SELECT count(*) FROM flag) = 3 "
            "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        )
    connection.close()
    with pytest.raises(StorageError):
        run(store, FlagConfig())
    assert store.count(Flag) == 0
    with sqlite3.connect(store.folder / "store.sqlite") as connection:
        connection.execute("DROP TRIGGER third")
    connection.close()
    assert len(run(store, FlagConfig())) == 5
