"""A step is a step: in one pass or in many, with activations kept or computed again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import CONFIG, MakeProject, Project, reference_of, save_windowed
from torch import Tensor

from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Dataset, PreferencePair
from trueup.train import TrainConfig, run
from trueup.train.config import Method
from trueup.train.data import Row, encode, split
from trueup.train.objectives import KTO, SFT, Objective, Preference
from trueup.train.reference import NoReference
from trueup.train.step import budget

SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "ipo": {},
    "ld_dpo": {},
    "simpo": {"beta": 2.0},
    "kto": {},
    "sft": {},
    "wpo": {"method": "dpo", "weighting": "wpo"},
    "sum": {"method": "dpo", "plus": {"sft": 0.5, "orpo": 1.0}},
}


def setting(name: str) -> TrainConfig:
    return TrainConfig.model_validate(CONFIG.model_dump() | {"method": name} | SETTINGS[name])


def rows_of(project: Project) -> list[Row]:
    return encode(
        project.champion.backbone, project.store.all(PreferencePair), max_tokens=CONFIG.max_tokens
    )[0]


def objective_of(project: Project, config: TrainConfig, rows: list[Row]) -> Objective:
    if config.method == "sft":
        return SFT()
    if config.method == "simpo":
        return Preference(config, NoReference())
    reference = reference_of(project, rows)
    return KTO(config, reference) if config.method == "kto" else Preference(config, reference)


def away(backbone: Backbone) -> dict[str, torch.nn.Parameter]:
    """An adapter that has left its start, and learns."""
    backbone.new_adapter("away", rank=4, alpha=8.0, targets=["all-linear"], seed=3)
    noise = torch.Generator().manual_seed(4)
    parameters = {n: p for n, p in backbone.model.named_parameters() if ".away." in n}
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(0.03 * torch.randn(parameter.shape, generator=noise))
    return parameters


def gradient(
    project: Project, objective: Objective, rows: list[Row], groups: list[list[Row]]
) -> tuple[float, Tensor]:
    """A step's loss, and its gradient as one long vector."""
    backbone = project.champion.backbone
    parameters = away(backbone)
    loss = 0.0
    with backbone.acting_as("away") as model:
        objective.prepare(model, rows, 512)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for group in groups:
            part = objective.group_loss(model, group)[0] / objective.total(rows)
            part.backward()
            loss += float(part.detach())
    return loss, torch.cat([p.grad.reshape(-1) for p in parameters.values() if p.grad is not None])


@pytest.mark.parametrize("name", SETTINGS)
def test_eight_rows_in_one_pass_are_eight_passes_of_one(
    make_project: MakeProject, name: str
) -> None:
    project = make_project()
    rows = rows_of(project)[-12:-4]
    assert len(rows) == 8 and len({row.num_tokens for row in rows}) > 2
    objective = objective_of(project, setting(name), rows)
    loss, whole = gradient(project, objective, rows, [rows])
    for groups in ([[row] for row in rows], [rows[:3], rows[3:]], split(rows, tokens_per_batch=1)):
        again, pieces = gradient(project, objective, rows, groups)
        assert again == pytest.approx(loss, rel=1e-6)
        assert float(whole.norm()) > 1e-3
        assert float((pieces - whole).norm() / whole.norm()) < 1e-6


@pytest.mark.parametrize("name", ["dpo", "kto", "wpo"])
def test_computing_activations_again_gives_the_same_adapter(
    make_project: MakeProject, name: str
) -> None:
    found = {}
    for checkpointing in (False, True):
        project = make_project(name=f"store {checkpointing}")
        config = setting(name).model_copy(update={"checkpointing": checkpointing})
        found[checkpointing] = load_file(project.adapter(project.train(config)))
    assert found[True].keys() == found[False].keys()
    for tensor_name, tensor in found[False].items():
        assert torch.allclose(found[True][tensor_name], tensor, atol=1e-6, rtol=0), tensor_name


def test_checkpoints_and_a_sliding_window_give_the_same_adapter(
    tiny_model: Path, tmp_path: Path, make_project: MakeProject
) -> None:
    """A window shorter than the rows; only where each answer runs behind its own prompt do both
    agree, and the identity gate compares with transformers' own pass."""
    folder = save_windowed(tmp_path / "mistral", tiny_model)
    found = []
    for checkpointing in (False, True):
        store = make_project(name=f"store {checkpointing}").store
        champion = StoredModel(store, Backbone.load(folder), None)
        settings = CONFIG.model_copy(update={"checkpointing": checkpointing, "reference": "base"})
        checkpoint = run(store, settings, store.all(Dataset)[0], champion)
        assert checkpoint.metrics["identity"]["kernel_gap"] <= 1e-5
        found.append(load_file(store.folder / checkpoint.path / "adapter_model.safetensors"))
    for name, tensor in found[0].items():
        assert torch.allclose(found[1][name], tensor, atol=1e-6, rtol=0), name


def test_the_budget_of_a_pass_is_the_devices_unless_it_is_set() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert budget(CONFIG, cpu) == 512
    assert budget(CONFIG, gpu) == 16_384
    said = CONFIG.model_copy(update={"tokens_per_batch": 100})
    assert budget(said, cpu) == budget(said, gpu) == 100


def test_the_default_budget_is_used(make_project: MakeProject) -> None:
    """Said or not, the same bits; another budget, other roundings."""
    weights = [
        make_project(name=f"store {tokens}")
        .train(CONFIG.model_copy(update={"tokens_per_batch": tokens}))
        .weights
        for tokens in (None, 512, 64)
    ]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("method", ["dpo", "kto", "sft"])
def test_a_last_step_with_fewer_rows_counts_each_row_as_much(
    make_project: MakeProject, method: Method
) -> None:
    """All rows but one in the first step: the loss of the second is that row's alone."""
    project = make_project()
    rows = rows_of(project)
    config = setting(method).model_copy(update={"learning_rate": 1e-9, "epochs": 1})
    every = project.train(config.model_copy(update={"pairs_per_step": 1})).metrics["history"]
    steps = project.train(
        config.model_copy(update={"pairs_per_step": len(rows) - 1, "max_grad_norm": 2.0})
    ).metrics["history"]
    assert len(every) == len(rows) and len(steps) == 2
    assert steps[1]["loss"] == pytest.approx(every[-1]["loss"], abs=1e-5)
