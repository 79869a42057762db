"""The project's own flagger, the language model's grades, and what is selected besides."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trueup.errors import ConfigError, DataError
from trueup.flag import FlagConfig, Parts, SelectConfig, retrain, run, train, weak_share
from trueup.flag.keeping import current, known_of
from trueup.flag.learn import RECIPES, fit
from trueup.flag.select import INCLUSION, SLICE, farthest, is_drawn
from trueup.flag.signals import Population
from trueup.flag.truth import truths, weak_by
from trueup.judges.config import EndpointConfig
from trueup.judges.scripted import ScriptedJudge, running
from trueup.models.embedder import lexical
from trueup.records import Completion, Feedback, Flag, Interaction, Label, Message
from trueup.stats.ranking import average_precision
from trueup.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


def asked(n: int, text: str, *, error: str = "") -> Interaction:
    return Interaction(
        prompt=(Message(role="user", content=f"Which river is number {n}?"),),
        completion=Completion(text=text, finish_reason="stop"),
        source="gateway",
        request_id=str(n),
        error=error,
    )


def label(one: Interaction, *scores: float, by: str = "code", others: int = 1) -> Label:
    candidates = (one.completion, *(Completion(text=f"rival {n}") for n in range(others)))
    return Label(
        prompt=one.prompt,
        candidates=candidates,
        scores=scores,
        annotator=f"{by}:x/1",
        annotator_kind=by,  # type: ignore[arg-type]
        interaction_id=one.id,
    )


def fill(store: Store, n: int = 100, *, start: int = 0) -> list[Interaction]:
    """Answers that hedge lose to their rival."""
    made = []
    for i in range(start, start + n):
        weak = i % 2 == 0
        words = "perhaps it may be so" if weak else "it is the great river of the north"
        made.append(asked(i, f"{words} {i % 7}"))
        store.add(made[-1], label(made[-1], *((0, 1) if weak else (1, 0))))
    return made


# --- what is weak -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "weak"),
    [((0, 1), True), ((1, 0), False), ((1, 1), False), ((1, 3, 0), True), ((1.5, 3, 0), False)],
)
def test_an_answer_is_weak_where_it_is_under_the_mean_of_its_rivals(
    scores: tuple[float, ...], weak: bool
) -> None:
    one = asked(1, "own")
    assert weak_by(label(one, *scores, others=len(scores) - 1), "own") is weak


def test_a_single_rating_speaks_by_its_sign_and_another_answers_label_not_at_all() -> None:
    one = asked(1, "own")
    assert weak_by(label(one, -1, others=0), "own") is True
    assert weak_by(label(one, 1, others=0), "own") is False
    assert weak_by(label(one, 0, 1), "another answer") is None


def test_people_come_before_code_and_labels_before_thumbs(store: Store) -> None:
    one, two, broken = asked(1, "own"), asked(2, "own"), asked(3, "ow", error="timeout")
    store.add(one, two, broken, label(broken, 0, 1))
    store.add(label(one, 0, 1, by="human"), label(one, 1, 0))
    store.add(Feedback(interaction_id=one.id, rating=1), Feedback(interaction_id=two.id, rating=-1))
    assert truths(store) == {one.id: True, two.id: True}


def test_the_newest_thumb_speaks_and_what_broke_off_is_neither(store: Store) -> None:
    one, broken = asked(1, "own"), asked(2, "ow", error="timeout")
    store.add(one, broken)
    store.add(Feedback(interaction_id=one.id, rating=-1), Feedback(interaction_id=one.id, rating=1))
    store.add(Feedback(interaction_id=broken.id, rating=-1))
    assert truths(store) == {one.id: False}


def test_both_bad_is_weak_and_what_was_taken_back_says_nothing(store: Store) -> None:
    one, two, three, four = (asked(n, "own") for n in range(4))
    said = {
        name: label(of, 0, 0, by="human").model_copy(update={"reasons": ((name,), (name,))})
        for of, name in (
            (one, "both bad"),
            (two, "withdrawn"),
            (three, "unsettled"),
            (four, "gold question"),
        )
    }
    assert [weak_by(one, "own") for one in said.values()] == [True, None, None, None]
    store.add(three, settled := label(three, 0, 1, by="human"))
    assert truths(store) == {three.id: True}
    fields = said["unsettled"].model_dump() | {"id": "", "replaces": settled.id}
    store.add(Label.model_validate(fields))
    assert truths(store) == {}, "the votes carry it no longer"


# --- the learned flagger ------------------------------------------------------------------------


@pytest.mark.parametrize(("weak", "fine"), [(1, 60), (2, 60), (60, 1), (1, 1)])
def test_labels_of_too_few_prompts_teach_nothing_and_stop_nothing(
    store: Store, weak: int, fine: int
) -> None:
    for n in range(120):
        many, side = (weak, "weak") if n % 2 else (fine, "fine")
        one = asked(n, f"{side} {n}").model_copy(
            update={"prompt": (Message(role="user", content=f"{side} {n % many}?"),)}
        )
        store.add(one, label(one, *((0, 1) if n % 2 else (1, 0))))
    done = train(store, FlagConfig(), None)
    assert done.learned is None and not done.is_used
    assert "too few prompts" in done.reason


def test_an_old_one_that_knows_its_labels_by_heart_does_not_stay_for_that(store: Store) -> None:
    """Trees fit their own labels nearly to the last one; asked about those, they beat everything
    that is measured out of fold."""
    words = ["perhaps", "river", "34", "the", "Is", "Green,", "dog;", *"abcdefghijk"]
    chance = np.random.default_rng(0)

    def more(start: int, end: int) -> None:
        for n in range(start, end):
            said = chance.choice(words, chance.integers(3, 30))
            weak = chance.random() < (0.75 if "perhaps" in said else 0.35)
            one = asked(n, " ".join(said))
            store.add(one, label(one, *((0, 1) if weak else (1, 0))))

    more(0, 80)
    first = train(store, FlagConfig(), None).learned
    assert first is not None and len(first.taught) == 80
    said, traffic = truths(store), store.all(Interaction)
    known = known_of(traffic, Population(traffic), FlagConfig(), None)
    weak = np.array([said[one.id] for one in traffic], int)
    by_heart = fit(RECIPES[-1], known, weak).model_copy(update={"taught": first.taught})
    assert average_precision(by_heart.margins(known), weak) > 0.95
    place = store.folder / "flagger" / "current.json"
    place.write_text(by_heart.model_dump_json())
    more(80, 95)
    few = train(store, FlagConfig(), None)
    assert few.is_used and few.difference is None, "fifteen are too few to say anything"
    place.write_text(by_heart.model_dump_json())
    more(95, 240)
    done = train(store, FlagConfig(), None)
    assert done.difference is not None and done.is_used and done.difference.high > 0
    now = current(store)
    assert now is not None and done.learned is not None and now.id == done.learned.id


def test_one_that_was_not_used_is_not_learned_again_every_turn(store: Store) -> None:
    fill(store, 80)
    config = FlagConfig(retrain_every=30)
    assert retrain(store, config, lexical) is not None
    kept = (store.folder / "flagger" / "current.json").read_bytes()
    fill(store, 40, start=100)
    assert retrain(store, config, lexical) is not None
    (store.folder / "flagger" / "current.json").write_bytes(kept)  # as if it had been worse
    assert retrain(store, config, lexical) is None


def test_with_too_few_labels_nothing_is_learned_and_it_says_so(store: Store) -> None:
    fill(store, 20)
    done = train(store, FlagConfig(), None)
    assert (done.learned, done.is_used) == (None, False)
    assert "10 weak and 10 fine" in done.reason
    assert current(store) is None and not (store.folder / "flagger").exists()


def test_what_was_learned_flags_new_traffic_under_its_own_name(store: Store) -> None:
    fill(store)
    done = train(store, FlagConfig(), None)
    made = current(store)
    assert made is not None and made == done.learned and done.is_used
    assert (store.folder / "flagger" / f"{made.id.replace('/', '_')}.json").is_file()
    weak, fine = (
        asked(901, "perhaps it may be so 3"),
        asked(902, "it is the great river of the north 3"),
    )
    store.add(weak, fine, asked(903, "", error="upstream 503"))
    flags = {f.interaction_id: f for f in run(store, FlagConfig())}
    assert {f.flagger for f in flags.values()} == {made.id}
    assert flags[weak.id].raised and flags[weak.id].reasons == ("learned",)
    assert not flags[fine.id].raised
    assert flags[weak.id].signals["chance"] > 0.5 > flags[fine.id].signals["chance"]
    assert run(store, FlagConfig()) == []
    plain = asked(904, "perhaps it may be so 3")
    store.add(plain)
    (flag,) = run(store, FlagConfig(learned=False))
    assert flag.flagger == "signals/2"


def test_the_score_is_half_where_the_chance_is_worth_a_label(store: Store) -> None:
    fill(store)
    train(store, FlagConfig(), None)
    store.add(asked(901, "perhaps it may be so 3"))
    chance = run(store, FlagConfig())[0].signals["chance"]
    store.add(asked(902, "perhaps it may be so 3"))
    (flag,) = run(store, FlagConfig(worth_a_label=chance))
    assert flag.signals["learned"] == pytest.approx(0.5, abs=0.02)


def test_the_same_labels_give_the_same_flagger_and_a_worse_one_does_not_replace_it(
    store: Store,
) -> None:
    made = fill(store)
    first = train(store, FlagConfig(), None).learned
    again = train(store, FlagConfig(), None)
    assert again.learned == first and again.difference is None
    # labels turn into noise: what can be learned of them now is worse than what was known
    chance = np.random.default_rng(0)
    for i in range(200, 240):
        one = asked(i, "perhaps it may be so 1" if i % 2 == 0 else "it is the great river 2")
        store.add(one, label(one, *((0, 1) if chance.random() < 0.5 else (1, 0))))
    done = train(store, FlagConfig(), None)
    assert done.difference is not None and done.learned is not None
    assert done.is_used == (done.difference.high >= 0)
    now = current(store)
    assert now is not None and now.id == (done.learned if done.is_used else first).id  # type: ignore[union-attr]
    assert len(made) == 100


def test_it_is_learned_again_only_after_so_many_more_labels(store: Store) -> None:
    fill(store, 80)
    assert retrain(store, FlagConfig(), lexical) is None, "off by default"
    config = FlagConfig(retrain_every=30)
    assert retrain(store, config, lexical) is not None
    fill(store, 20, start=100)
    assert retrain(store, config, lexical) is None
    fill(store, 10, start=200)
    assert retrain(store, config, lexical) is not None


def test_another_embedder_or_a_damaged_file_is_refused(store: Store) -> None:
    fill(store, 80)
    train(store, FlagConfig(), None)
    path = store.folder / "flagger" / "current.json"
    told = json.loads(path.read_text())
    store.add(asked(901, "perhaps"))
    path.write_text(json.dumps(told | {"embedder": "sentence:other:1234"}))
    with pytest.raises(ConfigError, match="embedder"):
        run(store, FlagConfig(), Parts(embedder=lexical))
    older = json.dumps(told | {"columns": told["columns"][:-1]})
    for damaged in ("{", older):
        path.write_text(damaged)
        with pytest.raises(DataError, match="trueup flag train"):
            run(store, FlagConfig())
        assert store.count(Flag) == 0
    assert train(store, FlagConfig(), None).is_used, "which is what the error says to do"
    assert len(run(store, FlagConfig())) == 81


# --- a language model ---------------------------------------------------------------------------


def test_a_language_model_is_asked_within_its_budget_and_once(store: Store) -> None:
    store.add(*(asked(n, f"It is river {n}.") for n in range(6)))
    with running(ScriptedJudge(accuracy=1.0)) as url:
        config = FlagConfig(llm_budget=4, endpoint=EndpointConfig(base_url=url))
        flags = run(store, config)
    told = [f.signals["llm"] for f in flags if "llm" in f.signals]
    assert len(told) == 4 and all(0 <= value <= 1 for value in told)
    assert flags.notes == {}


def test_one_that_is_down_stops_nothing_and_is_counted(store: Store) -> None:
    store.add(*(asked(n, f"It is river {n}.") for n in range(3)))
    down = EndpointConfig(base_url="http://127.0.0.1:9/v1", max_retries=0, timeout_s=2)
    flags = run(store, FlagConfig(llm_budget=10, endpoint=down))
    assert len(flags) == 3 and store.count(Flag) == 3
    assert list(flags.notes.values()) == [3]


# --- selection ----------------------------------------------------------------------------------


def test_the_slice_is_a_share_of_all_the_same_each_time() -> None:
    ids = [f"interaction_{n}" for n in range(20_000)]
    drawn = [is_drawn(one, 0.05) for one in ids]
    assert np.mean(drawn) == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 20_000) ** 0.5)
    assert drawn == [is_drawn(one, 0.05) for one in ids]
    assert all(is_drawn(one, 0.2) for one, was in zip(ids, drawn, strict=True) if was)
    assert not any(is_drawn(one, 0) for one in ids) and all(is_drawn(one, 1) for one in ids)


def test_each_flag_says_why_it_was_selected_and_with_what_chance(store: Store) -> None:
    store.add(*(asked(n, f"It is river {n}.") for n in range(40)), asked(99, ""))
    select = SelectConfig(random=0.2, uncertain=0.05, diverse=0.05)
    flags = run(store, FlagConfig(select=select), Parts(embedder=lexical))
    why = {
        name: [f for f in flags if name in f.reasons] for name in ("random", "uncertain", "diverse")
    }
    assert 2 <= len(why["random"]) <= 16 and len(why["uncertain"]) == len(why["diverse"]) == 2
    assert all(f.raised for group in why.values() for f in group)
    assert all(f.signals[SLICE] == 0.2 for f in why["random"])
    alone = [f for f in flags if f.reasons == ("random",)]
    assert alone and all(f.signals[INCLUSION] == 0.2 for f in alone)
    assert all(f.signals[INCLUSION] == 1 for f in why["uncertain"])
    assert all(f.score < 0.5 for f in alone), "selected, not weak"


def test_the_furthest_point_comes_first() -> None:
    angles = np.array([0.0, 0.1, 1.5, 3.0, 3.1])
    vectors = np.column_stack([np.cos(angles), np.sin(angles)])
    assert farthest(vectors, [0], {1, 2, 3, 4}, 2) == [4, 2]
    assert farthest(vectors, [], {1}, 3) == [1]


@pytest.mark.parametrize("num_taken", [0, 1, 300])
def test_the_furthest_points_are_those_of_the_slow_version(num_taken: int) -> None:
    vectors = np.random.default_rng(num_taken).normal(size=(700, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    taken, free, picked = list(range(num_taken)), set(range(num_taken, 690)), []
    for _ in range(20):
        far = [
            (min((1 - vectors[n] @ vectors[t] for t in [*taken, *picked]), default=9.0), -n)
            for n in free.difference(picked)
        ]
        picked.append(-max(far)[1])
    assert farthest(vectors, taken, free, 20) == picked


def test_the_share_of_weak_answers_is_that_of_all_traffic_whatever_was_flagged(
    store: Store,
) -> None:
    """A quarter is weak; flagged and labelled are mostly weak ones, and the slice is not fooled."""
    traffic = [asked(n, "" if n % 4 == 0 else f"It is river {n}.") for n in range(600)]
    store.add(*traffic)
    flags = run(store, FlagConfig(select=SelectConfig(random=0.3)))
    by_id = {one.id: one for one in traffic}
    for flag in (f for f in flags if f.raised):
        one = by_id[flag.interaction_id]
        store.add(label(one, *((0, 1) if not one.completion.text else (1, 0))))
    share, labelled, drawn = weak_share(store)
    assert labelled == drawn and share is not None
    assert share.low < 0.25 < share.high and share.high - share.low < 0.16
    naive = np.mean([not by_id[f.interaction_id].completion.text for f in flags if f.raised])
    assert naive > share.high


def test_thumbs_have_no_part_in_the_share_since_who_is_content_is_silent(store: Store) -> None:
    traffic = [asked(n, f"It is river {n}.") for n in range(20)]
    store.add(*traffic)
    run(store, FlagConfig(select=SelectConfig(random=1.0)))
    store.add(*(Feedback(interaction_id=one.id, rating=-1) for one in traffic[:5]))
    assert weak_share(store) == (None, 0, 20)
    store.add(label(traffic[9], 1, 0))
    share, labelled, _ = weak_share(store)
    assert share is not None and (share.estimate, labelled) == (0.0, 1)


def test_what_a_reviewer_mended_is_no_weak_answer_for_that(store: Store) -> None:
    one = asked(1, "It is the Rhine")
    edit = Label(
        prompt=one.prompt,
        candidates=(Completion(text="It is the Rhine."), one.completion),
        scores=(1.0, 0.0),
        annotator="ann",
        annotator_kind="human",
        interaction_id=one.id,
        source="review:edit",
    )
    store.add(one, edit)
    assert truths(store) == {}
