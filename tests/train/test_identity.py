"""The gate before the first step: each way to start from something else, stopped and named."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_project import (
    CONFIG,
    MakeProject,
    Project,
    drawn_pairs,
    logprobs_of,
    pair,
    question,
    save_windowed,
    written_pairs,
)
from torch import nn

from trueup.errors import IdentityError
from trueup.models import shared_prompt
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Completion, Dataset, PreferencePair, Release
from trueup.train import TrainConfig, policy, run
from trueup.train.data import Row, encode
from trueup.train.identity import check_identity
from trueup.train.policy import Policy

PromoteProject = Callable[[bool], Project]


@pytest.fixture
def promoted(make_project: MakeProject) -> PromoteProject:
    """A champion with an adapter, and pairs that it drew itself, or only written ones."""

    def make(has_own: bool) -> Project:
        project = make_project(written_pairs())
        first = project.train(CONFIG.model_copy(update={"learning_rate": 1e-2}))
        project.store.release(
            Release(action="promote", weights=first.weights, checkpoint_id=first.id)
        )
        champion = StoredModel.serving(project.store, project.champion.backbone)
        own = drawn_pairs(champion, seed=5) if has_own else []
        project.store.add_all(own)
        ids = [one.id for one in [*own, *written_pairs()]]
        dataset = Dataset(pair_ids=tuple(ids), source="loop")
        project.store.add(dataset)
        return Project(project.store, champion, dataset)

    return make


def rows_of(project: Project) -> list[Row]:
    pairs = project.store.get_all(PreferencePair, project.dataset.pair_ids)
    return encode(project.champion.backbone, pairs, max_tokens=CONFIG.max_tokens)[0]


def nothing_came_of_it(project: Project) -> bool:
    """One checkpoint is the champion's."""
    return project.store.count(Checkpoint) == 1


# --- what starts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has_own", "says"),
    [
        (True, "The starting policy is not the model that served"),
        (False, "The starting policy is not the champion"),
    ],
)
def test_a_fresh_adapter_in_place_of_the_champions_stops(
    promoted: PromoteProject, monkeypatch: pytest.MonkeyPatch, has_own: bool, says: str
) -> None:
    project = promoted(has_own)

    def fresh(backbone: Backbone, role: str, _: StoredModel, config: TrainConfig) -> None:
        backbone.new_adapter(role, rank=4, alpha=8.0, targets=["all-linear"], seed=config.seed)

    monkeypatch.setattr(policy, "_give_adapter", fresh)  # what a careless trainer does
    with pytest.raises(IdentityError, match=says) as caught:
        project.train()
    assert "adapter" in caught.value.next
    assert "dropout is off, dtype float32" in caught.value.next
    assert "log-probs differ by" in str(caught.value.got)
    assert caught.value.expected == "at most 0.0001"
    assert nothing_came_of_it(project)


