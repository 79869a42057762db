"""The test that matters: the whole loop on a tiny model, twice, and everything it must refuse."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from colour_project import COLOURS, asked, settings
from trueup import loop, pair, promote, train
from trueup.errors import ConfigError
from trueup.loop import Turn, turn
from trueup.models import chat
from trueup.models.engine import Engine
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.stored import StoredModel, load_backbone
from trueup.project import Project
from trueup.records import (
    Checkpoint,
    Completion,
    Dataset,
    Interaction,
    Label,
    PreferencePair,
    Release,
    Sampling,
    TrainingRun,
)


def send_traffic(project: Project, week: int) -> None:
    """The champion answers six questions about everything, and the gateway's records are kept."""
    prompts = [
        asked(f"colour of {thing}?" + " " * (6 * week + i)) for thing in COLOURS for i in range(6)
    ]
    champion = project.champion()
    answers = champion.complete(prompts, Sampling(max_tokens=24, seed=week))
    project.store.add_all(
        Interaction(prompt=p, completion=a[0], source="gateway", request_id=f"{week}-{i}")
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
    )


def run_turn(folder: Path, *overrides: str, week: int = 0) -> tuple[Project, Turn]:
    project = Project(folder, overrides)
    send_traffic(project, week)
    return project, turn(project)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    """The live side, in a backbone of its own, following the store's champion."""
    project = Project(folder)
    backbone = load_backbone(project.config.model, folder)
    loop_engine = Engine(backbone, project.store)
    yield loop_engine
    loop_engine.close()


def greedy(engine: Engine) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """What the live side says at temperature 0."""
    answers = [
        engine.submit(asked(f"{thing} is?"), Sampling(temperature=0, max_tokens=24)).answer.result(
            60
        )
        for thing in COLOURS
    ]
    return [(c.token_ids or (), c.logprobs or ()) for one in answers for c in one]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_two_turns_promote_and_the_second_starts_from_the_promoted_champion(folder: Path) -> None:
    project, first = run_turn(folder)
    assert first.verdict.passed, first.verdict
    assert first.checkpoint is not None
    assert first.checkpoint.metrics["last"]["margin"] > first.checkpoint.metrics["first"]["margin"]
    champion = project.store.champion()
    assert champion is not None and champion.weights == first.checkpoint.weights

    # nothing new: pending, with the count and the reason, and nothing is trained again
    idle = turn(project)
    assert idle.verdict.status == "pending"
    assert "0 new pairs of the 12" in idle.verdict.reason
    assert project.store.count(TrainingRun) == 1

    again, second = run_turn(folder, "ab.min_evidence=1.0001", week=1)
    runs = again.store.all(TrainingRun)
    assert [run.start_weights for run in runs] == [
        champion.previous and first.champion,
        champion.weights,
    ]
    assert second.checkpoint is not None
    # served and trained log-probs agree, and only new pairs were used
    identity = second.checkpoint.metrics["identity"]
    assert identity["served_gap"] <= 1e-4
    assert abs(identity["first_loss"] - 0.693147) < 1e-6
    datasets = again.store.all(Dataset)
    assert not set(datasets[0].pair_ids) & set(datasets[1].pair_ids)
    pairs = again.store.get_all(PreferencePair, datasets[1].pair_ids)
    wrote = {c.weights for p in pairs for c in (p.chosen, p.rejected)}
    assert wrote == {champion.weights}


def test_a_turn_on_postgres_promotes_and_the_next_one_is_pending(
    folder: Path, postgres_url: str
) -> None:
    """And traffic that is too old is gone when the turn starts."""
    settings = (f"store.url={postgres_url}", "evaluate.margin=0.9", "privacy.retain_days=30")
    old = Interaction(
        prompt=asked("long ago?"), completion=Completion(text="Yes."), source="gateway",
        created_at="2020-01-01T00:00:00.000000+00:00",
    )  # fmt: skip
    before = Project(folder, settings).store
    before.add(old)
    before.close()
    project, first = run_turn(folder, *settings)
    assert project.store.get_all(Interaction, [old.id]) == []
    assert project.store.is_postgres and not (folder / ".trueup" / "store.sqlite").exists()
    assert first.verdict.passed, first.verdict
    champion = project.store.champion()
    assert first.checkpoint and champion and champion.weights == first.checkpoint.weights
    assert turn(project).verdict.status == "pending"
    assert project.store.count(TrainingRun) == 1
    project.store.close()


