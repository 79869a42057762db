"""Rewards, prompts and settings that are no good: an error by name, or a skip that is counted."""

import math
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import scorers
from runs import PROMPTS, MakeProject, Project, Runner, Undisturbed, setting
from tiny_project import question, written_pairs

from trueup.errors import ConfigError, ModelError, RecordNotFound, TrainingError
from trueup.records import Checkpoint, Completion, Dataset, TrainingRun
from trueup.train import TrainConfig
from trueup.train.online import fit, rewards
from trueup.train.online.rewards import Reward, resolve_reward
from trueup.train.online.rollouts import Prompt

Of = Callable[[str], Undisturbed]


def reward(project: Project, name: str, **online: Any) -> Reward:
    config = setting("ppo head", reward=name, **online)
    return resolve_reward(project.store, config.online, project.champion)


def answers(*texts: str) -> list[Completion]:
    return [
        Completion(text=one, token_ids=(5,) * max(1, len(one)), finish_reason="stop")
        for one in texts
    ]


# --- a reward that fails --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("scorers:TooFew", "wrong number of scores: 1 for 2 answers"),
        ("scorers:Nothings", "it raised TypeError"),
        ("scorers:no_such", None),
        ("scorers:StepsOutside", "a step ends outside its answer"),
        ("scorers:Absurd", "a score is not finite or beyond 1e\\+15"),
    ],
)
def test_a_reward_that_answers_nonsense_stops_the_run_by_name(
    make_project: MakeProject, name: str, problem: str | None
) -> None:
    project = make_project()
    if problem is None:
        with pytest.raises(ConfigError, match="could not be imported"):
            reward(project, name)
        return
    judge = reward(project, name, step_rewards="Steps" in name)
    with pytest.raises(TrainingError, match=problem):
        judge.score(PROMPTS[:2], [answers("um", "blue.")] * 2)


def test_prompts_that_a_reward_cannot_score_are_left_out_and_counted(
    make_project: MakeProject,
) -> None:
    project = make_project()
    config = setting("rloo", reward="scorers:number_of_the_thing", steps=2)
    metrics = project.train(config).metrics
    assert metrics["skipped"] == {"reward: a score is not finite or beyond 1e+15": 2}
    assert [one["prompts_skipped"] for one in metrics["history"]] == [1.0, 1.0]
    assert [one["answers"] for one in metrics["history"]] == [12.0, 12.0]
    with pytest.raises(TrainingError, match="2 of 8 prompts; the last: a score is not f"):
        make_project(name="strict").train(config.model_copy(update={"online": strict(config)}))


@pytest.mark.parametrize("method", ["ppo head", "ppo adapter", "rloo", "grpo", "online_dpo"])
def test_batches_of_one_prompt_that_stays_unscored_are_skipped_and_the_others_learned(
    make_project: MakeProject, method: str
) -> None:
    """One prompt of four is never scored, and stands alone in its batch."""
    online = {"prompts_per_step": 1, "steps": 8, "normalize_reward": True}
    config = setting(method, reward="scorers:number_of_the_thing", **online)
    history = make_project().train(config).metrics["history"]
    assert len(history) == 8
    empty = [one for one in history if not one["answers"]]
    assert all(one["updates"] == 0 and one["prompts_skipped"] == 1 for one in empty)
    assert len(empty) == 2
    assert all(math.isfinite(value) for one in history for value in one.values())


@pytest.mark.parametrize(
    ("steps", "asked"), [(1, 4), (2, 8), (3, 9), (4, 13), (6, 18), (7, 22), (0, 0)]
)
def test_the_share_that_is_skipped_is_of_all_prompts_that_were_asked(
    steps: int, asked: int
) -> None:
    """Nine prompts, four a batch: the third batch of a pass is a single one."""
    config = setting("rloo", prompts_per_step=4)
    assert fit._num_asked(9, steps, config) == asked
    prompts = [Prompt(question(str(i)), (i,)) for i in range(9)]
    assert sum(len(fit._pick(prompts, step, config)) for step in range(steps)) == asked


def strict(config: TrainConfig) -> Any:
    return config.online.model_copy(update={"max_skip_rate": 0.1})


def test_a_reward_that_never_answers_costs_its_prompt_alone(make_project: MakeProject) -> None:
    config = setting("rloo", reward="scorers:for_ever", steps=1, reward_timeout_s=1.0)
    metrics = make_project().train(config).metrics
    assert metrics["skipped"] == {"reward: no answer in time": 1}
    assert metrics["last"]["rollout_seconds"] < 30


def test_a_reward_that_keeps_hanging_stops_before_its_threads_pile_up(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "MOST_HANGING", 4)
    sleeper = reward(make_project(), "scorers:Sleeper", reward_timeout_s=0.05)
    before = threading.active_count()
    for _ in range(4):
        found, skipped = sleeper.ask([question("snow")], [answers("a", "b")])
        assert found == [None] and skipped == {"reward: no answer in time": 1}
    with pytest.raises(TrainingError, match="does not return"):
        sleeper.ask([question("snow")], [answers("a", "b")])
    assert threading.active_count() == before + 4

    scorers.Sleeper.wake.set()  # once they have all returned, it is asked again
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    found, skipped = sleeper.ask([question("snow")], [answers("um", "b")])
    assert not skipped and found[0] and found[0].scores == (1.0, 0.0)


