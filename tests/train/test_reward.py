"""Reward models: what they learn, what is said of them, and the same however they are stopped.

A tiny model on the CPU, and pairs with a planted preference.
"""

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from scipy.stats import pearsonr

from trueup import progress
from trueup.errors import TrainingError
from trueup.models.backbone import Backbone
from trueup.models.reward import RewardEnsemble, RewardModel, ensemble_weights
from trueup.models.stored import StoredModel
from trueup.models.tiny import save_tiny
from trueup.records import (
    Checkpoint,
    Completion,
    Dataset,
    Message,
    PreferencePair,
    TrainingRun,
    content_hash,
)
from trueup.store import Store
from trueup.train import TrainConfig, run
from trueup.train.data import Row, encode, held_out
from trueup.train.reward import RewardObjective, train_reward
from trueup.train.reward_metrics import calibration, correlation, evaluate

CONFIG = TrainConfig(
    method="reward", learning_rate=2e-3, lora_rank=4, lora_alpha=8.0, eval_share=0.25
)
WORDS = ("blue", "green", "black", "white", "red", "sky", "leaf", "coal", "snow", "rose")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("random") / "model", seed=0, hidden_size=48)


@pytest.fixture
def backbone(base: Path) -> Backbone:
    return Backbone.load(base)


def pair(number: int, chosen: str, rejected: str, *, margin: float = 1.0) -> PreferencePair:
    prompt = (Message(role="user", content=f"{WORDS[number % len(WORDS)]} {number}?"),)
    return PreferencePair(
        prompt=prompt,
        chosen=Completion(text=chosen, finish_reason="stop"),
        rejected=Completion(text=rejected, finish_reason="stop"),
        margin=margin,
        label_ids=("label_1",),
        prompt_hash=content_hash(number),
    )


def shorter(number: int, chance: random.Random) -> PreferencePair:
    """One to three words over five to eight."""
    few = chance.choices(WORDS, k=chance.randint(1, 3))
    many = chance.choices(WORDS, k=chance.randint(5, 8))
    return pair(number, " ".join(few), " ".join(many))


def with_word(number: int, chance: random.Random) -> PreferencePair:
    """Five words with `zap` among them over five without."""
    said, other = chance.choices(WORDS, k=4), chance.choices(WORDS, k=5)
    said.insert(chance.randint(0, 4), "zap")
    return pair(number, " ".join(said), " ".join(other))


Plant = Callable[[int, random.Random], PreferencePair]


def planted(plant: Plant, count: int) -> list[PreferencePair]:
    chance = random.Random(1)
    return [plant(number, chance) for number in range(count)]


def rows_of(backbone: Backbone, pairs: Sequence[PreferencePair]) -> list[Row]:
    return encode(backbone, pairs, max_tokens=2048)[0]


# --- the objective --------------------------------------------------------------------------------


def fresh(backbone: Backbone) -> RewardModel:
    model = RewardModel.new(backbone, "reward", rank=4, alpha=8.0, targets=["all-linear"], seed=0)
    model.head.learned.data.normal_(std=1 / 16, generator=torch.Generator().manual_seed(5))
    return model


def test_a_groups_loss_is_bradley_terrys_on_the_models_scores(backbone: Backbone) -> None:
    model, rows = fresh(backbone), rows_of(backbone, planted(with_word, 3))
    scores = model.scores([row.branches for row in rows])
    objective = RewardObjective(model.head, CONFIG.model_copy(update={"centering": 0.1}))
    with model.acting() as network:
        loss, figures = objective.group_loss(network, rows)
    assert objective.total(rows) == 3
    by_hand = [math.log1p(math.exp(r - c)) + 0.1 * (c + r) ** 2 for c, r in scores]
    assert loss.item() == pytest.approx(sum(by_hand), abs=1e-5)
    for row, (chosen, rejected), expected in zip(figures, scores, by_hand, strict=True):
        assert row == pytest.approx(
            {
                "loss": expected,
                "accuracy": float(chosen > rejected),
                "margin": chosen - rejected,
                "chosen_score": chosen,
                "rejected_score": rejected,
                "score_sum": chosen + rejected,
            },
            abs=1e-5,
        )


def test_with_margins_a_pair_must_differ_by_its_labels_margin(backbone: Backbone) -> None:
    model = fresh(backbone)
    rows = rows_of(backbone, [pair(0, "blue", "red", margin=0.7)])
    (chosen, rejected), *_ = model.scores([rows[0].branches])
    plain = CONFIG.model_copy(update={"centering": 0.0})
    with model.acting() as network:
        loss, _ = RewardObjective(model.head, plain, with_margins=True).group_loss(network, rows)
    assert loss.item() == pytest.approx(math.log1p(math.exp(rejected - chosen + 0.7)), abs=1e-5)


