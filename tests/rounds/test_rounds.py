"""Iterative DPO and best-of-N on the colour project: a real model, real gates, real records."""

import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import combinations, pairwise, product
from pathlib import Path
from statistics import fmean

import pytest

from colour_project import asked
from trueup import loop, pair
from trueup.capture.importer import import_file
from trueup.errors import ConfigError, DataError, TrainingError
from trueup.project import Project
from trueup.records import (
    ABReport,
    Checkpoint,
    Completion,
    Label,
    Message,
    Messages,
    PreferencePair,
    Release,
    SampleSet,
    TrainingRun,
)
from trueup.rounds.answers import pairs_of, prompts_of
from trueup.rounds.best_of_n import best_of_n, expected_best, kl_bound, kl_seen
from trueup.rounds.config import RoundsConfig
from trueup.rounds.run import run

SETTINGS = (
    'rounds.reward="loop_scorers:plain"',
    'rounds.prompts="train.jsonl"',
    "rounds.num_samples=6",
    "rounds.max_tokens=24",
    "train.epochs=2",
)


def project_of(folder: Path, *overrides: str) -> Project:
    return Project(folder, (*SETTINGS, *overrides))


def label(*scores: float, texts: tuple[str, ...] = ()) -> Label:
    said = texts or tuple(f"answer {i}" for i in range(len(scores)))
    return Label(
        prompt=asked("sky?"),
        candidates=tuple(Completion(text=text) for text in said),
        scores=scores,
        annotator="code:test",
        annotator_kind="code",
    )


# --- the rounds -----------------------------------------------------------------------------------


def test_three_rounds_beat_the_first_model_by_a_scorer_that_did_not_label(folder: Path) -> None:
    project = project_of(folder)
    done = run(project)
    assert [one.number for one in done.rounds] == [1, 2, 3]
    assert done.best is done.rounds[-1]
    won = done.rounds[-1].reports[-1]
    assert isinstance(won, ABReport) and won.verdict.passed, won.verdict
    assert (won.verdict.figures["win_rate_low"] or 0) > 0.5
    # each round answered with what the last one gave, and its own answers scored ever better
    starts = [one.start for one in done.rounds]
    assert starts == [done.champion, *(one.checkpoint.weights for one in done.rounds[:-1])]
    scores = [one.mean_score for one in done.rounds]
    assert scores == sorted(scores) and scores[-1] > scores[0] + 0.02
    # nothing was promoted on the way
    assert [r.action for r in project.store.all(Release)] == ["first"]

    # a reference that drew the answers costs no pass
    for one in done.rounds:
        sources = one.checkpoint.metrics["reference"]
        assert sources["stored"] > 0 and sources["computed"] == 0
        assert abs(one.checkpoint.metrics["identity"]["first_loss"] - math.log(2)) < 1e-6
    runs = project.store.all(TrainingRun)
    assert [r.ref_weights for r in runs] == starts

    # again: the same rounds, and nothing is drawn, labelled or trained
    before = {kind: project.store.count(kind) for kind in (SampleSet, Label, TrainingRun, ABReport)}
    again = run(project_of(folder))
    assert [r.checkpoint.id for r in again.rounds] == [r.checkpoint.id for r in done.rounds]
    after = {kind: project.store.count(kind) for kind in before}
    assert after == before

    # the pairs are used up: the weekly loop does not train on them again
    assert pair.new_pairs(project.store) == []
    verdict = loop.turn(project).verdict
    assert verdict.status == "pending"


def test_the_base_as_reference_holds_every_round_to_where_the_first_began(folder: Path) -> None:
    project = project_of(folder, 'train.reference="base"', "rounds.rounds=2")
    done = run(project)
    runs = project.store.all(TrainingRun)
    assert [r.ref_weights for r in runs] == [done.champion] * 2
    assert done.rounds[1].checkpoint.metrics["reference"]["computed"] > 0