def test_rollback_brings_back_files_tokens_and_log_probs(folder: Path, engine: Engine) -> None:
    before = greedy(engine)
    project, done = run_turn(folder)
    assert done.verdict.passed, done.verdict
    promoted = greedy(engine)
    assert promoted != before
    files = bytes_of(folder / "model")
    promote.rollback(project.store)
    after = greedy(engine)
    assert [tokens for tokens, _ in after] == [tokens for tokens, _ in before]
    gaps = [
        abs(a - b)
        for (_, x), (_, y) in zip(after, before, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    assert max(gaps) < 1e-5
    assert bytes_of(folder / "model") == files

    # forward again to a checkpoint: its own files, byte for byte
    assert done.checkpoint is not None
    checkpoint = project.store.folder / done.checkpoint.path
    kept = bytes_of(checkpoint)
    release = project.store.champion()
    assert release is not None and release.action == "rollback"
    project.store.release(Release(
        action="promote", weights=done.checkpoint.weights, checkpoint_id=done.checkpoint.id,
        previous=release.id, reason="by hand",
    ))  # fmt: skip
    assert greedy(engine) == promoted
    assert bytes_of(checkpoint) == kept


def test_swapped_labels_are_refused_by_the_head_to_head(folder: Path) -> None:
    settings(folder, "swapped")
    # the guard would see length and divergence first; here the A/B test has to catch it alone
    overrides = ("guard.max_length_ratio=100", "guard.ask_scorers=none", "evaluate.margin=0.9")
    project, done = run_turn(folder, *overrides)
    assert (done.verdict.gate, done.verdict.status) == ("ab", "refused"), done.verdict
    assert "not shown to be better" in done.verdict.reason
    assert_base_serves(project)


def test_length_padding_is_refused_by_the_guard(folder: Path) -> None:
    settings(folder, "padded")
    project, done = run_turn(folder, "train.epochs=16")
    assert (done.verdict.gate, done.verdict.status) == ("guard", "refused"), done.verdict
    assert "length" in done.verdict.reason
    assert_base_serves(project)


def test_one_canned_answer_is_refused_by_the_guard(folder: Path) -> None:
    project = Project(folder, ("train.epochs=16", "train.learning_rate=2e-3", "train.beta=0.2"))
    send_traffic(project, 0)
    champion = project.champion()
    canned = Completion(text="ok.", finish_reason="stop")
    project.store.add_all(
        Label(prompt=one.prompt, candidates=(canned, one.completion), scores=(1.0, 0.0),
              annotator="planted", annotator_kind="human")
        for one in project.store.all(Interaction)
    )  # fmt: skip
    pair.run(project.store, project.config.pair, loop.held_out(project))
    dataset = pair.freeze(project.store, pair.new_pairs(project.store))
    checkpoint = train.run(project.store, project.config.train, dataset, champion)
    verdict = loop.guard_gate(project, checkpoint).verdict
    assert verdict.status == "refused"
    assert "sameness" in verdict.reason
    # and the promotion itself says no without the other reports, too
    reports = loop.todays_reports(project, checkpoint)
    assert (
        promote.run(project.store, project.config.promote, checkpoint, reports).status == "refused"
    )
    assert_base_serves(project)


@pytest.mark.parametrize(
    ("method", "reward", "asked_for"),
    [
        ("grpo", "loop_scorers:plain", "code:loop_scorers:plain"),
        ("grpo", "loop_scorers:padded", None),  # another than the run learned from
        ("dpo", "loop_scorers:plain", None),  # what labelled is not on record here
    ],
)
def test_the_guard_asks_the_reward_that_an_online_run_learned_from(
    folder: Path, method: str, reward: str, asked_for: str | None
) -> None:
    project = Project(folder, (f"train.method={method}", f"train.online.reward={reward}"))
    champion, store = project.champion(), project.store
    dataset = pair.freeze_prompts(store, [asked("colour of sky?")], source="file:train.jsonl")
    rewarded = {"rewarded_by": "code:loop_scorers:plain"} if method == "grpo" else {}
    run = TrainingRun(
        dataset_id=dataset.id,
        method=method,
        config=rewarded,
        base_weights=champion.weights,
        start_weights=champion.weights,
        ref_weights=champion.weights,
        template="t",
    )
    checkpoint = Checkpoint(run_id=run.id, path="none", weights="w_x", base_weights="w_y")
    store.add_all([run, checkpoint])
    beside = loop.guard_beside(project, checkpoint)
    assert (beside.proxy and beside.proxy.id) == asked_for
    assert (beside.scorer is None) == (asked_for is None)


def test_the_judge_that_labelled_may_not_promote(folder: Path) -> None:
    project = Project(folder, ("ab.scorer=loop_scorers:plain",))
    send_traffic(project, 0)
    with pytest.raises(ConfigError, match="judge that labelled"):
        turn(project)
    assert project.store.count(Checkpoint) == 0


def test_a_refused_candidate_is_not_tried_again_without_new_pairs(folder: Path) -> None:
    settings(folder, "padded")
    project, done = run_turn(folder)
    assert done.verdict.status == "refused"
    assert turn(project).verdict.status == "pending"


def test_a_checkpoint_reloads_to_the_same_log_probs(folder: Path) -> None:
    project, done = run_turn(folder)
    assert done.checkpoint is not None
    candidate = project.candidate(done.checkpoint)
    prompt = asked("sky is?")
    [[drawn]] = candidate.complete([prompt], Sampling(max_tokens=24, seed=3))
    fresh = load_backbone(project.config.model, folder)
    again = StoredModel(project.store, fresh, done.checkpoint.id)
    row = Branches(chat.prompt_ids(fresh.tokenizer, prompt), [drawn.token_ids or ()])
    with again.acting() as network:
        [[logprobs]] = completion_logprobs(network, [row])
    assert (
        max(abs(a - b) for a, b in zip(logprobs.tolist(), drawn.logprobs or (), strict=True)) < 1e-4
    )


def assert_base_serves(project: Project) -> None:
    release = project.store.champion()
    assert release is not None and release.checkpoint_id is None
