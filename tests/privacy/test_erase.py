"""Erased is erased: no byte of it is left in the folder or in Postgres's files, lineage stays
whole, and what was stopped is finished.

Each text has a word of its own, which the test then looks for in every file, as UTF-8 and as JSON
would escape it.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from trueup.errors import RecordNotFound, StorageError
from trueup.privacy import PrivacyConfig, Scrubber
from trueup.privacy.erase import Erasure, erase_older, erase_user, resume, retain
from trueup.privacy.needles import Needles
from trueup.privacy.pseudonyms import Pseudonyms
from trueup.privacy.trail import entries, first_broken
from trueup.records import (
    Checkpoint,
    Completion,
    Dataset,
    Feedback,
    Flag,
    GuardReport,
    Interaction,
    Label,
    Message,
    Messages,
    PreferencePair,
    Record,
    Release,
    ReviewTask,
    SampleSet,
    Sampling,
    ToolCall,
    TrainingRun,
    Verdict,
)
from trueup.store import Store
from trueup.store.tables import ERASED, VERDICTS


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def store(tmp_path: Path, url: str | None) -> Iterator[Store]:
    opened = Store(tmp_path / ".trueup", url=url)
    yield opened
    opened.close()


def asked(words: str) -> Messages:
    return (
        Message(role="system", content="You are a helpful assistant of the company."),
        Message(role="user", content=f"My secret is {words}, what do you say to that?"),
    )


def interaction(user: str, words: str, number: int = 0, **fields: str) -> Interaction:
    return Interaction(
        prompt=asked(words),
        completion=Completion(text=f"I see, {words} answered {number}."),
        source="gateway",
        request_id=f"{user}-{number}",
        user=user,
        **fields,
    )


def but_samples(records: list[Record]) -> list[Record]:
    """Answers drawn outside of traffic go, too, and may be drawn again."""
    return [one for one in records if not isinstance(one, SampleSet)]


def everything_from(one: Interaction, words: str) -> list[Record]:
    """All that people and judges make of an interaction, up to the pair; each with the words."""
    better = Completion(text=f"Better {words}.")
    task = ReviewTask(prompt=one.prompt, candidates=(better, one.completion), interaction_id=one.id)
    vote = Label(
        prompt=one.prompt, candidates=task.candidates, scores=(1, 0), annotator="ann",
        annotator_kind="human", interaction_id=one.id, task_id=task.id, comment=f"for {words}",
    )  # fmt: skip
    settled = vote.model_copy(update={"vote_ids": (vote.id,), "id": ""})
    settled = Label.model_validate(settled.model_dump())
    pair = PreferencePair(
        prompt=one.prompt, chosen=better, rejected=one.completion, margin=1,
        label_ids=(settled.id,),
    )  # fmt: skip
    return [
        one,
        Feedback(interaction_id=one.id, edit=f"Edit {words}", comment=f"Comment {words}"),
        Flag(interaction_id=one.id, flagger="f", score=1, raised=True),
        task,
        vote,
        settled,
        pair,
        SampleSet(
            prompt=one.prompt, completions=(Completion(text=f"Drawn {words}"),), weights="w",
            sampling=Sampling(),
        ),
    ]  # fmt: skip


def trained_on(*pairs: str, quoting: str = "") -> list[Record]:
    dataset = Dataset(pair_ids=pairs, source="loop")
    run = TrainingRun(
        dataset_id=dataset.id, method="dpo", config={}, base_weights="b", start_weights="b",
        ref_weights="b", template="t",
    )  # fmt: skip
    checkpoint = Checkpoint(run_id=run.id, path="checkpoints/w1", weights="w1", base_weights="b")
    report = GuardReport(
        checkpoint_id=checkpoint.id, champion="b",
        verdict=Verdict(gate="guard", status="passed", reason="fine"),
        details={"examples": [{"prompt": quoting, "n": 1}, {"prompt": "harmless words"}]},
    )  # fmt: skip
    return [dataset, run, checkpoint, report]


def pair_of(records: list[Record]) -> str:
    return next(one.id for one in records if isinstance(one, PreferencePair))


ANN, BOB = "zanzibarquark", "mimosapretzel"
"""Words that stand nowhere else."""


@pytest.fixture
def told(store: Store) -> dict[str, list[Record]]:
    """Ann's and Bob's traffic, a model that learned from both, and files that show Ann's words."""
    ann = everything_from(interaction("ann", ANN), ANN)
    bob = everything_from(interaction("bob", BOB), BOB)
    model = trained_on(pair_of(ann), pair_of(bob), quoting=asked(ANN)[1].content[:60])
    store.add_all([*ann, *bob, *model])
    store.release(Release(action="first", weights="w1", checkpoint_id=model[2].id))
    store.remember({"key": f"because of {ANN}"})
    run = model[1].id
    for name, what in {
        "reports/page.html": f"<p>{ANN}",
        f"runs/{run}/rollouts.jsonl": ANN,
        "runs/run_other/state.txt": "other",
        "cache/logprobs.sqlite": ANN,
        "checkpoints/w1/card.json": json.dumps({"run": run, "seen": asked(ANN)[1].content}),
    }.items():
        file = store.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(what)
    return {"ann": ann, "bob": bob, "model": model}