def test_half_way_merging_moves_the_model_less(folder: Path) -> None:
    half = run(project_of(folder, "rounds.merge=0.5", "rounds.rounds=1"))
    whole = run(project_of(folder, "rounds.rounds=1"))
    ours, theirs = (
        next(r for r in one.rounds[0].reports if r.tag == "guard").verdict.figures["kl"] or 0.0
        for one in (half, whole)
    )
    assert 0 < ours < 0.6 * theirs
    assert half.rounds[0].checkpoint.metrics["merge"] == {"share": 0.5, "lost": 0.0}


def test_rounds_train_at_a_rate_of_their_own(folder: Path) -> None:
    project = project_of(folder, "rounds.learning_rate=1e-5", "rounds.rounds=1")
    done = run(project)
    (record,) = project.store.all(TrainingRun)
    assert record.config["learning_rate"] == 1e-5
    assert project.config.train.learning_rate == 1e-3
    drawn = next(r for r in done.rounds[0].reports if r.tag == "guard").verdict.figures["kl"]
    assert drawn is not None and drawn < 0.05  # it went a hundredth of the way


def test_replay_brings_earlier_rounds_pairs_back(folder: Path) -> None:
    done = run(project_of(folder, "train.replay_share=0.5", "rounds.rounds=2"))
    replayed = [one.checkpoint.metrics["replay"]["replayed"] for one in done.rounds]
    assert replayed[0] == 0 and replayed[1] > 0


def test_a_round_that_a_gate_refuses_ends_the_rounds(folder: Path) -> None:
    done = run(project_of(folder, "guard.max_kl=0.01"))
    assert len(done.rounds) == 1
    assert done.verdict.gate == "guard" and done.verdict.status == "refused"
    assert done.best is None


def test_fewer_prompts_a_round_take_turns(folder: Path) -> None:
    project = project_of(folder, "rounds.max_prompts=16", "rounds.rounds=2")
    done = run(project)
    labels = list(project.store.each(Label))
    by_round = [
        {label.prompt for label in labels if label.source.startswith(f"rounds:{one.start}")}
        for one in done.rounds
    ]
    assert [len(one) for one in by_round] == [16, 16]
    assert len(by_round[0] | by_round[1]) == 30


def test_killed_in_training_the_rounds_go_on_to_the_same_weights(folder: Path) -> None:
    told = ("rounds.rounds=2", "train.save_every_steps=1")
    code = (
        "import sys; sys.path[:0] = sys.argv[2].split(':');"
        "from trueup.project import Project; from trueup.rounds.run import run;"
        "run(Project(sys.argv[1], tuple(sys.argv[3:])))"
    )
    arguments = [str(folder), ":".join(sys.path), *SETTINGS, *told]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob(".trueup/runs/*/step-*")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = Project(folder, (*SETTINGS, *told))
    assert killed.store.count(Checkpoint) == 0
    resumed = run(killed)
    killed.store.close()

    for kept in (folder / ".trueup").iterdir():
        if kept.name.startswith("store.sqlite"):
            kept.unlink()
    undisturbed = run(project_of(folder, *told))
    assert [one.checkpoint.weights for one in resumed.rounds] == [
        one.checkpoint.weights for one in undisturbed.rounds
    ]


# --- what must not be ---------------------------------------------------------------------------


def test_what_ranks_may_not_promote(folder: Path) -> None:
    with pytest.raises(ConfigError, match="labelled"):
        run(project_of(folder, 'rounds.reward="loop_scorers:brief"'))
    with pytest.raises(ConfigError, match="labelled"):
        best_of_n(project_of(folder, 'rounds.reward="loop_scorers:brief"'))


@pytest.mark.parametrize("method", ["kto", "sft", "reward", "ppo", "online_dpo"])
def test_rounds_need_a_method_on_pairs(folder: Path, method: str) -> None:
    with pytest.raises(ConfigError, match="Rounds train on pairs"):
        run(project_of(folder, f'train.method="{method}"'))


