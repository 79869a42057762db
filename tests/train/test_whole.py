"""All weights train: a complete model in a folder, from exactly the champion, which stays so."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import (
    CONFIG,
    MakeProject,
    Project,
    drawn_pairs,
    fill,
    logprobs_of,
    pair,
    question,
    sha256,
    written_pairs,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from trueup.errors import ConfigError, IdentityError, ModelError
from trueup.models.backbone import base_weights
from trueup.models.stored import StoredModel
from trueup.promote import PromoteConfig
from trueup.records import (
    ABReport,
    Checkpoint,
    Completion,
    Dataset,
    EvalReport,
    GuardReport,
    PreferencePair,
    Release,
    Sampling,
    TrainingRun,
    Verdict,
)
from trueup.store import Store
from trueup.train import TrainConfig, run
from trueup.train.data import encode
from trueup.train.identity import check_identity
from trueup.train.policy import Policy

WHOLE = TrainConfig.model_validate(
    CONFIG.model_dump() | {"adapter": "full", "learning_rate": 5e-4, "save_every_steps": 2}
)


class Finished(NamedTuple):
    """A fully fine-tuned checkpoint, and what its champion said before."""

    project: Project
    checkpoint: Checkpoint
    before: torch.Tensor
    files: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.project.store.folder / self.checkpoint.path


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, pairs: list[PreferencePair], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    project = fill(Store(tmp_path_factory.mktemp("whole")), tiny_model, pairs)
    before = logprobs_of(project.champion.backbone, None)
    files = hashes(tiny_model)
    return Finished(project, project.train(WHOLE), before, files)


def serving(project: Project, checkpoint: Checkpoint) -> Project:
    """The project with this checkpoint as its champion, and its own samples to train on."""
    store = project.store
    store.release(
        Release(action="promote", weights=checkpoint.weights, checkpoint_id=checkpoint.id)
    )
    champion = StoredModel.serving(store, project.champion.backbone)
    own = drawn_pairs(champion, seed=5)
    store.add_all(own)
    dataset = Dataset(pair_ids=tuple(p.id for p in own), source="loop")
    store.add(dataset)
    return Project(store, champion, dataset)


# --- what comes out -------------------------------------------------------------------------------


def test_the_checkpoint_is_a_complete_model(finished: Finished) -> None:
    """Anybody's transformers loads it, tokenizer and template included."""
    assert {"config.json", "model.safetensors", "tokenizer.json", "card.json"} <= set(
        hashes(finished.folder)
    )
    assert not list(finished.folder.glob("adapter*"))
    model = AutoModelForCausalLM.from_pretrained(finished.folder)
    tokenizer = AutoTokenizer.from_pretrained(finished.folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "sky?"}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = asked if isinstance(asked, torch.Tensor) else asked["input_ids"]
    said = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "blue" in tokenizer.decode(said)


def test_it_is_named_by_what_it_holds_and_is_a_base_of_its_own(finished: Finished) -> None:
    checkpoint = finished.checkpoint
    assert checkpoint.weights == checkpoint.base_weights == base_weights(finished.folder)
    assert finished.folder.name == checkpoint.weights
    base = finished.project.champion.backbone.base_weights
    assert checkpoint.weights != base
    card = json.loads((finished.folder / "card.json").read_text())
    assert card["start_weights"] == base
    assert card["template"] == finished.project.champion.backbone.template
    assert card["run"]["id"] == checkpoint.run_id
    record = finished.project.store.get(TrainingRun, checkpoint.run_id)
    assert record.start_weights == record.ref_weights == record.base_weights == base


