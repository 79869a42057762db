"""What the policy is held to: each kind against plain forward passes, and log-probs that are kept.

A kept log-prob may be used again only for the very weights, prompt tokens, completion tokens and
number format it was computed with. The trials here try hard to be given another's.
"""

import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_project import (
    CONFIG,
    MakeProject,
    Project,
    drawn_pairs,
    environment,
    heard,
    pair,
    question,
    reference_of,
    written_pairs,
)
from torch import Tensor

from trueup.errors import IdentityError, ModelError, RecordNotFound, StorageError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.logprobs import Branches
from trueup.models.stored import StoredModel
from trueup.models.tiny import save_tiny
from trueup.records import Completion, Dataset, PreferencePair, Release, Sampling, TrainingRun
from trueup.train import TrainConfig, run
from trueup.train.data import Row, encode
from trueup.train.logprob_cache import LogprobCache
from trueup.train.reference import FixedReference, MovingReference, stored_logprobs

QUICK = CONFIG.model_copy(update={"epochs": 1})


def oracle(model: Any, row: Row) -> list[Tensor]:
    """Each completion's log-probs by transformers' own forward pass, a row of its own."""
    found = []
    for ids in row.branches.completions:
        with torch.no_grad():
            logits = model(torch.tensor([[*row.branches.prompt_ids, *ids]])).logits[0]
        logprobs = logits[len(row.branches.prompt_ids) - 1 : -1].log_softmax(-1)
        found.append(logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0])
    return found


def agree(reference: Any, rows: Sequence[Row], expected: Sequence[list[Tensor]]) -> bool:
    return all(
        torch.allclose(ours, theirs, atol=1e-5, rtol=0)
        for row, sides in zip(rows, expected, strict=True)
        for ours, theirs in zip(reference.of(row), sides, strict=True)
    )


def rows_of(project: Project) -> list[Row]:
    return encode(
        project.champion.backbone, project.store.all(PreferencePair), max_tokens=CONFIG.max_tokens
    )[0]


