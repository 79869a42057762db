"""Training: from exactly the champion, the same however it is split, stopped or resumed.

A tiny taught model on the CPU. Half of the pairs are the champion's own samples with their
log-probs, half are plain text from a file; stopped runs are real processes and real signals.
"""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_project import (
    ADAPTER,
    CONFIG,
    STOPPABLE,
    MakeProject,
    Project,
    Trained,
    drawn_pairs,
    fill,
    heard,
    logprobs_of,
    pair,
    question,
    reference_of,
    sha256,
    stop_in_the_middle,
    written_pairs,
)

from trueup.errors import DataError, IdentityError, ModelError, TrainingError
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.models.tiny import save_tiny
from trueup.records import Checkpoint, Completion, Dataset, PreferencePair, Release, TrainingRun
from trueup.store import Store
from trueup.train import run
from trueup.train.data import WASTE, encode, order, split
from trueup.train.fit import fit
from trueup.train.identity import check_identity
from trueup.train.objectives import Preference
from trueup.train.policy import Policy

# --- where it starts ------------------------------------------------------------------------------


def test_the_first_loss_is_log_2_and_the_policy_is_what_was_served(trained: Trained) -> None:
    identity = trained.checkpoint.metrics["identity"]
    assert identity["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert 0 <= identity["served_gap"] <= 1e-4
    assert trained.checkpoint.metrics["first"]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_without_the_champions_own_samples_the_first_loss_is_checked_all_the_same(
    make_project: MakeProject,
) -> None:
    identity = make_project(written_pairs()).train().metrics["identity"]
    assert identity["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "served_gap" not in identity


def test_a_fresh_adapter_starts_as_the_base_to_the_bit(tiny_model: Path) -> None:
    backbone = Backbone.load(tiny_model)
    before = logprobs_of(backbone, None)
    backbone.new_adapter("policy", rank=4, alpha=8.0, targets=["all-linear"], seed=0)
    assert torch.equal(logprobs_of(backbone, "policy"), before)


def test_the_next_turn_continues_the_champions_adapter(
    make_project: MakeProject, tiny_model: Path
) -> None:
    project = make_project(written_pairs())
    first = project.train()
    project.store.release(Release(action="promote", weights=first.weights, checkpoint_id=first.id))
    champion = StoredModel.serving(project.store, Backbone.load(tiny_model))
    assert champion.weights == first.weights
    next_pairs = drawn_pairs(champion, seed=9)
    project.store.add_all(next_pairs)
    dataset = Dataset(pair_ids=tuple(p.id for p in next_pairs), source="loop")
    second = run(project.store, CONFIG.model_copy(update={"lora_rank": 16}), dataset, champion)
    assert second.metrics["identity"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second.metrics["identity"]["served_gap"] <= 1e-4
    assert second.weights not in (first.weights, champion.backbone.base_weights)
    record = project.store.get(TrainingRun, second.run_id)
    assert record.start_weights == record.ref_weights == first.weights
    kept = json.loads((project.adapter(second).parent / "adapter_config.json").read_text())
    assert kept["r"] == CONFIG.lora_rank, "a later adapter keeps the champion's rank"


# --- a start that is not the champion -------------------------------------------------------------


def bend(adapter: Path, by: float = 1.05) -> None:
    """Scale every B matrix of an adapter file."""
    tensors = load_file(adapter)
    save_file({n: t * by if "lora_B" in n else t for n, t in tensors.items()}, adapter)


def promoted(make_project: MakeProject) -> tuple[Project, Checkpoint]:
    """A champion with an adapter, and a data set of its own samples."""
    project = make_project(written_pairs())
    checkpoint = project.train()
    project.store.release(
        Release(action="promote", weights=checkpoint.weights, checkpoint_id=checkpoint.id)
    )
    champion = StoredModel.serving(project.store, project.champion.backbone)
    own = drawn_pairs(champion, seed=5)
    project.store.add_all(own)
    dataset = Dataset(pair_ids=tuple(p.id for p in own), source="loop")
    return Project(project.store, champion, dataset), checkpoint


def test_an_adapter_changed_on_disk_is_not_the_champion(make_project: MakeProject) -> None:
    project, checkpoint = promoted(make_project)
    bend(project.adapter(checkpoint))
    with pytest.raises(IdentityError, match="are not the ones that were written"):
        StoredModel.serving(project.store, project.champion.backbone)


def test_an_adapter_cut_off_on_disk_is_not_the_champion_either(make_project: MakeProject) -> None:
    project, checkpoint = promoted(make_project)
    adapter = project.adapter(checkpoint)
    adapter.write_bytes(adapter.read_bytes()[:-100])
    with pytest.raises(IdentityError, match="are not the ones that were written"):
        StoredModel.serving(project.store, project.champion.backbone)


def test_an_adapter_changed_after_the_champion_was_loaded_stops_the_training(
    make_project: MakeProject,
) -> None:
    project, checkpoint = promoted(make_project)
    bend(project.adapter(checkpoint))
    with pytest.raises(IdentityError, match="starting policy is not the model that served"):
        project.train()
    assert project.store.count(Checkpoint) == 1


def test_a_changed_start_is_noticed_without_any_served_log_prob(make_project: MakeProject) -> None:
    project, checkpoint = promoted(make_project)
    bend(project.adapter(checkpoint))
    plain = written_pairs()
    project.store.add_all(plain)
    dataset = Dataset(pair_ids=tuple(p.id for p in plain), source="file:plain.jsonl")
    with pytest.raises(IdentityError, match="starting policy is not the champion"):
        run(project.store, CONFIG, dataset, project.champion)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("by", [0.001, -0.5])
def test_stored_log_probs_that_the_champion_did_not_give_stop_the_training(
    make_project: MakeProject, pairs: list[PreferencePair], side: str, by: float
) -> None:
    honest = getattr(pairs[0], side)
    logprobs = (honest.logprobs[0] + by, *honest.logprobs[1:])
    altered = honest.model_copy(update={"logprobs": logprobs})
    sides = {"chosen": pairs[0].chosen, "rejected": pairs[0].rejected, side: altered}
    project = make_project([pair(pairs[0].prompt, **sides), *pairs[1:]])
    with pytest.raises(IdentityError, match=r"differs? by .* Expected at most 0\.0001"):
        project.train()
    assert project.store.count(Checkpoint) == 0


def test_another_chat_template_than_the_one_that_served_stops_the_training(
    make_project: MakeProject,
) -> None:
    project = make_project()
    tokenizer = project.champion.backbone.tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace("\n", " ")
    with pytest.raises(IdentityError, match="chat template"):
        project.train()


def test_log_probs_of_other_weights_are_nobodys_evidence(
    make_project: MakeProject, pairs: list[PreferencePair]
) -> None:
    """Samples of last month's model are trained on, but what it thought of them is not used."""
    old = pairs[0].chosen.model_copy(update={"weights": "weights_old", "logprobs": (-9.0,)})
    project = make_project([pair(pairs[0].prompt, old, pairs[0].rejected), *written_pairs()])
    tasks: dict[str, int] = {}
    with heard(tasks):
        project.train()
    assert tasks["reference"] == 1 + len(written_pairs())


# --- what it learns and writes --------------------------------------------------------------------


def test_training_raises_the_margin(trained: Trained) -> None:
    metrics = trained.checkpoint.metrics
    assert metrics["first"]["margin"] == pytest.approx(0, abs=1e-3)
    assert metrics["last"]["margin"] > 0.05
    assert metrics["last"]["loss"] < metrics["first"]["loss"] - 0.02
    steps = math.ceil(metrics["num_pairs"] / CONFIG.pairs_per_step) * CONFIG.epochs
    assert [one["step"] for one in metrics["history"]] == list(range(1, steps + 1))


def test_the_checkpoint_names_everything_it_came_from(trained: Trained, tiny_model: Path) -> None:
    project, checkpoint = trained
    store, backbone = project.store, project.champion.backbone
    record = store.get(TrainingRun, checkpoint.run_id)
    assert store.parents(checkpoint.id) == [record]
    assert record.dataset_id == project.dataset.id
    assert (
        record.start_weights == record.ref_weights == record.base_weights == backbone.base_weights
    )
    assert record.template == backbone.template
    expected = {name: value for name, value in CONFIG.outcome().items() if name != "online"}
    assert record.config == expected and "save_every_steps" not in expected
    assert checkpoint.weights == backbone.weights(trained.folder)
    card = json.loads((trained.folder / "card.json").read_text())
    assert card["base_weights"] == backbone.base_weights
    assert card["run"]["id"] == record.id
    assert Backbone.load(tiny_model).base_weights == backbone.base_weights, "the base is untouched"


def test_nothing_half_finished_is_left_behind(trained: Trained) -> None:
    folder = trained.project.store.folder
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [trained.checkpoint.weights]
    assert list((folder / "runs").iterdir()) == []
    assert {p.name for p in trained.folder.iterdir()} == {
        ADAPTER,
        "adapter_config.json",
        "card.json",
    }


def test_after_training_the_champion_still_says_what_it_said(trained: Trained) -> None:
    backbone = trained.project.champion.backbone
    assert torch.equal(
        logprobs_of(backbone, trained.project.champion.role),
        logprobs_of(Backbone.load(backbone.folder), None),
    )


def test_a_second_run_returns_the_same_checkpoint_without_training(trained: Trained) -> None:
    tasks: dict[str, int] = {}
    written = sha256(trained.folder / ADAPTER), (trained.folder / ADAPTER).stat().st_mtime_ns
    with heard(tasks):
        again = trained.project.train()
    assert again == trained.checkpoint
    assert tasks == {}
    assert written == (
        sha256(trained.folder / ADAPTER),
        (trained.folder / ADAPTER).stat().st_mtime_ns,
    )


def test_other_settings_are_another_run(make_project: MakeProject) -> None:
    project = make_project(written_pairs())
    first = project.train()
    second = project.train(CONFIG.model_copy(update={"beta": 0.3}))
    assert first.run_id != second.run_id
    assert project.store.count(TrainingRun) == project.store.count(Checkpoint) == 2


def test_a_checkpoint_reloads_to_the_very_same_log_probs(
    make_project: MakeProject, tmp_path: Path, tiny_model: Path
) -> None:
    project = make_project()
    backbone = project.champion.backbone
    policy = Policy.start(project.champion, CONFIG)
    rows, _ = encode(backbone, project.store.all(PreferencePair), max_tokens=CONFIG.max_tokens)
    objective = Preference(CONFIG, reference_of(project, rows))
    fit(policy.acting, policy.parameters, rows, objective, CONFIG, tmp_path / "states")
    (tmp_path / "adapter").mkdir()
    weights = backbone.save_adapter("policy", tmp_path / "adapter", card={})
    fresh = Backbone.load(tiny_model)
    fresh.attach("candidate", tmp_path / "adapter")
    assert fresh.weights(tmp_path / "adapter") == weights
    assert torch.equal(logprobs_of(fresh, "candidate"), logprobs_of(backbone, "policy"))
    assert not torch.equal(logprobs_of(fresh, "candidate"), logprobs_of(fresh, None))


# --- the same however it is split -----------------------------------------------------------------


def test_splitting_a_step_into_passes_changes_nothing(make_project: MakeProject) -> None:
    """One pair a pass against all pairs of a step in one pass."""
    found = {}
    for tokens in (64, 100_000):
        project = make_project(name=f"store {tokens}")
        checkpoint = project.train(CONFIG.model_copy(update={"tokens_per_batch": tokens}))
        found[tokens] = load_file(project.adapter(checkpoint))
    assert found[64].keys() == found[100_000].keys()
    for name, tensor in found[64].items():
        assert torch.allclose(tensor, found[100_000][name], atol=1e-5, rtol=0), name


def test_a_group_stays_within_its_budget_and_every_row_is_in_one(make_project: MakeProject) -> None:
    project = make_project()
    rows, _ = encode(project.champion.backbone, project.store.all(PreferencePair), max_tokens=2048)
    for budget in (1, 150, 400, 10**6):
        groups = split(rows, tokens_per_batch=budget)
        assert sorted(r.id for g in groups for r in g) == sorted(r.id for r in rows)
        for group in groups:
            assert len(group) == 1 or len(group) * max(r.num_tokens for r in group) <= budget
    alike = [rows[0]] * 5
    assert len(split(alike, tokens_per_batch=10**6)) == 1


def test_a_group_of_its_own_is_taken_where_padding_would_cost_more(
    make_project: MakeProject,
) -> None:
    rows, _ = encode(
        make_project().champion.backbone,
        [
            pair(question("a"), Completion(text="x" * size), Completion(text="y"))
            for size in (300, 10, 9, 8)
        ],
        max_tokens=2048,
    )
    groups = split(rows, tokens_per_batch=10**6)
    assert [len(g) for g in groups] == [1, 3]
    for group in groups:
        padded = len(group) * max(r.num_tokens for r in group)
        assert padded <= WASTE * sum(r.num_tokens for r in group)


def test_an_epochs_order_is_a_function_of_the_seed() -> None:
    first = order(50, epoch=0, seed=3)
    assert sorted(first) == list(range(50))
    assert first == order(50, epoch=0, seed=3)
    others = [order(50, epoch=1, seed=3), order(50, epoch=0, seed=4), list(range(50))]
    assert first not in others


# --- the same however it is stopped ---------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_model: Path, pairs: list[PreferencePair], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Hash of the adapter file when nothing goes wrong."""
    project = fill(Store(tmp_path_factory.mktemp("whole")), tiny_model, pairs)
    return sha256(project.adapter(project.train(STOPPABLE)))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_run_resumes_to_the_same_adapter_bit_for_bit(
    make_project: MakeProject, uninterrupted: str, how: signal.Signals
) -> None:
    project = make_project()
    before = stop_in_the_middle(project, how)
    assert project.store.count(Checkpoint) == 0
    assert project.store.count(TrainingRun) == 1
    (run_folder,) = (project.store.folder / "runs").iterdir()
    half = run_folder / ".step-99"  # what a kill in the middle of saving leaves
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"cut off")
    checkpoint = project.train(STOPPABLE)
    history = checkpoint.metrics["history"]
    assert 0 < len(before) < len(history)
    assert history[: len(before)] == before, "the first steps were not done again"
    assert sha256(project.adapter(checkpoint)) == uninterrupted
    assert project.store.count(TrainingRun) == project.store.count(Checkpoint) == 1


# --- what it refuses ------------------------------------------------------------------------------


def test_an_adapter_in_pickle_is_refused_unread(trained: Trained, tmp_path: Path) -> None:
    """The file would run a command if anything unpickled it."""
    folder, trap = tmp_path / "adapter", tmp_path / "sprung"
    folder.mkdir()
    config = (trained.folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config)
    torch.save(_Trap(str(trap)), folder / "adapter_model.bin")
    backbone = trained.project.champion.backbone
    with pytest.raises(ModelError, match="pickled files are refused"):
        backbone.attach("candidate", folder)
    assert not trap.exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_an_adapter_of_another_base_is_refused(trained: Trained, tmp_path: Path) -> None:
    other = Backbone.load(save_tiny(tmp_path / "other", seed=5, hidden_size=48))
    with pytest.raises(ModelError, match="belongs to another base model") as caught:
        other.attach("candidate", trained.folder)
    assert caught.value.got == trained.checkpoint.base_weights
    assert caught.value.expected == other.base_weights


def test_a_learning_rate_that_breaks_the_numbers_stops_the_training(
    make_project: MakeProject,
) -> None:
    project = make_project(written_pairs())
    absurd = CONFIG.model_copy(update={"learning_rate": 1e30, "save_every_steps": 1})
    with pytest.raises(TrainingError, match=r"broke at step [2-9].*lower train\.learning_rate"):
        project.train(absurd)
    assert project.store.count(Checkpoint) == 0
    assert not (project.store.folder / "checkpoints").exists()
    assert project.train().metrics["last"]["margin"] > 0, "sane settings train as if nothing was"


def test_what_cannot_be_trained_on_is_skipped_and_counted(
    make_project: MakeProject, pairs: list[PreferencePair]
) -> None:
    good, cut = (
        Completion(text="blue.", finish_reason="stop"),
        Completion(text="", finish_reason="length"),
    )
    same = Completion(text="other words", token_ids=pairs[0].chosen.token_ids)
    bad = [
        pair(question("a"), good, cut),
        pair(question("b"), pairs[0].chosen, same),
        pair(question("c"), good, Completion(text="x" * 400)),
    ]
    project = make_project([*written_pairs(), *bad])
    with pytest.raises(DataError, match="--allow equal-pair"):
        project.train(CONFIG.model_copy(update={"max_tokens": 200}))
    allowed = CONFIG.model_copy(update={"max_tokens": 200, "allow": ("equal-pair",)})
    metrics = project.train(allowed).metrics
    assert metrics["num_pairs"] == len(written_pairs())
    assert metrics["skipped"] == {
        "empty completion": 1,
        "chosen equals rejected": 1,
        "longer than train.max_tokens": 1,
    }


def test_a_data_set_with_nothing_to_train_on_is_an_error(make_project: MakeProject) -> None:
    with pytest.raises(TrainingError, match="no pair to train on"):
        make_project([]).train()
    with pytest.raises(TrainingError, match=r"longer than train\.max_tokens"):
        make_project(written_pairs(), name="b").train(CONFIG.model_copy(update={"max_tokens": 16}))


# --- tokens and references ------------------------------------------------------------------------


def test_the_loss_is_on_the_completion_and_its_end_and_nothing_is_cut(
    make_project: MakeProject, pairs: list[PreferencePair]
) -> None:
    backbone = make_project().champion.backbone
    text = Completion(text="blue.", finish_reason="stop")
    cut = Completion(text="blue", finish_reason="length")
    (row,), _ = encode(backbone, [pair(question("sky"), text, cut)], max_tokens=2048)
    end = backbone.tokenizer.eos_token_id
    assert row.branches.completions[0][-1] == end
    assert row.branches.completions[1][-1] != end, "what was cut off did not end"
    assert backbone.tokenizer.decode(row.branches.completions[0]) == "blue.<|im_end|>"
    assert backbone.tokenizer.decode(row.branches.prompt_ids) == (
        "<|im_start|>user\nsky?<|im_end|>\n<|im_start|>assistant\n"
    )
    (drawn,), _ = encode(backbone, [pairs[0]], max_tokens=2048)
    assert tuple(drawn.branches.completions[0]) == pairs[0].chosen.token_ids


def test_the_champions_own_samples_need_no_reference_pass_and_come_to_the_same(
    make_project: MakeProject, pairs: list[PreferencePair]
) -> None:
    project = make_project()
    drawn = [p for p in pairs if p.chosen.weights]
    assert len(drawn) >= 4
    tasks: dict[str, int] = {}
    rows, _ = encode(project.champion.backbone, drawn, max_tokens=2048)
    with heard(tasks):
        free = reference_of(project, rows)
    assert tasks["reference"] == 0
    assert free.sources == {"stored": 2 * len(rows), "cached": 0, "computed": 0}
    forgotten = [
        r._replace(
            completions=tuple(c.model_copy(update={"logprobs": None}) for c in r.completions)
        )
        for r in rows
    ]
    with heard(tasks):
        computed = reference_of(project, forgotten)
    assert tasks["reference"] == len(rows)
    for row in rows:
        for ours, theirs in zip(free.of(row), computed.of(row), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4, rtol=0)


def test_identity_is_checked_on_the_champions_own_samples_first(
    make_project: MakeProject, pairs: list[PreferencePair]
) -> None:
    """Even where they stand last."""
    project = make_project()
    policy = Policy.start(project.champion, CONFIG)
    rows, _ = encode(policy.backbone, [*written_pairs(), *pairs[:1]], max_tokens=2048)
    figures = check_identity(project.champion, policy.acting, rows, CONFIG)
    assert figures["served_gap"] <= 1e-4