def test_without_prompts_there_is_nothing_to_do(folder: Path) -> None:
    with pytest.raises(DataError, match="no prompt to answer"):
        run(project_of(folder, 'rounds.prompts=""'))


def test_a_reward_that_fails_stops_with_the_answers_kept(folder: Path) -> None:
    project = project_of(folder, 'rounds.reward="loop_scorers:broken"')
    with pytest.raises(TrainingError, match="without a score"):
        run(project)
    drawn = project.store.count(SampleSet)
    assert drawn == 30
    mended = run(project_of(folder, "rounds.rounds=1"))
    assert mended.best is not None


def test_everybody_behind_a_checkpoint_is_known(folder: Path) -> None:
    """A scorer that taught an earlier round may not promote a later one."""
    first = run(project_of(folder, "rounds.rounds=1"))
    assert first.best is not None
    project = project_of(folder, 'rounds.reward="loop_scorers:padded"', "rounds.rounds=1")
    project.store.release(
        Release(
            action="promote",
            weights=first.best.checkpoint.weights,
            checkpoint_id=first.best.checkpoint.id,
            previous=project.store.all(Release)[0].id,
        )
    )
    second = run(project, RoundsConfig(**{**project.config.rounds.model_dump(), "rounds": 1}))
    taught = loop.taught_by(project.store, second.rounds[0].checkpoint)
    assert taught == ["code:loop_scorers:padded"]  # since the champion, that is
    run_2 = run(project_of(folder, "rounds.rounds=2", "train.seed=3"))
    assert loop.taught_by(project.store, run_2.rounds[-1].checkpoint) == ["code:loop_scorers:plain"]


def test_the_reward_of_a_call_is_the_one_that_ranks(folder: Path) -> None:
    project = project_of(folder)
    asked = project.config.rounds.model_copy(update={"reward": "loop_scorers:padded", "rounds": 1})
    run(project, asked)
    assert {one.annotator for one in project.store.each(Label)} == {"code:loop_scorers:padded"}
    with pytest.raises(ConfigError, match="imported"):
        best_of_n(project, asked.model_copy(update={"reward": "no_such_module:judge"}))


def test_prompts_that_can_never_be_scored_do_not_stop_a_second_call(folder: Path) -> None:
    told = ('rounds.reward="loop_scorers:no_sky"', "rounds.rounds=1")
    first = run(project_of(folder, *told))
    assert first.rounds[0].skipped["reward: it raised RuntimeError"] == 3
    again = run(project_of(folder, *told))
    assert again.rounds[0].checkpoint.id == first.rounds[0].checkpoint.id


