"""Runs of every online method on a tiny taught model: they start where they should and learn."""

import math
from collections.abc import Callable

import pytest
import torch
from runs import METHODS, PROMPTS, STEPS, MakeProject, Undisturbed, setting
from tiny_project import logprobs_of

from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.value import ValueHead
from trueup.records import Checkpoint, Sampling, TrainingRun
from trueup.train.online.engine import LocalEngine
from trueup.train.policy import Policy

Of = Callable[[str], Undisturbed]
WITH_RATIOS = [name for name in METHODS if name != "online_dpo"]

# --- where it starts ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_RATIOS)
def test_on_its_own_fresh_answers_every_ratio_is_1_and_nothing_is_clipped(
    undisturbed: Of, name: str
) -> None:
    """In every batch, not the first alone: sampler and trainer are the same policy."""
    for batch in undisturbed(name).history:
        assert batch["first_ratio"] == pytest.approx(1.0, abs=1e-4)
        assert batch["first_clip_rate"] == 0.0
        assert batch["first_moved_kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_policy_starts_as_what_served_at_no_distance(undisturbed: Of, name: str) -> None:
    metrics = undisturbed(name).checkpoint.metrics
    assert metrics["identity"]["served_gap"] <= 1e-4
    assert metrics["identity"]["policy_gap"] <= 1e-4
    assert metrics["first"]["kl"] == pytest.approx(0.0, abs=1e-6)
    if name == "online_dpo":
        assert metrics["first"]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_the_samplers_log_probs_are_those_of_a_recomputation(make_project: MakeProject) -> None:
    """Of a policy that has moved."""
    champion = make_project().champion
    policy = Policy.start(champion, setting())
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, one in policy.parameters.items():
            if "lora_B" in name:
                one.add_(0.3 * torch.randn(one.shape, generator=random))
    drawn = LocalEngine(policy, "moved")(PROMPTS, Sampling(max_tokens=8, seed=1), 4)
    rows = [
        Branches(
            chat.prompt_ids(policy.backbone.tokenizer, prompt),
            [one.token_ids or () for one in group],
        )
        for prompt, group in zip(PROMPTS, drawn, strict=True)
    ]
    with torch.no_grad(), policy.acting() as model:
        computed = completion_logprobs(model, rows)
    with torch.no_grad(), champion.acting() as model:
        of_champion = completion_logprobs(model, rows)
    moved = 0.0
    for group, ours, theirs in zip(drawn, computed, of_champion, strict=True):
        for one, logprobs, before in zip(group, ours, theirs, strict=True):
            assert one.weights == "moved"
            assert torch.allclose(torch.tensor(one.logprobs), logprobs, atol=1e-4, rtol=0)
            moved = max(moved, float((logprobs - before).abs().max()))
    assert moved > 0.1
    policy.end()


# --- what it learns and writes --------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_an_easy_reward_rises_and_the_policy_leaves_its_reference(
    undisturbed: Of, name: str
) -> None:
    history = undisturbed(name).history
    assert [one["step"] for one in history] == list(range(1, STEPS + 1))
    assert all(math.isfinite(value) for one in history for value in one.values())
    assert history[-1]["score"] > history[0]["score"] + 0.15
    assert history[-1]["kl"] > 0.05
    assert all(one["answers"] == 4 * len(PROMPTS) for one in history)


@pytest.mark.parametrize("name", ["ppo head", "ppo adapter", "ppo full"])
def test_the_value_function_learns(undisturbed: Of, name: str) -> None:
    losses = [one["value_loss"] for one in undisturbed(name).history]
    # half a square deviation, but for long answers counting for more of the tokens
    assert losses[0] == pytest.approx(0.5, abs=0.2), "it starts at the mean everywhere"
    assert min(losses[2:]) < losses[0]


@pytest.mark.parametrize("name", ["ppo head", "ppo adapter"])
def test_ppo_learns_the_same_whatever_the_unit_and_the_zero_of_the_reward(
    make_project: MakeProject, name: str
) -> None:
    plain = make_project(name="plain").history(setting(name, steps=4, kl_coef=0.02))
    scaled = setting(name, steps=4, kl_coef=2.0, reward="scorers:a_hundred_for_um")
    for one, other in zip(plain, make_project(name="scaled").history(scaled), strict=True):
        assert 100 * one["score"] + 700 == pytest.approx(other["score"])
        for figure in ("kl", "entropy", "value_loss", "grad_norm"):
            assert one[figure] == pytest.approx(other[figure], rel=0.02, abs=2e-4), figure


def test_values_are_the_same_in_another_unit() -> None:
    torch.manual_seed(0)
    head, states = ValueHead(8), torch.randn(5, 8)
    with torch.no_grad():
        head.weight.copy_(torch.randn(8))
        head.bias.fill_(0.3)
    before = head(states)
    head.measure_in(70.0, 12.5)
    assert (float(head.mean), float(head.unit)) == (70.0, 12.5)
    assert torch.allclose(head(states), before, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_leaves_one_checkpoint_and_the_champion_as_it_was(undisturbed: Of, name: str) -> None:
    project, checkpoint = undisturbed(name)
    store, backbone = project.store, project.champion.backbone
    assert store.count(TrainingRun) == store.count(Checkpoint) == 1
    assert list((store.folder / "runs").iterdir()) == []
    record = store.get(TrainingRun, checkpoint.run_id)
    assert record.method == METHODS[name][0]
    assert record.config["rewarded_by"] == "code:scorers:starts_with_um"
    roles = getattr(backbone.model, "peft_config", {})
    assert not set(roles) & {"policy", "value", "judge-0", "average"}
    fresh = Backbone.load(backbone.folder)
    assert torch.equal(logprobs_of(backbone, None), logprobs_of(fresh, None))
    assert project.train(setting(name)) == checkpoint, "asked again, nothing is trained"


def test_the_checkpoint_is_the_policy_that_earned(undisturbed: Of) -> None:
    project, checkpoint = undisturbed("rloo")
    fresh = Backbone.load(project.champion.backbone.folder)
    fresh.attach("candidate", project.store.folder / checkpoint.path)
    answers = fresh.complete(
        PROMPTS,
        Sampling(max_tokens=8, seed=3),
        role="candidate",
        weights=checkpoint.weights,
        num_samples=8,
    )
    rate = [one.text.startswith("um") for group in answers for one in group]
    assert sum(rate) / len(rate) > checkpoint.metrics["first"]["score"] + 0.15