def test_a_reward_that_exits_is_its_prompts_problem_and_nobody_waits_for_it(
    make_project: MakeProject,
) -> None:
    for name, problem in (("Quitter", "SystemExit"), ("Cancelled", "CancelledError")):
        quitter = reward(make_project(name=name), f"scorers:{name}", reward_timeout_s=60)
        started = time.monotonic()
        found, skipped = quitter.ask([question("snow")], [answers("a", "b")])
        assert found == [None] and skipped == {f"reward: it raised {problem}": 1}
        assert time.monotonic() - started < 20


class _Scorer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        said = b"busy" if "snow" in body else b'{"scores": [0, 1, 0, 1]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_reward_server_scores_a_run_and_what_it_cannot_score_is_counted(
    make_project: MakeProject,
) -> None:
    project = make_project()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Scorer) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        metrics = project.train(setting("rloo", reward=url, steps=1)).metrics
        server.shutdown()
        thread.join()
    assert metrics["rewarded_by"] == f"http:{url.rstrip('/')}" and metrics["last"]["score"] == 0.5
    assert metrics["skipped"] == {"reward: it raised UpstreamError": 1}
    with pytest.raises(TrainingError, match=r"4 of 4 prompts; .*refused"):
        project.train(setting("rloo", reward=url, steps=2))


# --- a reward that cannot be ----------------------------------------------------------------------


def test_a_reward_must_be_named_and_exist(make_project: MakeProject, undisturbed: Of) -> None:
    project = make_project()
    with pytest.raises(ConfigError, match="Online methods need a reward"):
        project.train(setting("rloo", reward=""))
    with pytest.raises(ConfigError, match="no judge of this name"):
        project.train(setting("rloo", reward="good-taste"))
    with pytest.raises(RecordNotFound):
        project.train(setting("rloo", reward=f"{Checkpoint.tag}_0123456789abcdef0123"))
    assert project.store.count(TrainingRun) == 0
    other, checkpoint = undisturbed("rloo")
    with pytest.raises(ModelError, match="answers and does not score"):
        reward(other, checkpoint.id)


def test_steps_need_a_reward_that_scores_them(make_project: MakeProject) -> None:
    project = make_project()
    with pytest.raises(ConfigError, match="does not score steps"):
        project.train(setting("ppo head", step_rewards=True))
    config = setting("ppo head", reward="scorers:Steps", step_rewards=True, steps=1)
    assert project.train(config).metrics["last"]["updates"] == 1


def test_two_processes_are_refused(make_project: MakeProject, runner: Runner) -> None:
    """In each of them, so that a launcher ends."""
    project = make_project()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runner.begin(project, setting("rloo"), **meeting)
    assert runner.status() != 0
    assert runner.complaints().count("Online methods run in one process. Got '2 processes'") == 2
    assert project.store.count(Checkpoint) == 0


# --- prompts and answers --------------------------------------------------------------------------


def test_prompts_without_room_for_an_answer_are_left_out_and_counted(
    make_project: MakeProject,
) -> None:
    long = question("x" * 1020)
    metrics = make_project(prompts=(*PROMPTS, long)).train(setting("rloo", steps=1)).metrics
    assert metrics["skipped"] == {"no room for an answer in the model's context": 1}
    assert metrics["num_prompts"] == len(PROMPTS)
    with pytest.raises(TrainingError, match=r"no prompt to answer.*no room"):
        make_project(name="b", prompts=(long,)).train(setting("rloo"))


def test_without_a_prompt_on_the_side_that_is_needed_nothing_starts(
    make_project: MakeProject,
) -> None:
    project = make_project()
    with pytest.raises(TrainingError, match="none to learn on"):
        project.train(setting("rloo", train={"eval_share": 0.999999}))
    with pytest.raises(TrainingError, match=r"max_kl could not stop anything"):
        project.train(setting("rloo", train={"max_kl": 1.0}))


@pytest.mark.parametrize("name", ["ppo head", "grpo", "online_dpo"])
def test_answers_of_one_token_or_none_worth_reading_are_answers(
    make_project: MakeProject, name: str
) -> None:
    history = make_project().history(setting(name, max_tokens=1, steps=2))
    assert all(one["tokens"] == 1 for one in history)


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo"])
def test_equal_scores_without_a_price_leave_the_policy_where_it_is(
    make_project: MakeProject, name: str
) -> None:
    config = setting(name, reward="scorers:same_for_all", kl_coef=0.0, steps=2)
    history = make_project().history(config)
    assert all(one["equal_scores_rate"] == 1 and one["grad_norm"] < 1e-6 for one in history)


# --- a reward model -------------------------------------------------------------------------------


def test_a_trained_reward_model_rewards_a_run_with_and_without_steps(
    tiny_model: Path, tmp_path: Path
) -> None:
    project = Project.make(tmp_path / "store", tiny_model)
    pairs = written_pairs()
    project.store.add_all(pairs)
    compared = Dataset(pair_ids=tuple(one.id for one in pairs), source="loop")
    project.store.add(compared)
    labels = setting("rloo").model_copy(update={"method": "reward", "epochs": 2})
    scorer = Project(project.store, project.champion, compared).train(labels)
    found = {}
    for steps in (False, True):
        config = setting("ppo adapter", reward=scorer.id, step_rewards=steps, steps=3)
        metrics = project.train(config).metrics
        assert metrics["rewarded_by"].startswith("reward:") and metrics["skipped"] == {}
        assert "judge-0" not in getattr(project.champion.backbone.model, "peft_config", {})
        found[steps] = metrics["history"]
    assert found[True][0]["score"] == found[False][0]["score"], "one scale, one seed"
    assert found[True][-1]["score"] != 0
    project.store.close()