@pytest.fixture
def promoted(make_project: MakeProject) -> tuple[Project, str]:
    """A champion with an adapter, trained from the base; and its checkpoint's id."""
    project = make_project(written_pairs())
    checkpoint = project.train(CONFIG.model_copy(update={"learning_rate": 1e-2}))
    project.store.release(
        Release(action="promote", weights=checkpoint.weights, checkpoint_id=checkpoint.id)
    )
    champion = StoredModel.serving(project.store, project.champion.backbone)
    own = drawn_pairs(champion, seed=5)
    project.store.add_all(own)
    pairs = [*own, *written_pairs()]
    dataset = Dataset(pair_ids=tuple(p.id for p in pairs), source="loop")
    project.store.add(dataset)
    return Project(project.store, champion, dataset), checkpoint.id


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The references of the runs of a test, in order. A spy, not a double: runs are real."""
    from trueup.train import identity

    found: list[Any] = []
    real = identity.check_reference

    def noted(reference: Any, *others: Any) -> dict[str, float]:
        found.append(reference)
        return real(reference, *others)

    monkeypatch.setattr(identity, "check_reference", noted)
    return found


# --- which model it is ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["base", "previous", "checkpoint"])
def test_a_fixed_reference_is_the_model_it_is_named_after(
    promoted: tuple[Project, str], captured: list[Any], kind: str
) -> None:
    """Base, champion, and a third model that neither starts nor serves."""
    project, first = promoted
    if kind == "checkpoint":
        kind = project.train(CONFIG.model_copy(update={"learning_rate": 2e-2})).id
        assert kind != first
        captured.clear()
    backbone = project.champion.backbone
    checkpoint = project.train(QUICK.model_copy(update={"reference": kind, "beta": 0.2}))
    (reference,) = captured
    names = {"base": backbone.base_weights, "previous": project.champion.weights}
    record = project.store.get(TrainingRun, checkpoint.run_id)
    third = StoredModel(project.store, backbone, None if kind in names else kind, role="third")
    expected = names.get(kind, third.weights)
    assert record.ref_weights == reference.weights == expected
    assert record.start_weights == project.champion.weights
    rows = rows_of(project)
    fresh = Backbone.load(backbone.folder)
    adapters = {"base": None, "previous": project.champion.adapter}
    adapter = adapters.get(kind, third.adapter)
    if adapter:
        fresh.attach("oracle", adapter)
    with fresh.acting_as("oracle" if adapter else None) as model:
        assert agree(reference, rows, [oracle(model, row) for row in rows])
    others = [one for one in (None, project.champion.adapter) if one != adapter]
    for other in others:
        if other:
            fresh.attach("other", other)
        with fresh.acting_as("other" if other else None) as model:
            assert not agree(reference, rows, [oracle(model, row) for row in rows])


def test_held_to_the_base_the_first_loss_of_a_trained_champion_is_not_log_2(
    promoted: tuple[Project, str],
) -> None:
    """It is already away from it; and it is what independent log-probs say."""
    project, _ = promoted
    config = QUICK.model_copy(update={"reference": "base", "pairs_per_step": 100})
    metrics = project.train(config).metrics
    rows = rows_of(project)
    with project.champion.acting() as model:
        ours = [oracle(model, row) for row in rows]
    with project.champion.backbone.acting_as(None) as model:
        theirs = [oracle(model, row) for row in rows]
    margins = torch.stack(
        [
            (o[0].sum() - t[0].sum()) - (o[1].sum() - t[1].sum())
            for o, t in zip(ours, theirs, strict=True)
        ]
    )
    expected = -torch.nn.functional.logsigmoid(config.beta * margins).mean()
    assert metrics["first"]["loss"] == pytest.approx(float(expected), abs=1e-4)
    assert abs(metrics["first"]["loss"] - 0.693147) > 0.01


def test_the_moving_average_follows_the_policy_and_both_start_as_the_champion(
    promoted: tuple[Project, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every step the average is decay times itself plus the rest of the policy; the first
    step is held to the champion, the later ones to the average."""
    project, _ = promoted
    from safetensors.torch import load_file

    seen: list[dict[str, Tensor]] = []
    averages: list[dict[str, Tensor]] = []
    real = MovingReference.moved

    def noted(self: MovingReference) -> None:
        if not averages:
            averages.append({n: one.clone() for n, one in self.average.items()})
        seen.append({n: one.detach().clone() for n, one in self.policy.items()})
        real(self)
        averages.append({n: one.clone() for n, one in self.average.items()})

    monkeypatch.setattr(MovingReference, "moved", noted)  # the run keeps no average
    config = CONFIG.model_copy(update={"reference": "ema", "ema_decay": 0.8})
    metrics = project.train(config).metrics
    assert metrics["identity"]["reference_gap"] <= 1e-4
    assert project.champion.adapter
    start = load_file(project.champion.adapter / "adapter_model.safetensors")
    for name, one in averages[0].items():
        assert torch.equal(one, start[name.replace(".policy.", ".")])
    for step, policy in enumerate(seen):
        for name, one in averages[step + 1].items():
            expected = 0.8 * averages[step][name].double() + 0.2 * policy[name].double()
            assert torch.allclose(one.double(), expected, atol=1e-7, rtol=0)
    assert len(seen) == len(metrics["history"])
    assert metrics["reference"] == {}


def test_a_moving_average_pulls_less_than_a_reference_that_stays(make_project: MakeProject) -> None:
    """With a decay of nearly nothing it is the policy itself: every step starts at log 2."""
    config = CONFIG.model_copy(update={"reference": "ema", "ema_decay": 1e-9})
    history = make_project().train(config).metrics["history"]
    assert [step["loss"] for step in history] == pytest.approx([0.693147] * len(history), abs=1e-4)


def test_a_checkpoint_that_is_not_there_is_an_error_before_anything_is_recorded(
    make_project: MakeProject,
) -> None:
    project = make_project(written_pairs())
    with pytest.raises(RecordNotFound, match="no checkpoint with this id") as caught:
        project.train(QUICK.model_copy(update={"reference": "checkpoint_nowhere"}))
    assert caught.value.got == "checkpoint_nowhere"
    assert project.store.count(TrainingRun) == 0