def files_with(folder: Path, words: str) -> list[str]:
    """Every file below a folder that holds these bytes."""
    wanted = words.encode()
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [str(file.relative_to(folder)) for file in files if wanted in file.read_bytes()]


# --- users ----------------------------------------------------------------------------------------


def test_a_users_traffic_goes_and_everybody_elses_stays(
    store: Store, told: dict[str, list[Record]]
) -> None:
    done = erase_user(store, "ann", who="test")
    for one in told["ann"]:
        assert store.get_all(type(one), [one.id]) == [], one.tag
    for one in [*told["bob"], *told["model"][:3]]:
        assert store.get(type(one), one.id) == one
    assert done.removed == {
        "interaction": 1, "feedback": 1, "flag": 1, "task": 1, "label": 2, "pair": 1, "samples": 1,
    }  # fmt: skip
    dataset, run, checkpoint, report = told["model"]
    assert (done.datasets, done.checkpoints) == ((dataset.id,), (checkpoint.id,))
    assert len(done.releases) == 1 and done.redacted == {"guard": 1}
    details = store.get(GuardReport, report.id).details
    assert details["examples"] == [{"prompt": "[erased]", "n": 1}, {"prompt": "harmless words"}]
    # lineage still says what the model was made from, and why that cannot be shown
    assert store.get(Dataset, dataset.id).pair_ids == (pair_of(told["ann"]), pair_of(told["bob"]))
    assert [one.id for one in store.parents(dataset.id)] == [pair_of(told["bob"])]
    with pytest.raises(RecordNotFound, match=r"This pair was erased.*audit-trail"):
        store.get(PreferencePair, pair_of(told["ann"]))
    assert run.id in {one.id for one in store.children(dataset.id)}


def test_no_byte_of_it_is_left_in_the_projects_folder(
    store: Store, told: dict[str, list[Record]]
) -> None:
    assert files_with(store.folder, ANN) != []
    erase_user(store, "ann")
    assert files_with(store.folder, ANN) == []
    card = json.loads((store.folder / "checkpoints/w1/card.json").read_text())
    assert card["seen"] == "[erased]" and card["run"] == told["model"][1].id
    assert (store.folder / "runs/run_other/state.txt").read_text() == "other"
    if not store.is_postgres:
        assert files_with(store.folder, BOB) != []