def test_it_loads_to_the_log_probs_it_was_trained_to(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the network in memory, bit for bit."""
    trained: list[torch.Tensor] = []
    real = Policy.save

    def noted(self: Policy, folder: Path, *, card: dict) -> str:
        trained.append(logprobs_of(self.backbone, self.role))
        return real(self, folder, card=card)

    monkeypatch.setattr(Policy, "save", noted)  # the run does not give its network away
    project = make_project()
    checkpoint = project.train(WHOLE)
    stored = StoredModel(project.store, project.champion.backbone, checkpoint.id)
    assert stored.weights == checkpoint.weights and stored.role is None
    assert torch.equal(logprobs_of(stored.backbone, stored.role), trained[0])
    base = project.champion.backbone
    assert not torch.allclose(logprobs_of(stored.backbone, None), logprobs_of(base, None))


def test_every_weight_has_moved(finished: Finished, tiny_model: Path) -> None:
    ours = load_file(finished.folder / "model.safetensors")
    theirs = load_file(tiny_model / "model.safetensors")
    assert ours.keys() == theirs.keys()
    still = [name for name, one in ours.items() if torch.equal(one, theirs[name])]
    assert still == []


def test_it_has_learned(finished: Finished) -> None:
    metrics = finished.checkpoint.metrics
    assert metrics["identity"]["first_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert metrics["last"]["loss"] < metrics["first"]["loss"] - 0.01
    assert metrics["last"]["margin"] > 0


def test_the_champion_is_what_it_was_in_memory_and_on_disk(
    finished: Finished, tiny_model: Path
) -> None:
    backbone = finished.project.champion.backbone
    assert torch.equal(logprobs_of(backbone, None), finished.before)
    assert hashes(tiny_model) == finished.files
    assert not hasattr(backbone.model, "peft_config")


def test_nothing_half_finished_is_left_behind(finished: Finished) -> None:
    folder = finished.project.store.folder
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [finished.checkpoint.weights]
    assert list((folder / "runs").iterdir()) == []


def test_again_returns_it_without_training(finished: Finished) -> None:
    files = hashes(finished.folder)
    assert finished.project.train(WHOLE) == finished.checkpoint
    assert hashes(finished.folder) == files


def test_it_answers_like_any_model_of_the_store(finished: Finished) -> None:
    stored = StoredModel(
        finished.project.store, finished.project.champion.backbone, finished.checkpoint.id
    )
    ((answer,),) = stored.complete([question("sky")], Sampling(max_tokens=12, temperature=0))
    assert answer.weights == finished.checkpoint.weights
    assert "blue" in answer.text


# --- the next turns -------------------------------------------------------------------------------


def test_from_a_champion_with_an_adapter_the_merged_start_is_the_champion(
    make_project: MakeProject,
) -> None:
    """Its product is added into the weights, which is the same to rounding."""
    project = make_project(written_pairs())
    champion = serving(project, project.train(CONFIG.model_copy(update={"learning_rate": 1e-2})))
    assert champion.champion.adapter
    said = logprobs_of(champion.champion.backbone, champion.champion.role)
    checkpoint = champion.train(WHOLE)
    identity = checkpoint.metrics["identity"]
    assert 0 < identity["policy_gap"] <= 1e-4
    assert identity["served_gap"] <= 1e-4
    assert identity["first_loss"] == pytest.approx(0.693147, abs=1e-5)
    record = champion.store.get(TrainingRun, checkpoint.run_id)
    assert record.start_weights == champion.champion.weights
    assert torch.equal(logprobs_of(champion.champion.backbone, champion.champion.role), said), (
        "the champion keeps its adapter"
    )
    folder = champion.store.folder / checkpoint.path
    assert not list(folder.glob("adapter*"))
    assert base_weights(folder) == checkpoint.weights


@pytest.mark.parametrize(
    ("method", "beta"),
    [("dpo", 0.05), ("dpo", 0.5), ("dpo", 3.0), ("ipo", 0.05), ("ipo", 1.0), ("hinge", 1.0)],
)
def test_a_merged_start_passes_the_check_with_long_answers_and_any_beta(
    make_project: MakeProject, method: str, beta: float
) -> None:
    """Rounding adds up over hundreds of tokens, and beta multiplies it: still the same model."""
    project = make_project(written_pairs())
    champion = serving(project, project.train(CONFIG.model_copy(update={"learning_rate": 2e-2})))
    long = [
        pair(
            question(thing),
            Completion(text=f"the {thing} is blue and green. " * 14),
            Completion(text=f"um, the {thing} is white and black " * 12),
        )
        for thing in ("sky", "leaf", "coal", "snow")
    ]
    policy = Policy.start(champion.champion, WHOLE)
    rows, skipped = encode(policy.backbone, long, max_tokens=2048)
    assert not skipped and min(row.num_tokens for row in rows) > 700
    config = WHOLE.model_copy(update={"method": method, "beta": beta})
    figures = check_identity(champion.champion, policy.acting, rows, config)
    assert 0 < figures["policy_gap"] <= 1e-4


def test_a_whole_champion_is_the_base_of_the_next_adapter(make_project: MakeProject) -> None:
    project = make_project()
    whole = serving(project, project.train(WHOLE))
    second = whole.train(CONFIG)
    assert second.base_weights == whole.champion.weights
    assert second.metrics["identity"]["served_gap"] <= 1e-4
    third = serving(whole, second)
    assert third.champion.weights == second.weights
    assert third.champion.adapter and third.champion.backbone is whole.champion.backbone


def test_a_whole_champion_can_be_trained_whole_again(make_project: MakeProject) -> None:
    project = make_project()
    whole = serving(project, project.train(WHOLE))
    again = whole.train(WHOLE)
    assert again.metrics["identity"]["first_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert len({again.weights, whole.champion.weights}) == 2


def test_a_changed_file_is_not_the_champion(make_project: MakeProject) -> None:
    project = make_project()
    checkpoint = project.train(WHOLE)
    file = project.store.folder / checkpoint.path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IdentityError, match="are not the ones that were written"):
        StoredModel(project.store, project.champion.backbone, checkpoint.id)


# --- what it refuses ------------------------------------------------------------------------------


def test_a_moving_average_of_all_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="reference 'ema' needs an adapter"):
        TrainConfig(adapter="full", reference="ema")
    assert issubclass(ConfigError, ValueError)


def test_an_adapter_of_the_old_base_does_not_fit_the_new_one(make_project: MakeProject) -> None:
    project = make_project(written_pairs())
    adapter = project.train(CONFIG)
    whole = serving(project, project.train(WHOLE))
    with pytest.raises(ModelError, match=r"belongs to another base model|not the ones") as caught:
        run(
            whole.store,
            CONFIG.model_copy(update={"reference": adapter.id}),
            whole.dataset,
            whole.champion,
        )
    assert whole.champion.weights in str(caught.value) or "were written" in str(caught.value)


def test_a_whole_checkpoint_that_passed_every_gate_becomes_champion(finished: Finished) -> None:
    """And one whose file was changed does not."""
    from trueup import promote

    store, checkpoint = finished.project.store, finished.checkpoint
    champion = store.champion()
    against = champion.weights if champion else finished.project.champion.weights
    reports = {
        name: kind(
            checkpoint_id=checkpoint.id,
            champion=against,
            verdict=Verdict(gate=name, status="passed", reason="for this test"),
        )
        for name, kind in (("guard", GuardReport), ("evaluate", EvalReport), ("ab", ABReport))
    }
    store.add_all(reports.values())
    file = finished.folder / "model.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-4] + b"\0\0\0\1")
    refused = promote.run(store, PromoteConfig(), checkpoint, reports)
    assert refused.status == "refused" and "changed" in refused.reason
    file.write_bytes(kept)
    assert promote.run(store, PromoteConfig(), checkpoint, reports).passed