def test_a_checkpoint_of_another_base_is_no_reference(
    make_project: MakeProject, tmp_path: Path
) -> None:
    project = make_project(written_pairs())
    known = project.train(QUICK)
    other = Backbone.load(save_tiny(tmp_path / "other", seed=9, hidden_size=48))
    champion = StoredModel(project.store, other, None)
    with pytest.raises(ModelError) as caught:
        run(
            project.store,
            QUICK.model_copy(update={"reference": known.id}),
            project.dataset,
            champion,
        )
    assert isinstance(caught.value, ModelError)
    assert "base" in str(caught.value) or "not the ones that were written" in str(caught.value)


# --- kept log-probs -------------------------------------------------------------------------------


def cache_file(project: Project) -> Path:
    return project.store.folder / "cache" / "logprobs.sqlite"


def test_another_loss_on_the_same_pairs_computes_nothing_and_trains_the_same(
    make_project: MakeProject, captured: list[Any]
) -> None:
    project = make_project()
    first = project.train(QUICK).metrics["reference"]
    assert first["computed"] == 2 * len(written_pairs()) and first["cached"] == 0
    tasks: dict[str, int] = {}
    with heard(tasks):
        second = project.train(QUICK.model_copy(update={"method": "ipo", "beta": 0.3})).metrics
    assert second["reference"] == first | {"computed": 0, "cached": first["computed"]}
    assert tasks["reference"] == 0, "no forward pass"
    rows = rows_of(project)
    for row in rows:
        for ours, theirs in zip(captured[0].of(row), captured[1].of(row), strict=True):
            assert torch.equal(ours, theirs), "identical, not close"
    cached = project.train(QUICK.model_copy(update={"beta": 0.7}))
    other = make_project(name="other").train(QUICK.model_copy(update={"beta": 0.7}))
    assert other.metrics["reference"]["cached"] == 0
    assert cached.weights == other.weights, "bit for bit"


def test_what_was_kept_is_there_for_the_next_process(make_project: MakeProject) -> None:
    project = make_project()
    project.train(QUICK)
    script = """
import json, sys
from pathlib import Path
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Dataset
from trueup.store import Store
from trueup.train import TrainConfig, run

store = Store(sys.argv[1])
champion = StoredModel.serving(store, Backbone.load(Path(sys.argv[2])))
config = TrainConfig.model_validate_json(sys.argv[3])
print(json.dumps(run(store, config, store.all(Dataset)[0], champion).metrics["reference"]))
"""
    config = QUICK.model_copy(update={"method": "hinge"})
    done = subprocess.run(
        [
            *(sys.executable, "-c", script, project.store.folder),
            *(project.champion.backbone.folder, config.model_dump_json()),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["computed"] == 0


def test_the_champion_of_another_turn_is_computed_anew(promoted: tuple[Project, str]) -> None:
    project, _ = promoted
    sources = project.train(QUICK).metrics["reference"]
    assert sources["cached"] == 0, "these weights were never asked about these pairs"
    assert sources["computed"] == 2 * len(written_pairs())
    base = project.train(QUICK.model_copy(update={"reference": "base"})).metrics["reference"]
    assert base["cached"] == 2 * len(written_pairs()), "the first turn asked the base"
    assert base["stored"] == 0, "the champion drew them, not the base"


GARBAGE = {
    "text": b"this is not a database at all" * 300,
    "nothing": b"",
    "a byte": b"\0",
    "a header alone": b"SQLite format 3\0" + b"\xff" * 4096,
}


@pytest.mark.parametrize("what", GARBAGE)
def test_a_cache_file_of_garbage_is_begun_afresh(make_project: MakeProject, what: str) -> None:
    project = make_project()
    first = project.train(QUICK)
    for suffix in ("-wal", "-shm"):
        cache_file(project).with_name(f"logprobs.sqlite{suffix}").unlink(missing_ok=True)
    cache_file(project).write_bytes(GARBAGE[what])
    second = project.train(QUICK.model_copy(update={"beta": 0.2})).metrics["reference"]
    assert second == first.metrics["reference"], "computed once more"
    third = project.train(QUICK.model_copy(update={"beta": 0.3})).metrics["reference"]
    assert third["computed"] == 0, "and kept again"


def filled(path: Path, num: int = 400) -> dict[bytes, list[float]]:
    """A cache of many values; what is in it."""
    known = {
        LogprobCache.key("weights_a", "float32", [n], [n, n + 1]): [-float(n), -0.5]
        for n in range(num)
    }
    cache = LogprobCache(path)
    cache.put(known)
    cache.close()
    return known


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_cache_loses_values_and_never_gives_wrong_ones(tmp_path: Path, seed: int) -> None:
    """Bytes flipped, runs overwritten, the end cut off, anywhere in the file."""
    dice = random.Random(seed)
    path = tmp_path / "logprobs.sqlite"
    known = filled(path)
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 5, 200])):
        at = dice.randrange(dice.choice([200, len(content)]))  # the header is most of the trouble
        size = dice.choice([1, 1, 64])
        content[at : at + size] = dice.randbytes(size)
    path.write_bytes(content[: dice.choice([len(content), dice.randrange(len(content))])])
    cache = LogprobCache(path)
    found = cache.get(known)
    assert all(known[key] == values for key, values in found.items())
    cache.put(known)
    assert cache.get(known) == known
    cache.close()