# --- what it learns -------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", [shorter, with_word])
def test_a_planted_preference_is_learned_for_prompts_it_has_not_seen(
    backbone: Backbone, tmp_path: Path, plant: Plant
) -> None:
    rows = rows_of(backbone, planted(plant, 160))
    trained = train_reward(backbone, rows, CONFIG, tmp_path)
    metrics = trained.metrics
    assert metrics["num_pairs"] + metrics["num_held_out"] == 160 and metrics["num_held_out"] > 25
    assert metrics["accuracy"] > 0.9
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    assert metrics["first"]["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert metrics["last"]["loss"] < 0.35
    if plant is shorter:
        assert metrics["length_correlation"] < -0.8 and metrics["length_explains_rate"] == 1
    else:
        assert metrics["length_explains_rate"] < 0.8
    assert metrics["members"][0]["history"][-1]["held_out_accuracy"] == metrics["accuracy"]


def test_a_trained_model_scores_the_held_out_answers_with_mean_0_and_deviation_1(
    backbone: Backbone, tmp_path: Path
) -> None:
    rows = rows_of(backbone, planted(shorter, 60))
    (folder,) = train_reward(backbone, rows, CONFIG, tmp_path).folders
    model = RewardModel.attach(backbone, "other", folder)
    _, held = held_out(rows, CONFIG.eval_share)
    scores = torch.tensor(model.scores([row.branches for row in held]))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-5)
    said = json.loads((folder / "held_out.json").read_text())
    assert [one[0] for one in said] == [row.id for row in held]
    raw = torch.tensor([one[1:] for one in said])
    assert torch.allclose((raw - model.scale.mean) / model.scale.std, scores, atol=1e-5)


def test_at_least_a_tenth_is_held_out_and_nothing_of_it_is_trained_on(
    backbone: Backbone, tmp_path: Path
) -> None:
    rows = rows_of(backbone, planted(shorter, 60))
    config = CONFIG.model_copy(update={"eval_share": 0.0})
    train_rows, held = held_out(rows, 0.1)
    first = train_reward(backbone, rows, config, tmp_path / "all")
    assert first.metrics["num_held_out"] == len(held) > 0
    assert "held_out_accuracy" not in first.metrics["last"], "not watched unless asked for"
    again = train_reward(backbone, train_rows, config, tmp_path / "less")
    assert _adapter(again.folders[0]) == _adapter(first.folders[0])


def test_a_pair_that_was_repeated_counts_once_where_it_is_measured(
    backbone: Backbone, tmp_path: Path
) -> None:
    rows = rows_of(backbone, planted(shorter, 40))
    held = held_out(rows, CONFIG.eval_share)[1]
    metrics = train_reward(backbone, rows + held + held, CONFIG, tmp_path).metrics
    assert metrics["num_held_out"] == len(held)


def test_without_held_out_pairs_what_is_unknown_is_none(backbone: Backbone, tmp_path: Path) -> None:
    rows = held_out(rows_of(backbone, planted(shorter, 12)), CONFIG.eval_share)[0]
    trained = train_reward(backbone, rows, CONFIG, tmp_path)
    assert trained.metrics["num_held_out"] == 0
    for name in ("accuracy", "ece", "length_correlation", "length_explains_rate"):
        assert trained.metrics[name] is None
    scores = RewardModel.attach(backbone, "other", trained.folders[0]).scores(
        [row.branches for row in rows]
    )
    flat = [score for row in scores for score in row]
    assert sum(flat) / len(flat) == pytest.approx(0, abs=1e-5), "the scale is of what there is"


def test_splitting_a_step_into_passes_changes_nothing(backbone: Backbone, tmp_path: Path) -> None:
    rows = rows_of(backbone, planted(shorter, 24))
    found = []
    for tokens in (64, 100_000):
        config = CONFIG.model_copy(update={"tokens_per_batch": tokens})
        (folder,) = train_reward(backbone, rows, config, tmp_path / str(tokens)).folders
        model = RewardModel.attach(backbone, "other", folder)
        found.append(torch.tensor(model.scores([row.branches for row in rows])))
    assert torch.allclose(found[0], found[1], atol=1e-3)


# --- ensembles ------------------------------------------------------------------------------------