def test_the_base_whole_in_place_of_the_merged_champion_stops(
    promoted: PromoteProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = promoted(False)
    monkeypatch.setattr(Backbone, "merge", lambda self, adapter: None)
    with pytest.raises(IdentityError, match="The starting policy is not the champion"):
        project.train(CONFIG.model_copy(update={"adapter": "full", "learning_rate": 1e-5}))
    assert nothing_came_of_it(project)


@contextmanager
def dropping(policy: Policy, how: str) -> Iterator[Any]:
    """The policy in training mode, with dropout in its adapter or in its attention."""
    with policy.acting() as model:
        for name, module in list(model.named_modules()):
            if how == "adapter" and name.endswith("lora_dropout"):
                module["policy"] = nn.Dropout(0.3)
            if how == "attention" and name.endswith("self_attn"):
                module.attention_dropout = 0.3
        model.train()
        try:
            yield model
        finally:
            model.eval()


@pytest.mark.parametrize(("how", "named"), [("adapter", "lora_dropout"), ("attention", "attn")])
@pytest.mark.parametrize("has_own", [True, False])
def test_a_policy_with_dropout_switched_on_stops_and_the_module_is_named(
    promoted: PromoteProject, how: str, named: str, has_own: bool
) -> None:
    project = promoted(has_own)
    start = Policy.start(project.champion, CONFIG)
    torch.manual_seed(0)
    with pytest.raises(IdentityError, match="The starting policy is not") as caught:
        check_identity(project.champion, lambda: dropping(start, how), rows_of(project), CONFIG)
    assert "dropout is on in" in caught.value.next
    assert named in caught.value.next


def test_an_adapter_that_was_trained_elsewhere_with_dropout_trains_without_it(
    promoted: PromoteProject,
) -> None:
    """Its config says so; what serves has none, and what trains is what serves."""
    import json

    project = promoted(True)
    assert project.champion.adapter
    file = project.champion.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_dropout": 0.5}))
    backbone = Backbone.load(project.champion.backbone.folder)
    weights = backbone.weights(project.champion.adapter)
    backbone.attach("champion", project.champion.adapter)
    champion = project.champion
    champion.backbone, champion.weights = backbone, weights
    metrics = project.train().metrics
    assert metrics["identity"]["policy_gap"] == 0.0
    again = project._replace(champion=champion)
    assert again.train().metrics["last"]["loss"] == metrics["last"]["loss"]


def test_a_champion_that_is_not_switched_on_stops(promoted: PromoteProject) -> None:
    """As where another part of the program left the base in its place."""
    project = promoted(False)
    start = Policy.start(project.champion, CONFIG)
    project.champion.role = None
    with pytest.raises(IdentityError, match="The starting policy is not the champion") as caught:
        check_identity(project.champion, start.acting, rows_of(project), CONFIG)
    assert "which adapter training starts from" in caught.value.next


# --- what computes --------------------------------------------------------------------------------


def test_a_kernel_that_does_not_fit_the_architecture_stops(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    """A window that is read as none: every policy agrees with every champion, and all are wrong."""
    folder = save_windowed(tmp_path / "mistral", tiny_model)
    store, dataset = (one := make_project(written_pairs())).store, one.dataset
    champion = StoredModel(store, Backbone.load(folder), None)
    monkeypatch.setattr(shared_prompt, "looks_back", lambda config: math.inf)
    monkeypatch.setattr(shared_prompt, "ROW_COST", 0)  # as in a model that is not tiny
    with pytest.raises(IdentityError, match="kernel disagrees with a plain forward pass") as caught:
        run(store, CONFIG, dataset, champion)
    assert "report its config" in caught.value.next
    assert store.count(Checkpoint) == 0


def test_a_kernel_that_goes_wrong_on_long_rows_alone_stops_too(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest row of the data set is looked at, wherever it stands."""
    from trueup.train import identity

    long = pair(question("sky"), Completion(text="blue " * 20), Completion(text="um " * 30))
    project = make_project([*written_pairs(), long])
    rows = rows_of(project)
    assert max(rows, key=lambda row: row.num_tokens) == rows[-1]
    real = identity.completion_logprobs

    def off(model: Any, branches: Any) -> Any:
        return [
            [one + 0.01 if len(asked.completions[0]) > 50 else one for one in row]
            for row, asked in zip(real(model, branches), branches, strict=True)
        ]

    monkeypatch.setattr(identity, "completion_logprobs", off)
    start = Policy.start(project.champion, CONFIG)
    with pytest.raises(IdentityError, match="kernel disagrees with a plain forward pass"):
        check_identity(project.champion, start.acting, rows, CONFIG)


def test_a_loss_that_is_not_its_closed_form_stops(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trueup.train import losses

    project = make_project()
    real = losses.dpo_loss

    def twice(*args: Any, **more: Any) -> losses.PreferenceLoss:
        found = real(*args, **more)
        return found._replace(losses=found.losses * 2)

    monkeypatch.setattr(losses, "dpo_loss", twice)
    with pytest.raises(IdentityError, match="first dpo loss is not what it must be") as caught:
        project.train()
    assert caught.value.got == pytest.approx(1.386294, abs=1e-5)
    assert "0.693147 within 1e-05" in caught.value.expected
    assert project.store.count(Checkpoint) == 0


# --- what passes ----------------------------------------------------------------------------------


def test_the_figures_of_a_good_start_are_told(promoted: PromoteProject) -> None:
    identity = promoted(True).train().metrics["identity"]
    assert identity["policy_gap"] == 0.0, "the same weights twice in one network: to the bit"
    assert 0 <= identity["kernel_gap"] <= 1e-4
    assert 0 <= identity["served_gap"] <= 1e-4
    assert 0 <= identity["reference_gap"] <= 1e-4
    assert identity["first_loss"] == pytest.approx(0.693147, abs=1e-6)


def test_looking_changes_nothing(promoted: PromoteProject) -> None:
    project = promoted(True)
    backbone = project.champion.backbone
    start = Policy.start(project.champion, CONFIG)
    before = logprobs_of(backbone, start.role), logprobs_of(backbone, project.champion.role)
    check_identity(project.champion, start.acting, rows_of(project), CONFIG)
    after = logprobs_of(backbone, start.role), logprobs_of(backbone, project.champion.role)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not any(module.training for module in backbone.model.modules())