def test_a_value_changed_on_disk_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "logprobs.sqlite"
    known = filled(path, 3)
    with sqlite3.connect(path) as file:
        (key, value), *_ = file.execute("SELECT key, value FROM logprobs")
        file.execute("UPDATE logprobs SET value = ? WHERE key = ?", (value[:-1] + b"\1", key))
        file.execute("UPDATE logprobs SET value = x'' WHERE key <> ?", (key,))
    file.close()
    cache = LogprobCache(path)
    assert cache.get(known) == {}
    cache.put(known)
    assert cache.get(known) == known
    cache.close()


def test_two_values_swapped_on_disk_are_not_known(tmp_path: Path) -> None:
    path = tmp_path / "logprobs.sqlite"
    known = filled(path, 2)
    with sqlite3.connect(path) as file:
        (one, first), (other, second) = file.execute("SELECT key, value FROM logprobs")
        file.execute("UPDATE logprobs SET value = ? WHERE key = ?", (second, one))
        file.execute("UPDATE logprobs SET value = ? WHERE key = ?", (first, other))
    file.close()
    cache = LogprobCache(path)
    assert cache.get(known) == {}
    cache.close()


def test_a_cache_that_cannot_be_opened_says_which_file(tmp_path: Path) -> None:
    path = tmp_path / "logprobs.sqlite"
    path.mkdir()
    with pytest.raises(StorageError, match=r"logprobs\.sqlite could not be read or kept"):
        LogprobCache(path)


def test_two_caches_on_one_file_know_what_either_was_told(tmp_path: Path) -> None:
    path = tmp_path / "logprobs.sqlite"
    one, other = LogprobCache(path), LogprobCache(path)
    keys = [LogprobCache.key("w", "float32", [n], [n]) for n in range(1200)]
    one.put({key: [-1.0] for key in keys[:600]})
    other.put({key: [-2.0] for key in keys[600:]})
    assert len(one.get(keys)) == len(other.get(keys)) == 1200
    one.close()
    other.close()


# --- never another's ------------------------------------------------------------------------------

TRIALS = 400