def test_no_byte_of_it_is_left_in_postgress_files(
    tmp_path: Path, postgres_url: str, postgres_server: str
) -> None:
    """But in the write-ahead log, which the server keeps until it recycles it; where it deletes
    old segments instead, they are gone from there, too."""
    data = Path(postgres_server.partition("host=")[2])
    store = Store(tmp_path, url=postgres_url)
    store.add_all(everything_from(interaction("ann", ANN), ANN))
    store.add_all(everything_from(interaction("bob", BOB), BOB))
    big = ANN + os.urandom(200_000).hex()  # too long for a row: it goes to a table beside
    store.add(interaction("ann", big, 2))
    with store.cleaning() as connection:
        connection.execute(text("ANALYZE"))
        connection.execute(text("CHECKPOINT"))
    assert [name for name in files_with(data, ANN) if name.startswith("base/")] != []
    erase_user(store, "ann")
    with store.cleaning() as connection:
        connection.execute(text("CHECKPOINT"))
    left = [name for name in files_with(data, ANN) if not name.startswith("pg_wal/")]
    assert left == []
    with store.cleaning() as connection:
        connection.execute(text("ALTER SYSTEM SET wal_recycle = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
        for _ in range(2):
            connection.execute(text("SELECT pg_switch_wal()"))
            connection.execute(text("CHECKPOINT"))
    assert files_with(data, ANN) == []
    assert [name for name in files_with(data, BOB) if name.startswith("base/")] != []
    store.close()


def test_erased_bytes_leave_a_file_that_was_written_to_and_fro(tmp_path: Path) -> None:
    """Rows of all sizes, many users, rounds of adding and erasing: pages split, merge and move."""
    store, chance = Store(tmp_path), random.Random(0)
    for turn in range(4):
        store.add_all(
            interaction(
                f"user {turn}.{n % 7}", f"w{turn}x{n % 7}y " + "pad" * chance.randrange(900), n
            )
            for n in range(turn * 300, turn * 300 + 300)
        )
        erase_user(store, f"user {turn}.{turn}")
        for before in range(turn + 1):
            assert files_with(tmp_path, f"w{before}x{before}y ") == []
            assert files_with(tmp_path, f"user {before}.{before}") == []
        assert files_with(tmp_path, f"w{turn}x6y ") == ["store.sqlite"]
    store.close()


def test_a_dry_run_says_the_same_and_does_nothing(
    store: Store, told: dict[str, list[Record]]
) -> None:
    would = erase_user(store, "ann", dry_run=True)
    assert store.count(Interaction) == 2 and entries(store) == []
    assert (store.folder / "reports/page.html").exists()
    did = erase_user(store, "ann")
    assert would._replace(id=did.id, redacted=did.redacted) == did


def test_a_user_nobody_knows_is_nothing_to_erase(
    store: Store, told: dict[str, list[Record]]
) -> None:
    assert erase_user(store, "eve", who="dpo") == Erasure("", {}, {}, (), (), ())
    assert erase_user(store, "' OR 1=1 --").removed == {}
    assert erase_user(store, "eve", dry_run=True).removed == {}
    assert erase_older(store, 90).removed == {}
    assert store.count(Interaction) == 2
    first, _ = entries(store)  # that they were asked for, and looked for
    assert (first.action, first.who, first.details["removed"]) == ("erase", "dpo", {})
    assert "eve" not in str(first)


def test_erased_records_do_not_come_back_and_late_ones_do_not_attach(
    store: Store, told: dict[str, list[Record]]
) -> None:
    erase_user(store, "ann")
    assert store.add_all(but_samples(told["ann"])) == 0
    late = Feedback(interaction_id=told["ann"][0].id, comment=f"late {ANN}")
    assert store.add(late) == 0
    assert store.count(Feedback) == 1
    assert store.add(interaction("ann", "something new", 9)) == 1, "the user may come again"


def test_a_data_set_nobody_trained_on_goes_and_its_other_pairs_are_free(store: Store) -> None:
    ann = everything_from(interaction("ann", ANN), ANN)
    bob = everything_from(interaction("bob", BOB), BOB)
    dataset, run, *_ = trained_on(pair_of(ann), pair_of(bob))
    store.add_all([*ann, *bob, dataset, run])
    done = erase_user(store, "ann")
    assert done.removed["dataset"] == done.removed["run"] == 1
    assert (done.datasets, done.checkpoints) == ((), ())
    assert store.count(Dataset) == store.count(TrainingRun) == 0
    assert store.used(Dataset) == set()


def test_prompts_in_a_data_set_that_was_trained_on_are_blotted(store: Store) -> None:
    one = interaction("ann", ANN)
    dataset = Dataset(
        pair_ids=(), prompts=(one.prompt, asked(BOB)), interaction_ids=(one.id,), source="loop"
    )
    _, run, _, _ = trained_on()
    run = TrainingRun.model_validate({**run.model_dump(), "id": "", "dataset_id": dataset.id})
    made = Checkpoint(run_id=run.id, path="c", weights="w", base_weights="b")
    store.add(one, dataset, run, made)
    done = erase_user(store, "ann")
    assert done.checkpoints == (made.id,)
    kept = store.get(Dataset, dataset.id)
    assert kept.prompts[0][1].content == "[erased]" and kept.prompts[1] == asked(BOB)
    assert kept.id != kept.expected_id(), "training on it again is refused: it is not what it was"


def trained_on_prompts(*asked: tuple[Interaction | None, Messages]) -> list[Record]:
    """A data set of prompts, and what was trained on it."""
    dataset = Dataset(
        pair_ids=(),
        prompts=tuple(prompt for _, prompt in asked),
        interaction_ids=tuple(one.id for one, _ in asked if one),
        source="loop",
    )
    _, run, _, report = trained_on()
    run = TrainingRun.model_validate({**run.model_dump(), "id": "", "dataset_id": dataset.id})
    made = Checkpoint(run_id=run.id, path="c", weights="w", base_weights="b")
    return [dataset, run, made, report.model_copy(update={"checkpoint_id": made.id})]


def test_short_turns_and_what_the_system_said_of_the_user_go_from_kept_data_sets(
    store: Store,
) -> None:
    system = f"The user is {ANN}, and ill."
    prompt = (
        Message(role="system", content=system),
        Message(role="user", content="PIN 77?"),
        Message(role="assistant", content="Yes 77."),
        Message(role="user", content="ok"),
    )
    one = Interaction(prompt=prompt, completion=Completion(text="ok"), source="x", user="ann")
    with_others_rules = (Message(role="system", content=f"Be brief. {BOB}"), *prompt[1:])
    bobs = (Message(role="system", content="Speak kindly."), Message(role="user", content="ok"))
    dataset, *rest = trained_on_prompts((one, prompt), (None, with_others_rules), (None, bobs))
    store.add_all([one, dataset, *rest])
    erase_user(store, "ann")
    kept = store.get(Dataset, dataset.id).prompts
    for gone in kept[:2]:
        assert [turn.role for turn in gone] == [turn.role for turn in prompt]
        assert {turn.content for turn in gone} == {"[erased]"}
    assert kept[2] == bobs, "somebody else's, which ends alike"
    assert files_with(store.folder, ANN) == []


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_system_prompt_is_the_users_own_where_no_other_traffic_has_it(
    store: Store, is_shared: bool
) -> None:
    system = Message(role="system", content=f"You speak to {ANN}, who is new here.")
    alike = Message(role="system", content=f"{system.content[:40]} And friendly.")
    said = Message(role="user", content="What do I do now?")
    mine = Interaction(
        prompt=(system, said), completion=Completion(text="x"), source="x", user="ann"
    )
    other = Interaction(
        prompt=(system if is_shared else alike, said),
        completion=Completion(text="y"), source="x", user="bob",
    )  # fmt: skip
    quoting = {"rules": system.content, "rules of others": alike.content}
    _, _, _, report = trained_on()
    report = GuardReport.model_validate({**report.model_dump(), "id": "", "details": quoting})
    store.add(mine, other, report)
    erase_user(store, "ann")
    shown = store.get(GuardReport, report.id).details
    assert shown["rules"] == (system.content if is_shared else "[erased]")
    assert shown["rules of others"] == alike.content


def test_names_of_fields_are_blotted_and_none_is_lost(store: Store) -> None:
    ann, again = (asked(f"{ANN} {n} and so on and so on")[1].content for n in range(2))
    by_prompt = {ann: 1.0, "[erased]": 0.5, "harmless words": 2.0, f"{again} and more": 3.0}
    _, _, _, report = trained_on()
    details = {"by_prompt": by_prompt}
    report = GuardReport.model_validate({**report.model_dump(), "id": "", "details": details})
    store.add_all(
        [report, *(interaction("ann", f"{ANN} {n} and so on and so on", n) for n in range(2))]
    )
    assert erase_user(store, "ann").redacted == {"guard": 1}
    shown = store.get(GuardReport, report.id).details["by_prompt"]
    assert shown == {"[erased]": 0.5, "[erased] 2": 1.0, "harmless words": 2.0, "[erased] 3": 3.0}


def test_arguments_of_calls_in_a_conversation_are_looked_for_too(store: Store) -> None:
    call = ToolCall(name="find", arguments=f'{{"name": "{ANN}", "since": 2020}}')
    turns = (
        Message(role="user", content="Look."),
        Message(role="assistant", content="", tool_calls=(call,)),
    )
    one = Interaction(prompt=turns, completion=Completion(text="x"), source="x", user="ann")
    _, _, _, report = trained_on()
    details = {"called": call.arguments}
    report = GuardReport.model_validate({**report.model_dump(), "id": "", "details": details})
    store.add(one, report)
    erase_user(store, "ann")
    assert store.get(GuardReport, report.id).details == {"called": "[erased]"}


def test_answers_drawn_to_prompts_that_repeat_a_turn_go(store: Store) -> None:
    one = interaction("ann", ANN)
    user = one.prompt[1]
    hi = Interaction(
        prompt=(Message(role="user", content="hi"),), completion=Completion(text="x"), source="x",
        user="ann",
    )  # fmt: skip
    rules = Message(role="system", content="Be brief.")
    more = Message(role="user", content="And then?")
    theirs = [
        (rules, user),
        (user, Message(role="assistant", content="Well."), more),
        (rules, Message(role="user", content="hi")),
        (Message(role="user", content="hi"), Message(role="assistant", content="hi!"), more),
    ]
    others = [(rules, more), asked(BOB), (Message(role="user", content="hi there"),)]
    sets = [
        SampleSet(
            prompt=prompt, completions=(Completion(text="Drawn."),), weights="w",
            sampling=Sampling(),
        )
        for prompt in (*theirs, *others)
    ]  # fmt: skip
    store.add_all([one, hi, *sets])
    assert erase_user(store, "ann").removed["samples"] == len(theirs)
    assert [one.prompt for one in store.all(SampleSet)] == others
    assert files_with(store.folder, ANN) == []


def test_labels_of_rounds_go_with_the_prompt_they_answer(store: Store) -> None:
    """They name no interaction: the champion answered the prompts alone. Somebody else's labels of
    the same words stay."""
    mine, other = interaction("ann", "plum"), interaction("bob", "plum", 1)
    drawn = (Completion(text="Drawn: plum, plum."), Completion(text="Nothing."))
    fields = {"prompt": mine.prompt, "candidates": drawn, "scores": (1.0, 0.0)}
    of_round = Label(**fields, annotator="code:x/1", annotator_kind="code", source="rounds:1")
    of_bob = Label(**fields, annotator="eva", annotator_kind="human", interaction_id=other.id)
    pair = PreferencePair(
        prompt=mine.prompt, chosen=drawn[0], rejected=drawn[1], margin=1.0, label_ids=(of_round.id,)
    )
    samples = SampleSet(prompt=mine.prompt, completions=drawn, weights="w", sampling=Sampling())
    store.add(mine, other, of_round, of_bob, pair, samples)
    erase_user(store, "ann")
    assert store.all(Label) == [of_bob] and store.count(PreferencePair) == 0
    assert store.add(of_round) == 0, "erased is erased"
    assert store.add(samples) == 1, "a new draw is not what was erased"


def test_tenants_are_told_apart(store: Store) -> None:
    for tenant in ("north", "south"):
        store.add(interaction("ann", tenant, tenant=tenant))
    assert erase_user(store, "ann", tenant="north").removed == {"interaction": 1}
    assert [i.tenant for i in store.all(Interaction)] == ["south"]
    assert erase_user(store, "ann").removed == {"interaction": 1}


# --- pseudonyms -----------------------------------------------------------------------------------


def test_users_are_kept_as_keyed_hashes_and_found_by_their_own_id(store: Store) -> None:
    scrub = Scrubber(PrivacyConfig(), store)
    for tenant in (None, "north", "south"):
        fields = {"tenant": tenant} if tenant else {}
        store.add(*(scrub(interaction("ann", f"{n}", n, **fields)) for n in range(2)))
    kept = store.all(Interaction)
    names = {one.user for one in kept}
    assert len(names) == 3, "one a tenant, the same within it"
    assert not any("ann" in (one.user or "") for one in kept)
    assert store.all(Interaction, user=kept[0].user) == kept[:2]
    assert scrub(kept[0]) is kept[0], "a pseudonym stays as it is"
    assert erase_user(store, "ann", tenant="south").removed["interaction"] == 2
    assert erase_user(store, "ann").removed["interaction"] == 4


def test_keys_are_random_stay_and_two_processes_agree_on_them(
    store: Store, tmp_path: Path, url: str | None
) -> None:
    first = Pseudonyms(store).of("ann")
    other = Store(store.folder, url=url)
    assert Pseudonyms(other).of("ann") == Pseudonyms(store).of("ann") == first
    other.close()
    elsewhere = Store(tmp_path / "elsewhere")
    assert Pseudonyms(elsewhere).of("ann") != first
    elsewhere.close()


def test_pseudonyms_can_be_left_off(store: Store) -> None:
    one = interaction("ann", "plain")
    assert Scrubber(PrivacyConfig(pseudonyms=False), store)(one) is one


# --- age ------------------------------------------------------------------------------------------


def test_traffic_older_than_its_time_goes(store: Store) -> None:
    old = Interaction.model_validate(
        {**interaction("ann", ANN).model_dump(), "created_at": "2020-01-01T00:00:00.000000+00:00"}
    )
    store.add_all(everything_from(old, ANN))
    store.add_all(everything_from(interaction("bob", BOB), BOB))
    assert retain(store, PrivacyConfig()) is None
    assert erase_older(store, 90, dry_run=True).removed["interaction"] == 1
    done = retain(store, PrivacyConfig(retain_days=90))
    assert done and done.removed["interaction"] == 1
    assert {one.user for one in store.all(Interaction)} == {"bob"}
    assert entries(store)[-1].action == "retention"


# --- stopped in the middle ------------------------------------------------------------------------


def test_what_was_stopped_before_the_files_is_finished_by_the_next_call(
    store: Store, told: dict[str, list[Record]]
) -> None:
    def broken(ids: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        erase_user(store, "ann", forget=broken)
    assert store.count(Interaction) == 1
    forgotten: list[str] = []
    assert erase_user(store, "ann", forget=forgotten.extend) == Erasure("", {}, {}, (), (), ())
    assert sorted(forgotten) == sorted(one.id for one in but_samples(told["ann"]))
    assert files_with(store.folder, ANN) == []
    assert resume(store) == 0, "finished once is finished"
    assert [one.details["removed"] == {} for one in entries(store)] == [False, True]


KILLED = """
import os, signal, sys
from trueup.privacy import erase
from trueup.store import Store
step = getattr(erase, sys.argv[3])
def stop(*args, **kwargs):
    if sys.argv[4] == "after":
        step(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(erase, sys.argv[3], stop)
erase.erase_user(Store(sys.argv[1], url=sys.argv[2] or None), "ann")
"""


@pytest.mark.parametrize(
    ("step", "when"),
    [
        ("_blot_cards", "after"),
        ("_remove", "after"),
        ("_finish", "before"),
        ("_remove_files", "after"),
        ("_free_space", "after"),
    ],
)
def test_kill_9_anywhere_is_finished_by_the_next_call(
    store: Store, url: str | None, told: dict[str, list[Record]], step: str, when: str
) -> None:
    command = [sys.executable, "-c", KILLED, str(store.folder), url or "", step, when]
    died = subprocess.run(command, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    erase_user(store, "ann")
    assert store.count(Interaction) == 1
    assert files_with(store.folder, ANN) == []
    assert resume(store) == 0
    took = [one for one in entries(store) if one.details["removed"]]
    assert len(took) == 1 and first_broken(store) is None


def test_a_reader_that_stays_is_named_and_the_next_call_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trueup.privacy.erase.READERS_WAIT_S", 0.2)
    monkeypatch.setattr("trueup.store.engine.LOCK_TIMEOUT_S", 0.2)
    store, reader = Store(tmp_path), Store(tmp_path)
    store.add_all(interaction("ann", ANN, n) for n in range(3))
    reading = reader.each(Interaction)
    next(reading)
    with pytest.raises(StorageError, match="somebody is reading"):
        erase_user(store, "ann")
    reading.close()  # type: ignore[attr-defined]
    assert resume(store) == 1
    assert files_with(tmp_path, ANN) == []
    store.close()
    reader.close()


def test_files_that_cannot_be_removed_are_a_storage_error(
    store: Store, told: dict[str, list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.folder / "reports/page.html").unlink()
    (store.folder / "reports").rmdir()
    (store.folder / "reports").write_text("a file where a folder was")
    with pytest.raises(StorageError, match="goes on from here"):
        erase_user(store, "ann")
    (store.folder / "reports").unlink()
    assert resume(store) == 1


# --- several machines -----------------------------------------------------------------------------


def test_each_machine_of_a_shared_store_clears_its_own_folder(
    tmp_path: Path, postgres_url: str
) -> None:
    """Tombstones are in the store, so neither machine brings anything back; files are beside it."""
    here, there = (Store(tmp_path / name, url=postgres_url) for name in ("here", "there"))
    ann = everything_from(interaction("ann", ANN), ANN)
    model = trained_on(pair_of(ann))
    quoted = asked(ANN)[1].content
    metrics = {"worst": quoted, "loss": 0.5}
    made = Checkpoint.model_validate({**model[2].model_dump(), "id": "", "metrics": metrics})
    run = model[1]
    here.add_all([*ann, *model[:2], made])
    card = {"run": run.model_dump(mode="json"), "metrics": metrics, "kind": "policy"}
    for name, what in {
        "reports/page.html": ANN,
        f"runs/{run.id}/rollouts.jsonl": ANN,
        "cache/logprobs.sqlite": ANN,
        "checkpoints/w1/card.json": json.dumps(card),
    }.items():
        file = there.folder / name
        file.parent.mkdir(parents=True)
        file.write_text(what)
    forgotten: list[str] = []
    erase_user(here, "ann")
    assert there.add_all(but_samples(ann)) == 0, "the other machine knows what is gone"
    assert files_with(there.folder, ANN) != []
    assert retain(there, PrivacyConfig(), forgotten.extend) is None, "as each turn begins"
    assert files_with(there.folder, ANN) == []
    assert sorted(forgotten) == sorted(one.id for one in but_samples(ann))
    kept = json.loads((there.folder / "checkpoints/w1/card.json").read_text())
    assert kept == card | {"metrics": {"worst": "[erased]", "loss": 0.5}}
    assert resume(there) == resume(here) == 0, "once is enough"
    fresh = Store(tmp_path / "fresh", url=postgres_url)
    assert resume(fresh) == 1 and resume(fresh) == 0
    for one in (here, there, fresh):
        one.close()


# --- what else quotes it --------------------------------------------------------------------------


def test_texts_are_found_whole_and_by_their_beginning() -> None:
    long = "The quick brown fox jumps over the lazy dog"
    needles = Needles([long, "short one", "hi"])
    assert needles.are_in(f"he said: {long[:30]}…") and needles.are_in(" short one ")
    assert not needles.are_in("hi") and not needles.are_in("a short one here")
    assert not needles.are_in(long[5:])
    assert needles.blotted({"a": ["x", {"b": long}], "n": 1}) == {
        "a": ["x", {"b": "[erased]"}],
        "n": 1,
    }
    same = {"a": ["x"]}
    assert needles.blotted(same) is same


def test_verdicts_are_forgotten_and_only_ids_are_left(
    store: Store, told: dict[str, list[Record]]
) -> None:
    erase_user(store, "ann")
    with store.reading() as connection:
        assert connection.execute(select(func.count()).select_from(VERDICTS)).scalar() == 0
        left = set(connection.execute(select(ERASED.c.id)).scalars())
    assert left == {one.id for one in but_samples(told["ann"])}
