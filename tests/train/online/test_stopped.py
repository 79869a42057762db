"""The same weights however a run is stopped: killed at any step, at any moment, or by its reward.

Killed runs are real processes and a real SIGKILL.
"""

from collections.abc import Callable

import pytest
from runs import METHODS, PROMPTS, STEPS, MakeProject, Runner, Undisturbed, setting
from scorers import BROKEN, DIE_AFTER

from trueup.errors import TrainingError
from trueup.records import Checkpoint, TrainingRun
from trueup.train import TrainConfig

Of = Callable[[str], Undisturbed]
TIMES = {"seconds", "rollout_seconds"}
ADAPTIVE = setting(
    "ppo head",
    kl_target=0.5,
    kl_horizon=50,
    normalize_reward=True,
    reward_clip=2.0,
    updates_per_batch=2,
    minibatches=2,
    train={"reference": "ema"},
)
"""With everything that is carried from batch to batch: the coefficient of KL, the running scale of
the reward, the average that is the reference."""


def figures(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """A history without its clock."""
    return [{k: v for k, v in one.items() if k not in TIMES} for one in history]


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(
    make_project: MakeProject, undisturbed: Of, runner: Runner, name: str
) -> None:
    """Each method at another step and another moment within it."""
    project, at = make_project(), list(METHODS).index(name)
    runner.kill_after(project, setting(name), 1 + at % 3, pause_s=0.02 * at)
    assert project.store.count(Checkpoint) == 0 and project.saved() >= 1
    checkpoint = project.train(setting(name))
    assert figures(checkpoint.metrics["history"]) == figures(undisturbed(name).history)
    assert project.weights_of(checkpoint) == undisturbed(name).weights
    assert project.store.count(TrainingRun) == project.store.count(Checkpoint) == 1


def test_a_run_killed_in_every_batch_resumes_to_the_same_weights_bit_for_bit(
    make_project: MakeProject, runner: Runner
) -> None:
    whole, project = make_project(name="whole"), make_project()
    expected = whole.train(ADAPTIVE)
    scores_a_batch = ADAPTIVE.online.num_samples * len(PROMPTS)
    for step in range(STEPS):
        runner.begin(project, ADAPTIVE, **{DIE_AFTER: str(scores_a_batch * (step > 0) + 5)})
        assert runner.status() == 9
        assert project.saved() == (step or -1), "it got one batch further, and no more"
    checkpoint = project.train(ADAPTIVE)
    history = checkpoint.metrics["history"]
    assert figures(history) == figures(expected.metrics["history"])
    assert project.weights_of(checkpoint) == whole.weights_of(expected)
    assert len({one["kl_coef"] for one in history}) > 3, "the coefficient of KL moved"
    assert all(one["reward"] != one["score"] for one in history), "the reward was on a scale"


@pytest.mark.parametrize("name", ["rloo", "online_dpo"])
def test_a_reward_that_breaks_stops_the_run_and_mended_it_goes_on_from_there(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Though states are saved every 50 batches only: what was paid for is kept."""
    whole, project = make_project(name="whole"), make_project()
    settings = setting(name, reward="scorers:breaks_later", train={"save_every_steps": 50})
    expected = whole.train(settings)
    scores_a_batch = settings.online.num_samples * len(PROMPTS)
    monkeypatch.setenv(BROKEN, str(2 * scores_a_batch + 3))
    with pytest.raises(TrainingError, match=r"(?s)without a score.*do not compile.*goes on") as e:
        project.train(settings)
    assert "4 of 4 prompts" in str(e.value) or "3 of 4 prompts" in str(e.value)
    assert project.saved() == 2
    monkeypatch.delenv(BROKEN)
    # patience and the like may change: it is the same run
    patient = settings.online.model_copy(update={"max_skip_rate": 0.9, "reward_timeout_s": 99.0})
    checkpoint = project.train(settings.model_copy(update={"online": patient}))
    assert len(project.store.all(TrainingRun)) == 1
    assert figures(checkpoint.metrics["history"]) == figures(expected.metrics["history"])
    assert project.weights_of(checkpoint) == whole.weights_of(expected)


def test_a_reward_that_is_broken_from_the_beginning_leaves_nothing_to_trip_over(
    make_project: MakeProject, undisturbed: Of, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, settings = make_project(), setting("rloo", reward="scorers:breaks_later")
    monkeypatch.setenv(BROKEN, "1")
    for _ in range(2):
        with pytest.raises(TrainingError, match="without a score"):
            project.train(settings)
    assert project.saved() == -1
    monkeypatch.delenv(BROKEN)
    assert project.weights_of(project.train(settings)) == undisturbed("rloo").weights


def test_what_was_skipped_before_a_stop_is_counted_after_it(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, whole = make_project(), make_project(name="whole")
    settings = setting("rloo", reward="scorers:number_of_the_thing", steps=4)
    expected = whole.train(settings).metrics["skipped"]
    assert expected == {"reward: a score is not finite or beyond 1e+15": 4}
    monkeypatch.setenv(BROKEN, "25")
    with pytest.raises(TrainingError):
        project.train(settings)
    assert project.saved() > 0
    monkeypatch.delenv(BROKEN)
    assert project.train(settings).metrics["skipped"] == expected


def test_a_stop_while_measuring_measures_on_going_on(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = setting(
        "rloo",
        reward="scorers:breaks_later",
        train={"eval_share": 0.5, "eval_every_steps": 2, "seed": 0, "save_every_steps": 50},
    )
    whole, project = make_project(name="whole"), make_project()
    expected = whole.train(settings)
    told = expected.metrics
    assert told["num_prompts"] and told["num_held_out"]
    assert sum("held_out_score" in one for one in told["history"]) == 3
    scores = settings.online.num_samples * told["num_prompts"]
    monkeypatch.setenv(BROKEN, str(2 * scores + 1))  # the first score of the first measurement
    with pytest.raises(TrainingError, match="without a score"):
        project.train(settings)
    assert project.saved() == 2
    monkeypatch.delenv(BROKEN)
    checkpoint = project.train(settings)
    assert figures(checkpoint.metrics["history"]) == figures(told["history"])
    assert project.weights_of(checkpoint) == whole.weights_of(expected)


def test_batches_without_anything_to_learn_from_can_be_resumed_too(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No optimizer step was taken, so the saved state knows of none."""
    project = make_project()
    settings: TrainConfig = setting("online_dpo", reward="scorers:same_for_all", steps=4)
    monkeypatch.setenv(BROKEN, str(2 * 16 + 1))
    with pytest.raises(TrainingError):
        project.train(settings)
    assert project.saved() == 2
    monkeypatch.delenv(BROKEN)
    metrics = project.train(settings).metrics
    assert [one["updates"] for one in metrics["history"]] == [0.0] * 4
    assert [one["equal_scores_rate"] for one in metrics["history"]] == [1.0] * 4