def test_members_differ_and_are_measured_together(backbone: Backbone, tmp_path: Path) -> None:
    rows = rows_of(backbone, planted(with_word, 60))
    config = CONFIG.model_copy(update={"reward_models": 3, "eval_share": 0.4})
    metrics = train_reward(backbone, rows, config, tmp_path).metrics
    members = metrics["members"]
    assert len({one["weights"] for one in members}) == len({one["seed"] for one in members}) == 3
    assert len({one["last"]["loss"] for one in members}) == 3
    said = [json.loads((tmp_path / f"member-{n}" / "held_out.json").read_text()) for n in range(3)]
    scales = [one["scale"] for one in members]
    right = 0
    for rows_of_pair in zip(*said, strict=True):
        gap = sum((c - r) / s["std"] for s, (_, c, r) in zip(scales, rows_of_pair, strict=True))
        right += gap > 0
    assert metrics["accuracy"] == right / metrics["num_held_out"]


# --- figures --------------------------------------------------------------------------------------


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_calibration_by_hand() -> None:
    """Four pairs said with 0.72, half of them right; two with 0.97, both right."""
    differences = [logit(0.72)] * 2 + [-logit(0.72)] * 2 + [logit(0.97)] * 2
    bins, ece = calibration(differences)
    assert [(one.low, one.high) for one in bins][:2] == [(0.5, 0.55), (0.55, 0.6)]
    filled = {one.low: one for one in bins if one.num_pairs}
    assert list(filled) == [0.7, 0.95]
    assert filled[0.7].num_pairs == 4 and filled[0.95].num_pairs == 2
    assert filled[0.7].confidence == pytest.approx(0.72) and filled[0.7].accuracy == 0.5
    assert filled[0.95].confidence == pytest.approx(0.97) and filled[0.95].accuracy == 1
    assert ece == pytest.approx(4 / 6 * 0.22 + 2 / 6 * 0.03)
    empty = [one for one in bins if not one.num_pairs]
    assert len(empty) == 8 and all(one.accuracy is one.confidence is None for one in empty)


def test_a_model_that_says_what_is_so_has_no_calibration_error() -> None:
    """Labels drawn from the model's own odds."""
    random = torch.Generator().manual_seed(0)
    gaps = 2 * torch.randn(40_000, generator=random)
    first_wins = torch.rand(gaps.shape, generator=random) < torch.sigmoid(gaps)
    differences = torch.where(first_wins, gaps, -gaps)
    _, ece = calibration(differences.tolist())
    assert ece is not None and ece < 0.01
    _, boastful = calibration((3 * differences).tolist())
    assert boastful is not None and boastful > 0.1


def test_scores_that_are_equal_or_huge_have_a_place() -> None:
    bins, ece = calibration([0.0, 800.0])
    assert (bins[0].num_pairs, bins[0].accuracy, bins[9].num_pairs) == (1, 0.5, 1)
    assert ece == pytest.approx(0)


def test_an_evaluation_by_hand() -> None:
    """Four pairs; the model is wrong on the third, whose longer answer was not chosen."""
    scores = [(2.0, 1.0), (1.0, -1.0), (0.0, 0.5), (3.0, 2.5)]
    tokens = [(9, 5), (8, 6), (4, 6), (5, 5)]
    found = evaluate(scores, tokens)
    assert (found.num_pairs, found.accuracy) == (4, 0.75)
    assert found.accuracy_low == pytest.approx(0.3006, abs=1e-4)  # Wilson, by his formula
    assert found.accuracy_high == pytest.approx(0.9544, abs=1e-4)
    assert found.margin == pytest.approx((1 + 2 - 0.5 + 0.5) / 4)
    assert found.longer_wins_rate == (1 + 1 + 0 + 0.5) / 4
    assert found.picks_longer_rate == 1
    assert (found.accuracy_longer, found.accuracy_shorter) == (1, 0)
    assert found.length_explains_rate == pytest.approx(0.125 / 0.25)
    flat = [s for row in scores for s in row], [t for row in tokens for t in row]
    assert found.length_correlation == pytest.approx(pearsonr(*flat).statistic)
    # differences (1, 2, -0.5, 0.5) and (4, 2, -2, 0): 9 / sqrt(5.5 * 24)
    assert found.length_correlation_within == pytest.approx(9 / math.sqrt(5.5 * 24))