def test_prompts_without_room_for_an_answer_are_counted(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        row = {"split": "train", "messages": [{"role": "user", "content": "sky " * 3000}]}
        file.write("\n" + json.dumps(row))
    done = run(project_of(folder, "rounds.rounds=1"))
    assert done.rounds[0].skipped["no room for an answer in the model's context"] == 1


def test_a_reward_function_that_was_mended_is_asked_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = "def mended(prompt, answer):\n    return {sign}len(answer)\n"
    found = []
    for sign in ("-", "+", "-"):
        (tmp_path / "my_reward.py").write_text(source.format(sign=sign))
        sys.modules.pop("my_reward", None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        done = run(project_of(folder, 'rounds.reward="my_reward:mended"', "rounds.rounds=1"))
        found.append((done.rounds[0].mean_score, done.rounds[0].dataset.id))
    assert found[0][0] == -found[1][0] and found[0] == found[2]


def test_labels_of_rounds_are_no_pairs_of_the_weekly_loop(folder: Path) -> None:
    project = project_of(folder, "rounds.num_samples=4")
    best_of_n(project)
    assert project.store.count(Label) > 0
    pair.run(project.store, project.config.pair, pair.HeldOut([]))
    assert pair.new_pairs(project.store) == []


def test_whoever_is_behind_a_reward_is_found_through_other_rewards(folder: Path) -> None:
    store = project_of(folder).store

    def trained(name: str, annotator: str) -> str:
        """A reward model on this annotator's labels; the name that it labels under."""
        made = label(1.0, 0.0, texts=(f"{name} a", f"{name} b")).model_copy(
            update={"annotator": annotator, "id": ""}
        )
        made = Label.model_validate(made.model_dump())
        (two,), _ = pairs_of([made], RoundsConfig(), min_margin=0.0)
        store.add_all([made, two])
        record = TrainingRun(
            dataset_id=pair.freeze(store, [two], source=name).id,
            method="reward",
            config={},
            base_weights="b",
            start_weights="b",
            ref_weights="b",
            template="t",
        )
        store.add(record)
        store.add(
            Checkpoint(run_id=record.id, path="p", weights=f"weights_{name}", base_weights="b")
        )
        return f"reward:weights_{name}:mean/1"

    first = trained("one", "code:facts/1")
    second = trained("two", first)
    assert loop.behind(store, second) == ["code:facts/1", first, second]
    assert loop.behind(store, "code:x") == ["code:x"]


# --- pairs ----------------------------------------------------------------------------------------


def test_pairs_are_best_against_worst_random_or_all() -> None:
    ranked = [label(0.0, 3.0, 1.0)]
    sides = {
        how: [
            (p.chosen.text, p.rejected.text, p.margin)
            for p in pairs_of(ranked, RoundsConfig(pairs=how), min_margin=0.0)[0]
        ]
        for how in ("best_vs_worst", "best_vs_random", "all")
    }
    assert sides["best_vs_worst"] == [("answer 1", "answer 0", 3.0)]
    assert sides["best_vs_random"][0] in [
        ("answer 1", "answer 0", 3.0),
        ("answer 1", "answer 2", 2.0),
    ]
    assert sorted(sides["all"]) == [
        ("answer 1", "answer 0", 3.0),
        ("answer 1", "answer 2", 2.0),
        ("answer 2", "answer 0", 1.0),
    ]


def test_ties_narrow_margins_equal_and_empty_answers_give_no_pair() -> None:
    ranked = [
        label(1.0, 1.0),
        label(1.0, 0.95),
        label(1.0, 0.0, texts=("same", " same ")),
        label(1.0, 0.0, texts=(" ", "worse")),
    ]
    pairs, skipped = pairs_of(ranked, RoundsConfig(), min_margin=0.1)
    assert pairs == [] and skipped == {"tie": 1, "no usable pair": 3}


# --- best of n ------------------------------------------------------------------------------------


def test_best_of_n_learns_the_best_and_a_random_control(folder: Path) -> None:
    project = project_of(folder, "train.epochs=3")
    found = best_of_n(project)
    best, control = found.arms
    assert (best.name, control.name) == ("best", "random")
    assert found.prompts == 30 and len(found.expected_scores) == 6
    assert found.expected_scores == sorted(found.expected_scores)
    assert best.picked_score == pytest.approx(found.expected_scores[-1])
    assert control.picked_score < best.picked_score
    assert found.kl_bound == pytest.approx(math.log(6) - 5 / 6)
    # both learned 30 single answers to the same prompts
    runs = [project.store.get(TrainingRun, arm.checkpoint.run_id) for arm in found.arms]
    assert {run.method for run in runs} == {"sft"}
    assert all(arm.checkpoint.metrics["num_pairs"] == 30 for arm in found.arms)
    # the control's scorer is nobody's: only what was picked by a judge was taught by it
    assert loop.taught_by(project.store, control.checkpoint) == ["code:random"]
    assert loop.taught_by(project.store, best.checkpoint) == ["code:loop_scorers:plain"]
    scores = [arm.reports["ab"].verdict.figures["score"] or 0.0 for arm in found.arms]
    assert all(isinstance(score, float) for score in scores)
    again = best_of_n(project_of(folder, "train.epochs=3"))
    assert [arm.checkpoint.id for arm in again.arms] == [arm.checkpoint.id for arm in found.arms]


def test_the_bound_is_zero_for_one_answer_and_grows() -> None:
    assert kl_bound(1) == 0
    assert kl_bound(8) == pytest.approx(1.204442, abs=1e-6)
    assert kl_bound(64) == pytest.approx(3.174508, abs=1e-6)


def test_the_bound_is_the_divergence_of_best_of_n_where_scores_differ() -> None:
    """p(best of n = i-th of K equally likely answers), against 1 / K."""
    num_answers, n = 20_000, 4
    cdf = [i / num_answers for i in range(num_answers + 1)]
    chances = [b**n - a**n for a, b in pairwise(cdf)]
    kl = math.fsum(p * math.log(p * num_answers) for p in chances)
    assert kl == pytest.approx(kl_bound(n), abs=1e-3)


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0, 4.0], [1.0, 2.0, 1.0, 3.0], [0.5] * 4])
def test_ties_bring_best_of_n_closer_to_the_model(scores: list[float]) -> None:
    """Against all ways of drawing n of n equally likely answers, ties broken at random."""
    n = len(scores)
    chances = [0.0] * n
    for drawn in product(range(n), repeat=n):
        top = [i for i in drawn if scores[i] == max(scores[j] for j in drawn)]
        for i in top:
            chances[i] += 1 / len(top) / n**n
    kl = math.fsum(p * math.log(p * n) for p in chances)
    assert kl_seen(scores) == pytest.approx(kl)
    assert kl_seen(scores) <= kl_bound(n)
    assert kl_seen([float(i) for i in range(1000)]) == pytest.approx(kl_bound(1000), abs=0.05)


