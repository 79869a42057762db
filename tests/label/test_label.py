"""Labels: what the judge cannot decide readably is skipped, up to a share; the rest is kept.

The champion is a tiny random model, the judge a scripted one behind a real socket.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from trueup import pair
from trueup.errors import UnreadableVerdict, UpstreamError
from trueup.judges import EndpointConfig
from trueup.judges.scripted import ScriptedJudge, running
from trueup.label import LabelConfig, run
from trueup.label.run import BATCH
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.models.tiny import save_tiny
from trueup.records import Completion, Feedback, Flag, Interaction, Label, Message, ToolCall
from trueup.store import Store

ODD = "poem"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(save_tiny(tmp_path_factory.mktemp("tiny"), seed=0, hidden_size=32))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def speechless() -> Iterator[str]:
    """The address of a judge that decides nothing that has a poem in it."""
    with running(ScriptedJudge(accuracy=1, speechless_about=ODD)) as base_url:
        yield base_url


def ask(store: Store, num: int, *, odd: range = range(0)) -> list[Interaction]:
    """Flagged interactions, the worst first; the odd ones ask for a poem."""
    asked = []
    for n in range(num):
        content = f"Write a {ODD if n in odd else 'note'} about charger {n}."
        one = Interaction(
            prompt=(Message(role="user", content=content),),
            completion=Completion(text=f"The charger {n} is a charger."),
            source="gateway",
        )
        flag = Flag(interaction_id=one.id, flagger="signals/1", score=1 - n / 1000, raised=True)
        store.add(one, flag)
        asked.append(one)
    return asked


def by(base_url: str, **settings: object) -> LabelConfig:
    endpoint = EndpointConfig(base_url=base_url, max_retries=1)
    return LabelConfig.model_validate(
        {"judge": "llm", "endpoint": endpoint, "num_candidates": 2, "max_tokens": 4, **settings}
    )


def labelled(store: Store) -> list[str | None]:
    return [label.interaction_id for label in store.each(Label)]


# --- unreadable verdicts --------------------------------------------------------------------------


def test_one_unreadable_verdict_is_skipped_and_the_rest_are_labelled(
    store: Store, backbone: Backbone, speechless: str
) -> None:
    first, odd, last = ask(store, 3, odd=range(1, 2))
    champion = StoredModel.serving(store, backbone)
    made = run(store, by(speechless), champion)
    assert [label.interaction_id for label in made] == labelled(store) == [first.id, last.id]
    assert run(store, by(speechless), champion) == [], "asked about again, and skipped again"
    with running(ScriptedJudge(accuracy=1)) as recovered:
        made = run(store, by(recovered), champion)
    assert [label.interaction_id for label in made] == [odd.id]


def test_too_many_unreadable_verdicts_stop_and_the_labels_so_far_are_kept(
    store: Store, backbone: Backbone, speechless: str
) -> None:
    asked = ask(store, BATCH + 8, odd=range(BATCH + 1, BATCH + 5))
    champion = StoredModel.serving(store, backbone)
    with pytest.raises(UnreadableVerdict, match="unreadable verdict: 'Both answers") as caught:
        run(store, by(speechless), champion)
    assert "labels so far are kept" in caught.value.next
    readable = [one.id for n, one in enumerate(asked) if n not in range(BATCH + 1, BATCH + 5)]
    assert labelled(store) == readable, "of the batch that stopped it, too"
    made = run(store, by(speechless, max_skip_rate=1.0), champion)
    assert made == [] and labelled(store) == readable


def test_labelling_stops_at_the_batch_that_goes_over_and_asks_no_further(
    store: Store, backbone: Backbone, speechless: str
) -> None:
    ask(store, BATCH + 4, odd=range(2, 6))
    with pytest.raises(UnreadableVerdict):
        run(store, by(speechless), StoredModel.serving(store, backbone))
    assert len(labelled(store)) == BATCH - 4


@pytest.mark.parametrize(("num_odd", "is_enough"), [(2, True), (3, False)])
def test_the_share_may_be_reached_and_not_passed(
    store: Store, backbone: Backbone, speechless: str, num_odd: int, is_enough: bool
) -> None:
    ask(store, 4, odd=range(num_odd))
    champion = StoredModel.serving(store, backbone)
    if is_enough:
        assert len(run(store, by(speechless, max_skip_rate=0.5), champion)) == 4 - num_odd
    else:
        with pytest.raises(UnreadableVerdict):
            run(store, by(speechless, max_skip_rate=0.5), champion)
    assert len(labelled(store)) == 4 - num_odd


def test_with_a_share_of_nothing_the_first_one_stops(
    store: Store, backbone: Backbone, speechless: str
) -> None:
    ask(store, 3, odd=range(1, 2))
    with pytest.raises(UnreadableVerdict):
        run(store, by(speechless, max_skip_rate=0.0), StoredModel.serving(store, backbone))
    assert len(labelled(store)) == 2


def test_a_judge_that_fails_is_not_one_that_is_unreadable(store: Store, backbone: Backbone) -> None:
    ask(store, 3)
    champion = StoredModel.serving(store, backbone)
    with running(ScriptedJudge(error_rate=1)) as failing, pytest.raises(UpstreamError) as caught:
        run(store, by(failing, max_skip_rate=1.0), champion)
    assert type(caught.value) is UpstreamError
    assert labelled(store) == []


# --- edits ----------------------------------------------------------------------------------------


def test_an_edit_is_a_label_by_a_person_and_is_written_once(
    store: Store, backbone: Backbone
) -> None:
    edited, same, _ = ask(store, 3)
    store.add(
        Feedback(interaction_id=edited.id, edit="It charges in four hours."),
        Feedback(interaction_id=same.id, edit=f"{same.completion.text}\n"),
    )
    config = LabelConfig(num_candidates=2, max_tokens=4)
    champion = StoredModel.serving(store, backbone)
    assert len(run(store, config, champion)) == 4
    (label,) = store.all(Label, annotator_kind="human")
    assert (label.annotator, label.interaction_id) == ("feedback:edit", edited.id)
    assert [c.text for c in label.candidates] == [
        "It charges in four hours.",
        edited.completion.text,
    ]
    assert label.scores == (1.0, 0.0)
    assert run(store, config, champion) == []


def test_what_broke_off_or_called_tools_is_no_example(store: Store, backbone: Backbone) -> None:
    call = ToolCall(name="weather", arguments="{}")
    (plain,) = ask(store, 1)
    prompt = (Message(role="user", content="Weather?"),)
    others = [
        Interaction(prompt=prompt, completion=Completion(text="Hal"), source="g", error="timeout"),
        Interaction(prompt=prompt, completion=Completion(text="", tool_calls=(call,)), source="g"),
        Interaction(prompt=prompt, completion=Completion(text="A."), source="g", tools=({"a": 1},)),
        Interaction(
            prompt=(*prompt, Message(role="tool", content="Rain.", tool_call_id="1")),
            completion=Completion(text="It rains."),
            source="g",
        ),
    ]
    for one in others:
        store.add(one, Flag(interaction_id=one.id, flagger="f", score=1, raised=True))
        store.add(Feedback(interaction_id=one.id, edit="Better."))
    config = LabelConfig(num_candidates=2, max_tokens=4)
    run(store, config, StoredModel(store, backbone, None, role="champion"))
    assert labelled(store) == [plain.id]
    assert list(pair.traffic_prompts(store, pair.HeldOut([]))) == [plain.prompt]
