"""A reward model's scores are those of a plain forward pass and a dot product, on one scale, from
files that are exactly what was written.

The oracle is transformers with peft, one prompt and answer at a time, in eager attention.
"""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from trueup.errors import DataError, ModelError
from trueup.models.backbone import Backbone
from trueup.models.reward import (
    HEAD_SPEED,
    RewardEnsemble,
    RewardHead,
    RewardModel,
    Scale,
    branch_scores,
    combine,
    ensemble_weights,
    step_end_scores,
)
from trueup.models.shared_prompt import Branches
from trueup.models.tiny import save_tiny

TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
HEAD = "reward_head.safetensors"
ADAPTER = "adapter_model.safetensors"
HIDDEN = 32


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("random") / "model", seed=3, hidden_size=HIDDEN)


@pytest.fixture
def backbone(base: Path) -> Backbone:
    return Backbone.load(base)


def make(backbone: Backbone, role: str = "reward", *, seed: int = 0) -> RewardModel:
    """One whose adapter and head say something, as if it had been trained."""
    model = RewardModel.new(backbone, role, rank=4, alpha=8.0, targets=["all-linear"], seed=seed)
    random = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters().values():
            size = 0.1 / HEAD_SPEED if parameter is model.head.learned else 0.1
            parameter += size * torch.randn(parameter.shape, generator=random)
    return model


@pytest.fixture
def model(backbone: Backbone) -> RewardModel:
    return make(backbone)


def ids(size: int, seed: int) -> list[int]:
    return torch.randint(0, 250, (size,), generator=torch.Generator().manual_seed(seed)).tolist()


ROWS = [
    Branches(ids(11, 1), [ids(5, 2), ids(9, 3)]),
    Branches(ids(1, 4), [ids(1, 5), ids(1, 6), ids(17, 7)]),
    Branches(ids(30, 8), [ids(3, 9)]),
    Branches(ids(6, 10), [ids(4, 11)] * 2),
]


class Oracle:
    """The same files as anybody would load them."""

    def __init__(self, base: Path, folder: Path) -> None:
        plain = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager"
        )
        self.model: Any = PeftModel.from_pretrained(plain, str(folder), is_trainable=True).eval()
        self.head = load_file(folder / HEAD)["score.weight"][0].requires_grad_(True)

    def score(self, prompt: list[int], completion: list[int]) -> Tensor:
        given = torch.tensor([[*prompt, *completion]])
        states = self.model(given, output_hidden_states=True).hidden_states[-1]
        return states[0, -1] @ self.head

    def scores(self, rows: list[Branches]) -> Tensor:
        return torch.stack(
            [self.score(list(r.prompt_ids), list(c)) for r in rows for c in r.completions]
        )


@pytest.fixture
def saved(model: RewardModel, tmp_path: Path) -> Path:
    model.scale = Scale(0.25, 2.0)
    model.save(tmp_path / "member", card={"metrics": {"accuracy": 0.7}})
    return tmp_path / "member"


# --- scores ---------------------------------------------------------------------------------------


def test_scores_are_those_of_separate_rows(model: RewardModel, base: Path, tmp_path: Path) -> None:
    model.save(tmp_path, card={})
    found = model.scores(ROWS)
    assert [len(row) for row in found] == [len(row.completions) for row in ROWS]
    expected = Oracle(base, tmp_path).scores(ROWS)
    flat = torch.tensor([score for row in found for score in row])
    assert torch.allclose(flat, expected.detach(), **TOLERANCE)
    assert expected.std() > 0.1, "the scores differ enough to tell them apart"