def test_expected_best_is_the_mean_over_all_draws() -> None:
    scores = [0.3, -1.0, 2.0, 0.9, 0.9]
    for k in range(1, 6):
        slow = fmean(max(some) for some in combinations(scores, k))
        assert expected_best(scores, k) == pytest.approx(slow)
    drawn = [random.Random(seed).gauss(0, 1) for seed in range(2000)]
    # of two standard normal draws the larger is 1 / sqrt(pi) on average
    assert expected_best(drawn, 2) == pytest.approx(1 / math.sqrt(math.pi), abs=0.06)


def test_messages_are_read_from_the_train_side_only(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write('\n{"split": "heldout", "messages": [{"role": "user", "content": "other?"}]}')
    project = project_of(folder, "rounds.rounds=1")
    run(project)
    prompts = {one.prompt for one in project.store.each(PreferencePair)}
    assert (Message(role="user", content="other?"),) not in prompts and prompts


def test_traffic_that_arrives_between_two_calls_waits_for_the_next_champion(folder: Path) -> None:
    def serve(project: Project, *things: str) -> None:
        rows = [json.dumps({"prompt": f"{thing}?", "completion": "red."}) for thing in things]
        (folder / "served.jsonl").write_text("\n".join(rows))
        import_file(project.store, folder / "served.jsonl")

    settings = ('rounds.prompts=""', "rounds.rounds=1", "rounds.seed=3")
    project = project_of(folder, *settings)
    serve(project, "clover", "pine")
    known = prompts_in(project)
    assert known == [asked("clover?"), asked("pine?")]
    serve(project, "moss", "fern")
    assert prompts_in(project) == known, "the same call goes on with the same prompts"
    patient = project_of(folder, *settings[:1], "rounds.seed=3", "rounds.reward_timeout_s=5")
    assert prompts_in(patient) == known
    later = project_of(folder, *settings[:1], "rounds.seed=4")
    assert len(prompts_in(later)) == 4


def prompts_in(project: Project) -> list[Messages]:
    held_out, champion = loop.held_out(project), project.champion()
    found, _ = prompts_of(project, project.config.rounds, held_out, champion)
    return sorted(found, key=lambda prompt: prompt[-1].content)