def test_the_correlation_within_pairs_does_not_depend_on_which_side_is_named_first() -> None:
    scores, tokens = [(2.0, 1.0), (1.0, -1.0), (0.0, 0.5)], [(9, 5), (8, 6), (4, 6)]
    turned = [(b, a) for a, b in scores], [(b, a) for a, b in tokens]
    there, back = evaluate(scores, tokens), evaluate(*turned)
    assert there.length_correlation_within == back.length_correlation_within
    gaps = [a - b for a, b in scores], [float(a - b) for a, b in tokens]
    doubled = [[*one, *(-value for value in one)] for one in gaps]
    expected = pearsonr(*doubled).statistic
    assert there.length_correlation_within == pytest.approx(expected)


def test_what_cannot_be_known_is_none() -> None:
    nothing = evaluate([], [])
    said = nothing.model_dump(exclude={"num_pairs", "calibration"})
    assert set(said.values()) == {None}
    same = evaluate([(1.0, 1.0)] * 3, [(5, 5)] * 3)
    assert same.accuracy == 0 and same.length_explains_rate is None
    assert same.length_correlation is same.length_correlation_within is None
    assert same.picks_longer_rate is same.accuracy_longer is same.accuracy_shorter is None
    assert correlation([0.1] * 7, range(7)) is None


# --- the step -------------------------------------------------------------------------------------


class Project(NamedTuple):
    """What a training run reads."""

    store: Store
    champion: StoredModel
    dataset: Dataset

    def train(self, config: TrainConfig = CONFIG) -> Checkpoint:
        return run(self.store, config, self.dataset, self.champion)


@pytest.fixture
def make_project(base: Path, tmp_path: Path) -> Iterator[Callable[..., Project]]:
    stores: list[Store] = []

    def make(pairs: list[PreferencePair] | None = None, *, name: str = "store") -> Project:
        store = Store(tmp_path / name)
        stores.append(store)
        return fill(store, base, planted(shorter, 40) if pairs is None else pairs)

    yield make
    for store in stores:
        store.close()


def fill(store: Store, base: Path, pairs: list[PreferencePair]) -> Project:
    store.add_all(pairs)
    dataset = Dataset(pair_ids=tuple(p.id for p in pairs), source="loop")
    store.add(dataset)
    return Project(store, StoredModel.serving(store, Backbone.load(base)), dataset)


@contextmanager
def heard(tasks: list[str]) -> Iterator[None]:
    """Write down the name of every piece of work announced."""

    @contextmanager
    def listener(name: str, total: int) -> Iterator[Callable[[int], None]]:
        tasks.append(name)
        yield lambda _: None

    with progress.listen(listener):
        yield


def test_the_stage_writes_a_checkpoint_that_scores(
    make_project: Callable[..., Project], base: Path
) -> None:
    project = make_project()
    store, backbone = project.store, project.champion.backbone
    config = CONFIG.model_copy(update={"reward_models": 2})
    checkpoint = project.train(config)
    folder = store.folder / checkpoint.path
    assert checkpoint.weights == ensemble_weights(backbone.base_weights, folder)
    assert folder.name == checkpoint.weights
    assert {p.name for p in folder.iterdir()} == {"member-0", "member-1", "card.json"}
    card = json.loads((folder / "card.json").read_text())
    assert card["run"]["id"] == checkpoint.run_id == store.all(TrainingRun)[0].id
    assert card["metrics"] == checkpoint.metrics
    assert card["members"] == [one["weights"] for one in checkpoint.metrics["members"]]
    assert checkpoint.metrics["skipped"] == {}
    assert not hasattr(backbone.model, "peft_config"), "nothing of it stays in memory"

    ensemble = RewardEnsemble.attach(Backbone.load(base), "reward", folder)
    assert ensemble.weights == checkpoint.weights
    rows = rows_of(backbone, planted(shorter, 40))
    scores = ensemble.scores([row.branches for row in rows])
    assert sum(chosen > rejected for chosen, rejected in scores) > 36


def test_a_second_run_returns_the_same_checkpoint_without_training(
    make_project: Callable[..., Project],
) -> None:
    project = make_project()
    checkpoint = project.train()
    tasks: list[str] = []
    with heard(tasks):
        assert project.train() == checkpoint
    assert tasks == []
    assert not list((project.store.folder / "runs").iterdir())


def test_what_cannot_be_trained_on_is_skipped_and_counted(
    make_project: Callable[..., Project],
) -> None:
    good = planted(shorter, 30)
    cut = good[0].rejected.model_copy(update={"text": "", "finish_reason": "length"})
    bad = [pair(101, "blue", "x" * 400), good[0].model_copy(update={"id": "", "rejected": cut})]
    bad[1] = PreferencePair(**bad[1].model_dump(exclude={"id"}))
    metrics = make_project(good + bad).train(CONFIG.model_copy(update={"max_tokens": 200})).metrics
    assert metrics["num_pairs"] + metrics["num_held_out"] == 30
    assert metrics["skipped"] == {"longer than train.max_tokens": 1, "empty completion": 1}