def test_gradients_of_head_and_adapter_are_those_of_separate_rows(
    model: RewardModel, base: Path, tmp_path: Path
) -> None:
    """Of a loss that weighs every answer differently, so that no error can cancel."""
    model.save(tmp_path, card={})
    oracle = Oracle(base, tmp_path)
    weights = torch.linspace(-1, 1, sum(len(row.completions) for row in ROWS))
    parameters = model.parameters()
    with model.acting() as network:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        (branch_scores(network, model.head, ROWS) * weights).sum().backward()
    (oracle.scores(ROWS) * weights).sum().backward()
    theirs = {n: p.grad for n, p in oracle.model.named_parameters() if p.grad is not None}
    theirs["score.learned"] = oracle.head.grad[None]  # type: ignore[index]
    ours = {n.replace(".reward.", ".default."): p.grad for n, p in parameters.items()}
    ours["score.learned"] = ours["score.learned"] / HEAD_SPEED  # type: ignore[operator]
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, gradient in theirs.items():
        assert gradient is not None and gradient.abs().max() > 0, name
        assert torch.allclose(ours[name], gradient, **TOLERANCE), name


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 100_000])
def test_batches_change_nothing(model: RewardModel, tokens_per_batch: int) -> None:
    done: list[int] = []
    found = model.scores(ROWS, tokens_per_batch=tokens_per_batch, on_progress=done.append)
    for row, expected in zip(found, [model.scores([row])[0] for row in ROWS], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    assert sum(done) == len(ROWS)


def test_scores_leave_on_the_models_scale(model: RewardModel) -> None:
    raw = model.scores(ROWS)
    model.scale = Scale(mean=0.5, std=4.0)
    for row, expected in zip(model.scores(ROWS), raw, strict=True):
        assert row == pytest.approx([(score - 0.5) / 4 for score in expected])


def test_a_fresh_model_scores_close_to_zero(backbone: Backbone) -> None:
    fresh = RewardModel.new(backbone, "reward", rank=4, alpha=8.0, targets=["all-linear"], seed=0)
    assert all(abs(score) < 1 for row in fresh.scores(ROWS) for score in row)
    assert fresh.head.learned.dtype == torch.float32
    assert not torch.equal(fresh.head.weight, RewardHead(HIDDEN, seed=1).weight)


def test_the_head_is_fp32_whatever_the_states_are() -> None:
    head = RewardHead(HIDDEN)
    states = torch.randn(3, HIDDEN, dtype=torch.bfloat16)
    assert head(states).dtype == torch.float32
    assert torch.equal(head(states), head(states.float()))


def test_each_model_acts_with_its_own_adapter_and_the_base_stays(backbone: Backbone) -> None:
    with torch.no_grad(), backbone.acting_as(None) as network:
        before = network(torch.tensor([ids(9, 1)])).logits
    first = make(backbone, "reward-0", seed=0)
    alone = first.scores(ROWS)
    second = make(backbone, "reward-1", seed=1)
    assert first.scores(ROWS) == alone != second.scores(ROWS)
    with torch.no_grad(), backbone.acting_as(None) as network:
        assert torch.equal(network(torch.tensor([ids(9, 1)])).logits, before)
    first.detach()
    second.detach()
    assert not hasattr(backbone.model, "peft_config")


def test_rows_without_answers_get_no_scores(model: RewardModel) -> None:
    rows = [Branches(ids(5, 1), []), ROWS[0], Branches(ids(5, 1), [])]
    found = model.scores(rows)
    assert found[0] == found[2] == [] and found[1] == pytest.approx(model.scores(ROWS[:1])[0])
    assert model.scores([]) == []


def test_an_answer_that_does_not_fit_the_context_is_refused(model: RewardModel) -> None:
    long = Branches(ids(1000, 1), [ids(3, 2), ids(30, 3)])
    with pytest.raises(ModelError, match=r"does not fit.*'1030 tokens'.*at most 1024"):
        model.scores([long])


# --- steps ----------------------------------------------------------------------------------------


def last_tokens(rows: list[Branches]) -> list[list[list[int]]]:
    return [[[len(c) - 1] for c in row.completions] for row in rows]


def test_a_step_that_ends_with_the_answer_scores_what_the_answer_scores(model: RewardModel) -> None:
    model.scale = Scale(0.5, 4.0)
    whole = model.scores(ROWS)
    steps = model.step_scores(ROWS, last_tokens(ROWS))
    for row, expected in zip(steps, whole, strict=True):
        assert [branch[0] for branch in row] == pytest.approx(expected, abs=1e-6)
        assert all(len(branch) == 1 for branch in row)


def test_a_step_scores_what_the_answer_cut_off_there_would_score(model: RewardModel) -> None:
    ends = [[[0, 4], [2, 3, 8]], [[], [0], [16, 5]], [[1]], [[3], []]]
    for row, places, found in zip(ROWS, ends, model.step_scores(ROWS, ends), strict=True):
        for completion, some, scores in zip(row.completions, places, found, strict=True):
            cut = [completion[: place + 1] for place in some]
            expected = model.scores([Branches(row.prompt_ids, cut)])[0]
            assert scores == pytest.approx(expected, abs=1e-5)


def test_step_scores_carry_a_gradient(model: RewardModel) -> None:
    with model.acting() as network:
        scores = step_end_scores(network, model.head, ROWS[:1], [[[0, 4], [8]]])
        scores.sum().backward()
    assert scores.shape == (3,)
    gradient = model.head.learned.grad
    assert gradient is not None and gradient.abs().sum() > 0


@pytest.mark.parametrize("end", [-1, 5])
def test_a_step_may_not_end_outside_its_completion(model: RewardModel, end: int) -> None:
    with pytest.raises(DataError, match=r"ends outside its completion.*from 0 to 4"):
        model.step_scores(ROWS[:1], [[[end], [0]]])


# --- combining ------------------------------------------------------------------------------------


def test_combinations_by_hand() -> None:
    scores = [[1.0, -1.0], [2.0, -1.0], [6.0, -1.0]]
    assert combine(scores, "mean") == pytest.approx([3.0, -1.0])
    assert combine(scores, "min") == [1.0, -1.0]
    assert combine(scores, "uwo", lam=0.5) == pytest.approx([3 - 0.5 * 14 / 3, -1.0])
    assert combine(scores, "uwo", lam=0) == combine(scores, "mean")


@pytest.mark.parametrize("how", ["mean", "min", "uwo"])
def test_one_member_alone_is_itself(how: Any) -> None:
    assert combine([[0.3, -2.0]], how) == [0.3, -2.0]
    assert combine([[]], how) == []


def test_members_that_scored_different_answers_cannot_be_combined() -> None:
    with pytest.raises(ValueError, match="shorter"):
        combine([[1.0, 2.0], [1.0]])


# --- on disk --------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_to_the_very_same_scores(
    model: RewardModel, saved: Path, base: Path
) -> None:
    fresh = RewardModel.attach(Backbone.load(base), "candidate", saved)
    assert fresh.scale == Scale(0.25, 2.0)
    assert fresh.scores(ROWS) == model.scores(ROWS)
    card = json.loads((saved / "card.json").read_text())
    assert card["metrics"] == {"accuracy": 0.7}
    assert card["base_weights"] == fresh.backbone.base_weights
    assert card["template"] == fresh.backbone.template
    assert {p.name for p in saved.iterdir()} == {ADAPTER, HEAD, "adapter_config.json", "card.json"}


