"""From flags to tasks, from votes to labels, from those to pairs; and who may vote at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_label import ask

from trueup import pair
from trueup.label import LabelConfig, run, settle, weigh
from trueup.label.settle import UNSETTLED
from trueup.label.tasks import comparisons, difference
from trueup.label.votes import (
    CHOICES,
    SECOND_LOOK,
    Choice,
    VoteBook,
    choice_of,
    choice_of_scores,
    is_swapped,
    mirrored,
    vote,
)
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.models.tiny import save_tiny
from trueup.pair import HeldOut, PairConfig
from trueup.records import Completion, Flag, Interaction, Label, Message, PreferencePair, ReviewTask
from trueup.stats.agreement import krippendorff_alpha
from trueup.store import Store

PEOPLE = LabelConfig(judge="people", num_candidates=3, max_tokens=4)
NONE = HeldOut([])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(save_tiny(tmp_path_factory.mktemp("tiny"), seed=0, hidden_size=32))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def task(n: int = 0, *, gold: tuple[float, float] | None = None) -> ReviewTask:
    return ReviewTask(
        prompt=(Message(role="user", content=f"Question {n}?"),),
        candidates=(Completion(text=f"good {n}"), Completion(text=f"bad {n}")),
        source="loop",
        gold=gold,
    )


def says(store: Store, one: ReviewTask, choice: Choice, *names: str, source: str = "page") -> None:
    book = VoteBook(store)
    store.add_all(made for name in names if (made := book.cast(one, choice, name, source=source)))


def heads(store: Store) -> dict[str, Label]:
    """What each task is settled as."""
    settled = [one for one in store.each(Label) if one.vote_ids]
    replaced = {one.replaces for one in settled}
    return {one.task_id: one for one in settled if one.id not in replaced}


def pairs(store: Store) -> list[PreferencePair]:
    pair.run(store, PairConfig(), NONE)
    return pair.new_pairs(store, NONE)


# --- votes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [*CHOICES, "withdrawn"])
def test_a_vote_reads_back_as_what_was_said(choice: Choice) -> None:
    made = vote(task(), choice, "ann")
    assert choice_of(made) == choice
    assert made.is_vote
    assert mirrored(mirrored(choice)) == choice


def test_scores_alone_say_which_of_two_is_better() -> None:
    said = [choice_of_scores(one) for one in [(1, 0), (-2, 0.5), (0.5, 0.5), (0, 0), (1, 0, 0)]]
    assert said == ["first", "second", "tie", "both bad", None]


def test_the_newest_vote_of_an_annotator_counts_even_where_it_goes_back(store: Store) -> None:
    one = task()
    store.add(one)
    for choice in ("first", "second", "first"):
        says(store, one, choice, "ann")
    assert store.count(Label) == 3
    assert choice_of(VoteBook(store).standing()[one.id]["ann"]) == "first"


def test_a_withdrawn_vote_is_none(store: Store) -> None:
    one = task()
    store.add(one)
    says(store, one, "first", "ann")
    says(store, one, "withdrawn", "ann", "bob")
    assert VoteBook(store).standing() == {}
    assert store.count(Label) == 2, "bob had nothing to withdraw"


def test_saying_it_again_from_the_same_source_is_nothing_new_though_it_changed_elsewhere(
    store: Store,
) -> None:
    one = task()
    store.add(one)
    says(store, one, "first", "ann", source="file:a")
    says(store, one, "second", "ann", source="page")
    says(store, one, "first", "ann", source="file:a")
    assert choice_of(VoteBook(store).standing()[one.id]["ann"]) == "second"


def test_half_of_the_viewers_see_a_task_the_other_way_round_and_always_so() -> None:
    swapped = [is_swapped(task(n).id, f"viewer {n % 7}") for n in range(1000)]
    assert 430 < sum(swapped) < 570
    assert swapped == [is_swapped(task(n).id, f"viewer {n % 7}") for n in range(1000)]


# --- tasks ----------------------------------------------------------------------------------------


def test_the_logged_answer_meets_the_samples_that_differ_most() -> None:
    logged = Interaction(
        prompt=(Message(role="user", content="How long?"),),
        completion=Completion(text="A full charge takes 4 hours."),
        source="gateway",
    )
    near, far = "A full charge takes 5 hours.", "It depends on the weather."
    samples = [Completion(text=one) for one in (near, logged.completion.text, " ", far, far + " ")]
    assert [one.candidates[1].text for one in comparisons(logged, samples, 1)] == [far]
    assert [one.candidates[1].text for one in comparisons(logged, samples, 5)] == [far, near]
    assert comparisons(logged, samples[1:3], 1) == []


def test_difference_is_a_share_of_words_and_their_neighbours() -> None:
    assert difference("a b", "a b") == difference("", "") == 0
    assert difference("a b", "c d") == difference("a", "") == 1
    assert difference("a b", "b a") == pytest.approx(1 - 2 / 4)


def test_flags_become_tasks_once_and_no_labels(store: Store, backbone: Backbone) -> None:
    asked = ask(store, 5)
    champion = StoredModel.serving(store, backbone)
    assert run(store, PEOPLE, champion) == []
    found = store.all(ReviewTask)
    assert {one.interaction_id for one in found} == {one.id for one in asked}
    assert all(one.candidates[1].logprobs for one in found)
    assert run(store, PEOPLE, champion) == []
    assert store.count(ReviewTask) == 5
    judge = PEOPLE.model_copy(update={"judge": "house-style"})
    assert run(store, judge, champion) == [], "people are asked already"


def test_more_pairs_a_prompt_where_settings_ask(store: Store, backbone: Backbone) -> None:
    ask(store, 2)
    config = PEOPLE.model_copy(update={"pairs_per_prompt": 2})
    run(store, config, StoredModel.serving(store, backbone))
    assert store.count(ReviewTask) == 4


def test_the_random_slice_is_asked_about_first_and_not_its_worst_first(
    store: Store, backbone: Backbone
) -> None:
    """Where a part of it is labelled, that part must be a random one, too."""
    asked = ask(store, 8)
    for n, one in enumerate(asked[2:]):
        flag = Flag(
            interaction_id=one.id,
            flagger="signals/1",
            score=0.5 - n / 100,
            raised=True,
            reasons=("random",),
        )
        store.add(flag)
    run(store, PEOPLE, StoredModel.serving(store, backbone))
    order = [one.interaction_id for one in store.all(ReviewTask)]
    assert order == [*sorted(one.id for one in asked[2:]), asked[0].id, asked[1].id]


def test_an_answer_that_no_sample_differs_from_is_not_drawn_for_again(
    store: Store, backbone: Backbone
) -> None:
    (asked,) = ask(store, 1)
    champion = StoredModel.serving(store, backbone)
    run(store, PEOPLE.model_copy(update={"seed": 1}), champion)
    (made,) = store.all(ReviewTask)
    same = asked.model_copy(
        update={"id": "", "completion": made.candidates[1], "request_id": "again"}
    )
    drawn = []

    class Silent:
        weights = champion.weights

        def fits(self, *_: object) -> bool:
            return True

        def complete(self, prompts: list, *_: object, num_samples: int) -> list:
            drawn.append(len(prompts))
            return [[same.completion] * num_samples for _ in prompts]

    other = Store(store.folder / "other")
    again = Interaction.model_validate(same.model_dump())
    other.add(again)
    other.add(Flag(interaction_id=again.id, flagger="signals/1", score=1, raised=True))
    for _ in range(2):
        assert run(other, PEOPLE, Silent()) == []  # type: ignore[arg-type]  # an engine of one answer
    assert drawn == [1]
    other.close()


# --- settling -------------------------------------------------------------------------------------


def test_the_loop_from_votes_to_pairs(store: Store, backbone: Backbone) -> None:
    ask(store, 3)
    champion = StoredModel.serving(store, backbone)
    run(store, PEOPLE, champion)
    first, second, third = store.all(ReviewTask)
    says(store, first, "first", "ann")
    says(store, second, "second", "ann")
    says(store, third, "tie", "ann")
    made = run(store, PEOPLE, champion)
    assert [one.annotator for one in made] == ["people:dawid-skene/1"] * 3
    assert {one.task_id for one in made} == {first.id, second.id, third.id}
    found = {one.prompt: one for one in pairs(store)}
    assert found[first.prompt].chosen == first.candidates[0]
    assert found[second.prompt].chosen == second.candidates[1]
    assert third.prompt not in found
    label = heads(store)[first.id]
    assert {one.id for one in store.parents(label.id)} >= {first.id, *label.vote_ids}
    assert 0.55 < found[first.prompt].margin == max(label.scores) < 1
    assert run(store, PEOPLE, champion) == []


def test_a_task_waits_for_as_many_votes_as_settings_ask(store: Store) -> None:
    config = PEOPLE.model_copy(update={"overlap": 2})
    store.add(task(0), task(1))
    says(store, task(0), "first", "ann")
    says(store, task(1), "first", "ann", "bob")
    done = settle(store, config)
    assert [one.task_id for one in done.written] == [task(1).id]
    assert [one.id for one in done.weighed.waiting] == [task(0).id]


@pytest.mark.parametrize("method", ["majority", "dawid-skene"])
def test_votes_that_cancel_out_are_unsettled(store: Store, method: str) -> None:
    config = PEOPLE.model_copy(update={"overlap": 2, "settle": method})
    store.add(task())
    says(store, task(), "first", "ann")
    says(store, task(), "second", "bob")
    done = settle(store, config)
    assert done.written == []
    assert [one.id for one in done.weighed.unsettled] == [task().id]
    assert done.weighed.outcomes[task().id].choice == "tie"
    assert done.weighed.outcomes[task().id].confidence <= 0.5


def test_a_majority_has_its_share_of_the_votes_as_margin(store: Store) -> None:
    config = PEOPLE.model_copy(update={"settle": "majority"})
    store.add(task())
    says(store, task(), "first", "ann", "bob")
    says(store, task(), "both bad", "cid")
    (made,) = settle(store, config).written
    assert made.scores == (pytest.approx(2 / 3), 0)
    assert made.annotator == "people:majority/1"


def test_new_votes_replace_what_was_settled_and_its_pair(store: Store) -> None:
    config = PEOPLE.model_copy(update={"settle": "majority"})
    store.add(task())
    says(store, task(), "first", "ann")
    settle(store, config)
    assert [one.chosen.text for one in pairs(store)] == ["good 0"]
    says(store, task(), "second", "ann", "bob")
    settle(store, config)
    assert [one.chosen.text for one in pairs(store)] == ["bad 0"]
    assert choice_of(heads(store)[task().id]) == "second"
    assert pair.run(store, PairConfig(), NONE)["replaced"] == 1, "ann's first vote"
    says(store, task(), "first", "ann")  # one against one: nothing is left of it
    settle(store, config)
    assert heads(store)[task().id].reasons == ((UNSETTLED,), (UNSETTLED,))
    assert pairs(store) == []
    assert settle(store, config).written == []
    says(store, task(), "first", "bob")
    settle(store, config)
    assert [one.chosen.text for one in pairs(store)] == ["good 0"]


def test_a_label_whose_only_vote_was_withdrawn_teaches_no_more(store: Store) -> None:
    store.add(task())
    says(store, task(), "first", "ann")
    settle(store, PEOPLE)
    says(store, task(), "withdrawn", "ann")
    settle(store, PEOPLE)
    assert pairs(store) == []
    assert settle(store, PEOPLE).written == []


def test_a_vote_elsewhere_that_moves_a_confidence_writes_nothing(store: Store) -> None:
    store.add(*(task(n) for n in range(4)))
    says(store, task(0), "first", "ann", "bob")
    settle(store, PEOPLE)
    before = weigh(store, PEOPLE).outcomes[task(0).id].confidence
    says(store, task(1), "second", "ann", "bob")
    (made,) = settle(store, PEOPLE).written
    assert made.task_id == task(1).id
    assert weigh(store, PEOPLE).outcomes[task(0).id].confidence != before


# --- gold questions -------------------------------------------------------------------------------


def with_gold(store: Store, wrong: int, num: int = 10) -> None:
    """Ann knows all gold questions, Bob errs in so many; each votes on one task of their own."""
    for n in range(num):
        gold = task(100 + n, gold=(1, 0))
        store.add(gold)
        says(store, gold, "first", "ann")
        says(store, gold, "second" if n < wrong else "first", "bob")
    store.add(task(0), task(1))
    says(store, task(0), "first", "ann")
    says(store, task(1), "first", "bob")


def test_who_fails_gold_questions_is_left_out(store: Store) -> None:
    with_gold(store, wrong=5)
    done = settle(store, PEOPLE)
    assert [one.task_id for one in done.written] == [task(0).id]
    ann, bob = done.weighed.annotators
    assert (ann.left_out, bob.left_out) == (False, True)
    assert (bob.gold.num_right, bob.gold.num_asked, bob.num_votes) == (5, 10, 1)
    accuracy = bob.gold.accuracy
    assert accuracy is not None
    assert accuracy[0] == 0.5
    assert accuracy[1] == pytest.approx(0.2366, abs=1e-4)  # Wilson 1927, 5 of 10
    assert bob.reliability is None
    assert [one.id for one in done.weighed.waiting] == [task(1).id]


def test_a_few_gold_questions_leave_nobody_out(store: Store) -> None:
    with_gold(store, wrong=4, num=4)
    assert not any(one.left_out for one in weigh(store, PEOPLE).annotators)


def test_gold_questions_teach_nothing_but_who_is_right(store: Store) -> None:
    with_gold(store, wrong=3)
    done = settle(store, PEOPLE)
    assert {one.task_id for one in done.written} == {task(0).id, task(1).id}
    assert {one.prompt for one in pairs(store)} == {task(0).prompt, task(1).prompt}
    ann, bob = done.weighed.annotators
    assert ann.reliability is not None and bob.reliability is not None
    assert ann.reliability > bob.reliability + 0.1


def test_alpha_is_of_everybody_whose_votes_count(store: Store) -> None:
    store.add(*(task(n) for n in range(12)))
    for n in range(12):
        choice: Choice = "first" if n % 2 else "second"
        says(store, task(n), choice, "ann", "bob")
    alpha = weigh(store, PEOPLE).alpha()
    assert alpha is not None
    assert alpha[0] == 1
    for n in range(12):
        says(store, task(n), "first" if n % 3 else "second", "bob")
    ann = ["first" if n % 2 else "second" for n in range(12)]
    bob = ["first" if n % 3 else "second" for n in range(12)]
    assert weigh(store, PEOPLE).alpha() == krippendorff_alpha([ann, bob])


def test_of_two_second_looks_the_newest_decides_and_none_is_agreement(store: Store) -> None:
    store.add(*(task(n) for n in range(4)))
    for n in range(4):
        says(store, task(n), "first" if n % 2 else "second", "ann")
        says(store, task(n), "first", "bob")
    before = weigh(store, PEOPLE).alpha()
    says(store, task(), "first", "lea", source=SECOND_LOOK)
    says(store, task(), "second", "zed", source=SECOND_LOOK)
    says(store, task(), "tie", "lea", source=SECOND_LOOK)
    found = weigh(store, PEOPLE)
    assert found.outcomes[task().id].choice == "tie"
    assert before is not None and found.alpha() == before