def others(dice: random.Random, prompt: list[int], ids: list[int]) -> Iterator[dict[str, Any]]:
    """Ways to ask for something that is not quite what was kept."""
    yield {"weights": "weights_" + "".join(dice.choices("0123456789abcdef", k=20))}
    yield {"weights": "weights_0"}
    at = dice.randrange(len(prompt))
    yield {"prompt": [*prompt[:at], prompt[at] + 1, *prompt[at + 1 :]]}
    yield {"prompt": prompt[1:] or [0]}
    yield {"prompt": [*prompt, dice.randrange(300)]}
    at = dice.randrange(len(ids))
    yield {"ids": [*ids[:at], ids[at] + 1, *ids[at + 1 :]]}
    yield {"ids": [*ids, dice.randrange(300)]}
    if len(ids) > 1:
        yield {"ids": ids[:-1]}
        # the same tokens in a row, cut elsewhere
        yield {"prompt": [*prompt, ids[0]], "ids": ids[1:]}
    if ids[0] >= 10:  # digits that join across a boundary
        yield {"prompt": [*prompt, ids[0] // 10], "ids": [ids[0] % 10, *ids[1:]]}
    if len(prompt) > 1:
        yield {"prompt": prompt[:-1], "ids": [prompt[-1], *ids]}


def test_the_cache_never_gives_one_the_log_probs_of_another(tmp_path: Path) -> None:
    dice = random.Random(11)
    cache = LogprobCache(tmp_path / "logprobs.sqlite")
    kept: dict[tuple, list[float]] = {}
    for trial in range(TRIALS):
        prompt = [dice.randrange(300) for _ in range(dice.randrange(1, 6))]
        ids = [dice.randrange(300) for _ in range(dice.randrange(1, 5))]
        said = {"weights": "weights_1", "dtype": "torch.float32", "prompt": prompt, "ids": ids}
        value = [-float(trial) - n / 8 for n in range(len(ids))]
        kept[tuple(map(str, said.values()))] = value
        cache.put({key(said): value})
        for change in [*others(dice, prompt, ids), {"dtype": "torch.bfloat16"}]:
            asked = said | change
            found = cache.get([key(asked)])
            expected = kept.get(tuple(map(str, asked.values())))
            assert list(found.values()) == ([expected] if expected else []), (said, change)
        assert cache.get([key(said)]) == {key(said): value}
    cache.close()


def key(said: dict[str, Any]) -> bytes:
    return LogprobCache.key(said["weights"], said["dtype"], said["prompt"], said["ids"])


def test_a_stored_log_prob_is_used_only_for_what_it_was_drawn_as() -> None:
    dice = random.Random(12)
    plain = Sampling(max_tokens=9, seed=1)
    hot = [
        Sampling(temperature=0.7),
        Sampling(temperature=0.0),
        Sampling(top_p=0.9),
        Sampling(temperature=1.0000001),
        Sampling(top_p=0.999999),
        None,
    ]
    for _ in range(TRIALS):
        prompt = [dice.randrange(300) for _ in range(dice.randrange(1, 6))]
        ids = [dice.randrange(300) for _ in range(dice.randrange(1, 5))]
        logprobs = tuple(-dice.random() for _ in ids)
        drawn = Completion(
            text="",
            token_ids=tuple(ids),
            logprobs=logprobs,
            weights="weights_1",
            after=chat.digest(prompt),
            sampling=plain,
        )
        assert stored_logprobs(drawn, "weights_1", prompt, ids) == logprobs
        for change in others(dice, prompt, ids):
            asked = {"weights": "weights_1", "prompt": prompt, "ids": ids} | change
            found = stored_logprobs(drawn, asked["weights"], asked["prompt"], asked["ids"])
            assert found is None, change
        spoilt = [
            *({"sampling": one} for one in hot),
            {"logprobs": logprobs[:-1]},
            {"logprobs": (*logprobs, -1.0)},
            {"logprobs": None},
            {"after": None},
            {"weights": None},
            {"token_ids": None},
            {"token_ids": tuple(ids[:-1]), "logprobs": logprobs[:-1]},
        ]
        for change in spoilt:
            other = drawn.model_copy(update=change)
            assert stored_logprobs(other, "weights_1", prompt, ids) is None, change


def test_through_a_whole_reference_every_number_is_the_models_own(
    promoted: tuple[Project, str],
) -> None:
    """Rows with every kind of doubtful log-probs in one pass, against plain forward passes. All
    stored numbers that must not be used are absurd."""
    project, _ = promoted
    dice = random.Random(13)
    backbone = project.champion.backbone
    base = backbone.base_weights
    prompts = [question(thing, n) for thing in ("sky", "coal") for n in range(6)]
    pairs = []
    for prompt in prompts:
        ids = chat.prompt_ids(backbone.tokenizer, prompt)
        sides = []
        for _ in range(2):
            tokens = tuple(dice.randrange(97, 120) for _ in range(dice.randrange(2, 6)))
            doubtful = {
                "weights": dice.choice([base, "weights_other", None]),
                "after": dice.choice([chat.digest(ids), chat.digest(ids[:-1]), None]),
                "sampling": dice.choice([Sampling(), Sampling(temperature=0.5), None]),
                "logprobs": tuple(-99.0 for _ in tokens[dice.choice([0, 0, 1]) :]),
            }
            if dice.random() < 0.3:
                doubtful |= {"weights": project.champion.weights, "after": "digest"}
            sides.append(Completion(text="x", token_ids=tokens, **doubtful))
        pairs.append(pair(prompt, *sides))
    rows, _ = encode(backbone, pairs, max_tokens=CONFIG.max_tokens)
    assert len(rows) == len(pairs)
    reference = reference_of(project, rows)
    with project.champion.acting() as model:
        assert agree(reference, rows, [oracle(model, row) for row in rows])
    assert reference.sources["stored"] == 0


def test_another_number_format_is_computed_anew(tmp_path: Path, tiny_model: Path) -> None:
    cache = LogprobCache(tmp_path / "logprobs.sqlite")
    row = Row("a", Branches([5, 6, 7], [[8, 9], [10]]), (), (), 1.0, "")
    row = row._replace(completions=(Completion(text="x"), Completion(text="y")))
    found = []
    for dtype in ("float32", "bfloat16"):
        backbone = Backbone.load(tiny_model, dtype=dtype)  # type: ignore[arg-type]
        reference = FixedReference(
            lambda model=backbone: model.acting_as(None),
            backbone.base_weights,
            tokens_per_batch=100,
            cache=cache,
        )
        reference.prepare([row])
        found.append(reference.of(row)[0])
        assert reference.sources == {"stored": 0, "cached": 0, "computed": 2}
    assert not torch.equal(*found)
    cache.close()


# --- a reference that is another model ------------------------------------------------------------


def test_kept_log_probs_of_another_model_stop_the_training(promoted: tuple[Project, str]) -> None:
    """As if a file had been copied from another project: right keys, wrong numbers."""
    project, _ = promoted
    wrong = {}
    with project.champion.acting() as model:
        dtype = str(next(model.parameters()).dtype)
    for row in rows_of(project):
        for ids in row.branches.completions:
            known = LogprobCache.key(project.champion.weights, dtype, row.branches.prompt_ids, ids)
            wrong[known] = [-1.0] * len(ids)
    cache = LogprobCache(cache_file(project))
    cache.put(wrong)
    cache.close()
    with pytest.raises(IdentityError, match="reference's log-probs are not those") as caught:
        project.train(QUICK)
    assert "logprobs.sqlite" in caught.value.next and "adapter" in caught.value.next


def test_a_reference_that_acts_as_another_model_stops_the_training(
    promoted: tuple[Project, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base in the champion's place: the hazard of loading a reference by the model's name."""
    project, _ = promoted
    backbone = project.champion.backbone
    real = FixedReference.__init__

    def base_instead(self: FixedReference, acting: Any, *others: Any, **more: Any) -> None:
        real(self, lambda: backbone.acting_as(None), *others, **more)

    monkeypatch.setattr(FixedReference, "__init__", base_instead)  # no setting does this
    with pytest.raises(IdentityError, match="reference's log-probs are not those") as caught:
        project.train(TrainConfig.model_validate(QUICK.model_dump()))
    assert "which adapter the reference is" in caught.value.next
    assert "log-probs differ by" in str(caught.value.got)