def test_the_name_is_of_everything_that_decides_a_score(
    model: RewardModel, saved: Path, tmp_path: Path
) -> None:
    name = model.save(tmp_path / "again", card={"note": "says nothing about scores"})
    assert name == json.loads((saved / "card.json").read_text())["weights"]
    names = {name}
    model.scale = Scale(0.25, 2.5)
    names.add(model.save(tmp_path / "scale", card={}))
    model.head.learned.data[0, 0] += 1e-3
    names.add(model.save(tmp_path / "head", card={}))
    next(iter(model.parameters().values())).data.add_(1e-3)
    names.add(model.save(tmp_path / "adapter", card={}))
    assert len(names) == 4


class _Trap:
    """Pickled; makes a folder where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", [HEAD, "reward_head.bin"])
def test_a_pickled_head_is_refused_unread(backbone: Backbone, saved: Path, name: str) -> None:
    trap = saved.parent / "sprung"
    (saved / HEAD).unlink()
    torch.save(_Trap(str(trap)), saved / name)
    with pytest.raises(ModelError, match=r"no reward head.*pickled files are refused"):
        RewardModel.attach(backbone, "other", saved)
    assert not trap.exists()


def _edit(file: Path, change: Callable[[dict], None]) -> None:
    card = json.loads(file.read_text())
    change(card)
    file.write_text(json.dumps(card))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no head": (lambda d: (d / HEAD).unlink(), "has no reward head"),
    "cut head": (lambda d: _cut(d / HEAD), "has no reward head"),
    "other tensor": (
        lambda d: save_file({"w": torch.zeros(1, HIDDEN)}, d / HEAD), "has no reward head",
    ),
    "other size": (
        lambda d: save_file({"score.weight": torch.zeros(1, 9)}, d / HEAD), "does not fit",
    ),
    "not finite": (
        lambda d: save_file({"score.weight": torch.full((1, HIDDEN), math.nan)}, d / HEAD),
        "does not fit",
    ),
    "other head": (
        lambda d: save_file({"score.weight": torch.zeros(1, HIDDEN)}, d / HEAD),
        "is not the one that was written",
    ),
    "cut adapter": (lambda d: _cut(d / ADAPTER), "is not the one that was written"),
    "no adapter": (lambda d: (d / ADAPTER).unlink(), "is not a reward model"),
    "no card": (lambda d: (d / "card.json").unlink(), "is not a reward model"),
    "card of a policy": (
        lambda d: _edit(d / "card.json", lambda c: c.pop("kind")), "is not a reward model",
    ),
    "no scale": (
        lambda d: _edit(d / "card.json", lambda c: c.pop("scale")), "is not a reward model",
    ),
    "scale of 0": (
        lambda d: _edit(d / "card.json", lambda c: c["scale"].update(std=0.0)),
        "is not a reward model",
    ),
    "other scale": (
        lambda d: _edit(d / "card.json", lambda c: c["scale"].update(mean=9.0)),
        "is not the one that was written",
    ),
    "other template": (
        lambda d: _edit(d / "card.json", lambda c: c.update(template="template_x")),
        "belongs to another chat template",
    ),
    "no folder": (shutil.rmtree, "is not a reward model"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_what_was_written_is_refused(base: Path, saved: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    change(saved)
    other = Backbone.load(base)
    with pytest.raises(ModelError, match=message):
        RewardModel.attach(other, "candidate", saved)
    assert not hasattr(other.model, "peft_config"), "nothing was attached"


def test_a_model_of_another_base_is_refused(saved: Path, tmp_path: Path) -> None:
    other = Backbone.load(save_tiny(tmp_path / "other", seed=5, hidden_size=HIDDEN))
    with pytest.raises(ModelError, match="belongs to another base model") as caught:
        RewardModel.attach(other, "reward", saved)
    assert caught.value.expected == other.base_weights


# --- ensembles ------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(base: Path, tmp_path: Path) -> Path:
    """Two members and the card that names them."""
    backbone, names = Backbone.load(base), []
    for number in range(2):
        model = make(backbone, "reward", seed=number)
        model.scale = Scale(0.1 * number, 1.0 + number)
        names.append(model.save(tmp_path / "both" / f"member-{number}", card={}))
        model.detach()
    card = {"kind": "reward", "members": names}
    (tmp_path / "both" / "card.json").write_text(json.dumps(card))
    return tmp_path / "both"


def test_an_ensemble_combines_its_members_scores(backbone: Backbone, checkpoint: Path) -> None:
    ensemble = RewardEnsemble.attach(backbone, "reward", checkpoint)
    each = [member.scores(ROWS) for member in ensemble.members]
    assert [member.scale.std for member in ensemble.members] == [1.0, 2.0]
    for how in ("mean", "min", "uwo"):
        found = ensemble.scores(ROWS, how=how, lam=0.5)
        for at, row in enumerate(found):
            assert row == combine([each[0][at], each[1][at]], how, lam=0.5)
    ends = last_tokens(ROWS)
    steps = ensemble.step_scores(ROWS, ends, how="min")
    for row, whole in zip(steps, ensemble.scores(ROWS, how="min"), strict=True):
        assert [branch[0] for branch in row] == pytest.approx(whole, abs=1e-6)
    assert ensemble.weights == ensemble_weights(backbone.base_weights, checkpoint)
    ensemble.detach()
    assert not hasattr(backbone.model, "peft_config")


def test_members_that_changed_places_or_are_missing_are_noticed(
    backbone: Backbone, checkpoint: Path
) -> None:
    first, second, away = (checkpoint / name for name in ("member-0", "member-1", "away"))
    name = ensemble_weights(backbone.base_weights, checkpoint)
    first.rename(away)
    second.rename(first)
    with pytest.raises(ModelError, match=r"member-0 is not the one that was written"):
        RewardEnsemble.attach(backbone, "reward", checkpoint)
    away.rename(second)
    assert ensemble_weights(backbone.base_weights, checkpoint) != name
    shutil.rmtree(second)
    with pytest.raises(ModelError):
        RewardEnsemble.attach(backbone, "reward", checkpoint)


def test_a_members_folder_is_not_a_checkpoint(backbone: Backbone, checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="is not a reward checkpoint"):
        RewardEnsemble.attach(backbone, "reward", checkpoint / "member-0")