def test_a_data_set_with_nothing_to_train_on_is_an_error(
    make_project: Callable[..., Project],
) -> None:
    with pytest.raises(TrainingError, match="no pair to train on"):
        make_project([]).train()


def test_a_learning_rate_that_breaks_the_numbers_leaves_no_checkpoint(
    make_project: Callable[..., Project],
) -> None:
    project = make_project()
    with pytest.raises(TrainingError, match=r"lower train\.learning_rate"):
        project.train(CONFIG.model_copy(update={"learning_rate": 1e30}))
    assert project.store.count(Checkpoint) == 0
    assert not hasattr(project.champion.backbone.model, "peft_config")


# --- the same however it is stopped ---------------------------------------------------------------

STOPPABLE = CONFIG.model_copy(
    update={"reward_models": 2, "epochs": 3, "pairs_per_step": 4, "save_every_steps": 2}
)
TRAIN = """
import sys
from pathlib import Path
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Dataset
from trueup.store import Store
from trueup.train import TrainConfig, run

store = Store(sys.argv[1])
champion = StoredModel.serving(store, Backbone.load(Path(sys.argv[2])))
run(store, TrainConfig.model_validate_json(sys.argv[3]), store.all(Dataset)[0], champion)
"""


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _adapter(member: Path) -> tuple[str, str]:
    files = ("adapter_model.safetensors", "reward_head.safetensors")
    return _sha256(member / files[0]), _sha256(member / files[1])


def bytes_of(project: Project, checkpoint: Checkpoint) -> list[Any]:
    """Hashes of everything that decides a score."""
    folder = project.store.folder / checkpoint.path
    return [checkpoint.weights, *(_adapter(folder / f"member-{n}") for n in range(2))]


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    project = fill(Store(tmp_path_factory.mktemp("whole")), base, planted(shorter, 40))
    return bytes_of(project, project.train(STOPPABLE))


@pytest.mark.parametrize("waits_for", ["states-member-0/step-*", "states-member-1/step-*"])
def test_a_killed_run_resumes_to_the_same_bytes(
    make_project: Callable[..., Project], uninterrupted: list[Any], waits_for: str
) -> None:
    project = make_project()
    command = [sys.executable, "-c", TRAIN, project.store.folder, project.champion.backbone.folder]
    process = subprocess.Popen(
        [*map(str, command), STOPPABLE.model_dump_json()],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        },
        stderr=subprocess.DEVNULL,
    )
    runs = project.store.folder / "runs"
    deadline = time.monotonic() + 120
    while not list(runs.glob(f"*/{waits_for}")):
        assert process.poll() is None and time.monotonic() < deadline, "it never saved a state"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    assert project.store.count(Checkpoint) == 0
    (folder,) = runs.iterdir()
    half = folder / ".member-1"  # what a kill in the middle of writing a member leaves
    half.mkdir()
    (half / "reward_head.safetensors").write_bytes(b"cut off")
    written = {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("member-*/card.json")}
    assert len(written) == waits_for.startswith("states-member-1")
    tasks: list[str] = []
    with heard(tasks):
        checkpoint = project.train(STOPPABLE)
    assert bytes_of(project, checkpoint) == uninterrupted
    assert tasks.count("train") == 2 - len(written), "a finished member is not trained again"
    assert not list(runs.iterdir())


def test_a_run_that_is_interrupted_while_it_is_saved_ends_the_same(
    make_project: Callable[..., Project], uninterrupted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the members' last bytes and the record."""
    project = make_project()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # no signal could be timed to this line
        patch.setattr(project.store, "add", _only(TrainingRun, project.store.add, stop))
        with pytest.raises(KeyboardInterrupt):
            project.train(STOPPABLE)
    assert project.store.count(Checkpoint) == 0
    tasks: list[str] = []
    with heard(tasks):
        checkpoint = project.train(STOPPABLE)
    assert "train" not in tasks
    assert bytes_of(project, checkpoint) == uninterrupted
    names = [p.name for p in (project.store.folder / "checkpoints").iterdir()]
    assert names == [checkpoint.weights]


def _only(kind: type, add: Callable[[Any], Any], otherwise: Callable[..., None]) -> Any:
    return lambda record: add(record) if isinstance(record, kind) else otherwise()
