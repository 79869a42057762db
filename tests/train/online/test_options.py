"""What the settings of an online run do to a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import PROMPTS, MakeProject, Project, Undisturbed, setting
from tiny_project import logprobs_of

from trueup.judges.resolve import resolve
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.logprobs import completion_logprobs
from trueup.models.offload import Offload
from trueup.records import Completion, Release, Sampling
from trueup.train import TrainConfig
from trueup.train.online.critic import Critic
from trueup.train.online.engine import LocalEngine
from trueup.train.online.fit import OnlineRun, fit_online
from trueup.train.online.objectives import PolicyObjective
from trueup.train.online.rewards import Reward
from trueup.train.online.rollouts import Prompt, Rollouts
from trueup.train.online.shaping import Shaping
from trueup.train.policy import Policy
from trueup.train.reference import FixedReference
from trueup.train.step import Stepper
from trueup.train.workers import Workers

Of = Callable[[str], Undisturbed]


class Parts:
    """A run in its pieces, for what cannot be seen from outside."""

    def __init__(self, project: Project, config: TrainConfig) -> None:
        champion = project.champion
        self.config, self.policy = config, Policy.start(champion, config)
        self.engine = LocalEngine(self.policy, champion.weights)
        self.reference = FixedReference(champion.acting, champion.weights, tokens_per_batch=512)
        self.reward = Reward(resolve(config.online.reward), config.online)
        tokenizer = self.policy.backbone.tokenizer
        self.prompts = [Prompt(one, tuple(chat.prompt_ids(tokenizer, one))) for one in PROMPTS]

    def rollouts(self, engine: Any = None) -> Rollouts:
        return Rollouts(
            engine or self.engine,
            self.policy.acting,
            self.reference,
            self.reward,
            self.config.online,
            tokens_per_batch=512,
        )

    def fit(self, folder: Path, engine: Any = None) -> list[dict[str, float]]:
        folder.mkdir()
        run = OnlineRun(
            self.policy,
            engine or self.engine,
            self.rollouts(engine),
            self.reference,
            None,
            self.config,
            folder,
        )
        return fit_online(run, self.prompts, []).history


# --- updates --------------------------------------------------------------------------------------


def test_a_batch_is_learned_from_as_often_as_the_settings_say(make_project: MakeProject) -> None:
    project = make_project()
    config = setting("grpo", updates_per_batch=3, minibatches=2, steps=2)
    for batch in project.history(config):
        assert batch["updates"] == 6
        assert batch["first_ratio"] == pytest.approx(1.0, abs=1e-4)
        assert batch["first_clip_rate"] == 0.0
        assert batch["moved_kl"] > 1e-4, "later updates are off policy"


def test_more_updates_move_further_and_a_target_ends_a_batch_early(
    make_project: MakeProject,
) -> None:
    project = make_project()
    often = project.history(setting("grpo", updates_per_batch=6, steps=1))[0]
    bound = setting("grpo", updates_per_batch=6, steps=1, target_kl=1e-4)
    early = project.history(bound)[0]
    assert often["updates"] == 6 and "left_early" not in often
    assert early["left_early"] == 1 and early["updates"] < 6
    assert early["moved_kl"] <= 1e-4 < often["moved_kl"], "no update was taken beyond the target"


@pytest.mark.parametrize("name", ["ppo head", "rloo", "grpo", "dr_grpo"])
def test_splitting_a_batch_into_passes_changes_nothing(
    make_project: MakeProject, name: str
) -> None:
    """Value head, entropy bonus and price in the loss among it."""
    config = setting(name, entropy_coef=0.01, train={"max_grad_norm": 1e9})
    parts = Parts(make_project(), config)
    champion = make_project(name="b").champion
    served = Offload(champion.backbone, enabled=False)
    critic = Critic.start(champion, parts.policy, config, served)
    critic.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    groups, _ = parts.rollouts().groups(parts.prompts, seed=3, name="step-0")
    critic.fill(groups, 512)
    Shaping(config.method, config.online).fill(groups)
    by_row = {one.row.id: one for one in groups}
    found = []
    for tokens in (64, 100_000):
        head = critic.head if name == "ppo head" else None
        parameters = parts.policy.parameters | (critic.parameters if head else {})
        settings = config.model_copy(update={"tokens_per_batch": tokens})
        stepper = Stepper(parameters, settings, Workers())
        objective = PolicyObjective(
            config.method, config.online, by_row, kl_coef=0.1, value_head=head
        )
        rows = [one.row for one in groups]
        stepper.gradients([(parts.policy.acting(), objective)], rows, 0.0, 1)
        found.append({n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert max(float(one.abs().max()) for one in found[0].values()) > 1e-3
    for which, gradient in found[0].items():
        size = max(1.0, float(gradient.abs().max()))  # a value head's is in the tens
        worst = float((gradient - found[1][which]).abs().max())
        assert worst < 3e-6 * size, f"{which}: {worst}"


# --- what is paid for -----------------------------------------------------------------------------


def test_an_entropy_bonus_keeps_entropy_up(make_project: MakeProject) -> None:
    project = make_project()
    with_bonus, without = (
        project.history(setting("rloo", entropy_coef=bonus))[-1]["entropy"] for bonus in (0.3, 0.0)
    )
    assert with_bonus > without + 0.05


def test_a_length_penalty_alone_shortens_answers(make_project: MakeProject) -> None:
    config = setting("rloo", reward="scorers:same_for_all", length_penalty=0.2, max_tokens=12)
    history = make_project().history(config)
    assert history[-1]["tokens"] < history[0]["tokens"] - 1
    for batch in history:
        assert batch["score"] == pytest.approx(0.1)
        assert batch["reward"] == pytest.approx(0.1 - 0.2 * batch["tokens"])


def test_paying_for_a_missing_end_makes_answers_end(make_project: MakeProject) -> None:
    config = setting("rloo", reward="scorers:same_for_all", missing_eos_penalty=1.0)
    history = make_project().history(config)
    assert history[0]["ended_rate"] < 0.9
    assert history[-1]["ended_rate"] > history[0]["ended_rate"] + 0.1
    for batch in history:
        assert batch["reward"] == pytest.approx(0.1 - (1 - batch["ended_rate"]))


# --- references -----------------------------------------------------------------------------------


def test_without_a_price_there_is_no_reference_and_no_distance_is_claimed(
    make_project: MakeProject,
) -> None:
    history = make_project().history(setting("rloo", kl_coef=0.0, steps=2))
    assert all("kl" not in one and "weight" not in one for one in history)


def test_a_line_at_a_distance_is_measured_without_a_price_too(make_project: MakeProject) -> None:
    project = make_project()
    bound = {"max_kl": 1e-3, "eval_share": 0.5, "eval_every_steps": 1}
    metrics = project.train(setting("rloo", kl_coef=0.0, steps=3, train=bound)).metrics
    assert metrics["last"]["answer_kl"] > 1e-3 and len(metrics["history"]) < 3
    assert "nats from the reference, over train.max_kl" in metrics["stopped"]


def test_a_moving_reference_follows_and_the_base_stays(
    make_project: MakeProject, undisturbed: Of
) -> None:
    still = undisturbed("rloo").history[-1]["kl"]
    moving = {"reference": "ema", "ema_decay": 0.3}
    assert make_project().history(setting("rloo", train=moving))[-1]["kl"] < still / 2


def test_the_next_turn_may_be_held_to_the_base_or_to_the_champion(
    tiny_model: Path, tmp_path: Path
) -> None:
    project = Project.make(tmp_path / "store", tiny_model)
    first = project.train(setting("rloo"))
    project.store.release(Release(action="promote", weights=first.weights, checkpoint_id=first.id))
    champion = type(project.champion).serving(project.store, project.champion.backbone)
    again = Project(project.store, champion, project.dataset)
    found = {}
    for reference in ("previous", "base"):
        metrics = again.train(setting("rloo", steps=1, train={"reference": reference})).metrics
        assert metrics["identity"]["served_gap"] <= 1e-4
        assert metrics["first"]["score"] > 0.4, "it starts from what it had learned"
        found[reference] = metrics["first"]["kl"]
    assert found["previous"] == pytest.approx(0.0, abs=1e-6) and found["base"] > 0.05
    project.store.close()


@pytest.mark.parametrize("name", ["ppo head", "online_dpo"])
def test_all_weights_may_train(make_project: MakeProject, name: str) -> None:
    project = make_project()
    whole = {"adapter": "full", "learning_rate": 2e-3}
    checkpoint = project.train(setting(name, train=whole))
    history = checkpoint.metrics["history"]
    assert history[-1]["score"] > history[0]["score"] + 0.1 and history[0]["kl"] < 1e-6
    assert checkpoint.base_weights == checkpoint.weights
    served, trained = (
        Backbone.load(one)
        for one in (project.champion.backbone.folder, project.store.folder / checkpoint.path)
    )
    assert not torch.equal(logprobs_of(served, None), logprobs_of(trained, None))
    assert torch.equal(logprobs_of(served, None), logprobs_of(project.champion.backbone, None))


# --- an engine that is not the policy -------------------------------------------------------------


class RoughEngine:
    """Draws with weights that are off by a planted noise, and reports the log-probs of those."""

    weights = "rough"

    def __init__(self, engine: LocalEngine, policy: Policy) -> None:
        self.engine, self.policy = engine, policy

    def __call__(
        self, prompts: Any, sampling: Sampling, num_samples: int
    ) -> list[list[Completion]]:
        random = torch.Generator().manual_seed(9)
        before = {n: p.detach().clone() for n, p in self.policy.parameters.items()}
        with torch.no_grad():
            for name, one in self.policy.parameters.items():
                if "lora_B" in name:
                    one.add_(0.05 * torch.randn(one.shape, generator=random))
            try:
                return self.engine(prompts, sampling, num_samples)
            finally:
                for name, one in self.policy.parameters.items():
                    one.copy_(before[name])

    def end(self) -> None:
        """It holds nothing."""


@pytest.mark.parametrize("level", ["none", "token", "sequence"])
def test_a_planted_mismatch_is_measured_and_weighed_away(
    make_project: MakeProject, tmp_path: Path, level: str
) -> None:
    parts = Parts(make_project(), setting("grpo", importance=level, importance_cap=5.0))
    engine = RoughEngine(parts.engine, parts.policy)
    groups, _ = parts.rollouts(engine).groups(parts.prompts, seed=1, name="step-0")
    with torch.no_grad(), parts.policy.acting() as model:
        trainer = completion_logprobs(model, [one.row.branches for one in groups])
    for group, of_group in zip(groups, trainer, strict=True):
        for at, logprobs in enumerate(of_group):
            said = torch.tensor(group.completions[at].logprobs)
            ratio = (logprobs - said).exp()
            assert torch.equal(group.engine_logprobs[at], said)
            old = said if level == "none" else logprobs
            assert torch.allclose(group.old_logprobs[at], old, atol=1e-5)
            expected = {
                "none": torch.ones_like(ratio),
                "token": ratio.clamp(max=5.0),
                "sequence": ratio.prod().clamp(max=5.0).expand_as(ratio),
            }[level]
            assert torch.allclose(group.weights[at], expected, atol=1e-3)
    history = parts.fit(tmp_path / "states", engine)
    if level == "none":
        assert abs(history[0]["first_ratio"] - 1) > 1e-3, "the engine passes for the policy"
        assert "weight" not in history[0] and "engine_kl" not in history[0]
    else:
        assert history[0]["first_ratio"] == pytest.approx(1.0, abs=1e-4)
        assert history[0]["weight"] != pytest.approx(1.0, abs=1e-4)
        assert history[0]["engine_kl"] > 1e-3
        assert history[-1]["score"] > history[0]["score"]
    parts.policy.end()


def test_an_engine_that_is_the_policy_weighs_one(make_project: MakeProject) -> None:
    for batch in make_project().history(setting("grpo", importance="token", steps=2)):
        assert batch["weight"] == pytest.approx(1.0, abs=1e-4)
        assert batch["engine_kl"] == pytest.approx(0.0, abs=1e-6)
