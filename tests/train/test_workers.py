"""Two real processes on one run: the adapter of one process, and one set of records."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_project import ADAPTER, CONFIG, Project, environment, fill, written_pairs

from trueup.cli.main import cli
from trueup.records import Checkpoint, PreferencePair, TrainingRun
from trueup.store import Store
from trueup.train import TrainConfig

CONFIG_OF_BOTH = TrainConfig.model_validate(
    CONFIG.model_dump()
    | {"method": "kto", "tokens_per_batch": 300, "save_every_steps": 2}
    | {"eval_share": 0.3, "eval_every_steps": 3, "eval_answers": 2}
)


def launch(words: list[object]) -> subprocess.CompletedProcess[str]:
    """Two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--master_port", str(port), *map(str, words)),
    ]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def rows_file(folder: Path) -> Path:
    """The written pairs, as an import brings them."""
    file = folder / "pairs.jsonl"
    rows = [
        {
            "prompt": [m.model_dump() for m in one.prompt],
            "chosen": one.chosen.text,
            "rejected": one.rejected.text,
        }
        for one in written_pairs()
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def only(store: Store) -> Checkpoint:
    (checkpoint,) = store.all(Checkpoint)
    return checkpoint


def equal(one: Path, other: Path) -> bool:
    """True where two adapters agree to 1e-5."""
    ours, theirs = load_file(one / ADAPTER), load_file(other / ADAPTER)
    return ours.keys() == theirs.keys() and all(
        torch.allclose(theirs[name], tensor, atol=1e-5, rtol=0) for name, tensor in ours.items()
    )


def one_record_of_everything(store: Store) -> None:
    assert store.count(TrainingRun) == store.count(Checkpoint) == 1
    assert [p.name for p in (store.folder / "checkpoints").iterdir()] == [only(store).weights]
    assert list((store.folder / "runs").iterdir()) == []


TOGETHER = """
import json, sys
from pathlib import Path

import torch
from trueup.errors import DataError
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Dataset
from trueup.store import Store
from trueup.train import TrainConfig, run
from trueup.train.workers import Workers

folder, model, config, told = sys.argv[1:]
workers = Workers()
weight = torch.nn.Parameter(torch.zeros(3))
if workers.rank == 0:  # the other process has no group in this step
    (weight * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
loss, figures = workers.join([weight], float(workers.rank + 1), [{"rank": workers.rank}])


def bad():
    raise DataError("Only the first looked", got=1)


try:
    workers.alone(bad)
except DataError as error:
    raised = str(error)
said = {
    "count": workers.count,
    "share": list(workers.share(range(5))),
    "alone": workers.alone(lambda: ["first", workers.rank]),
    "gradient": weight.grad.tolist(),
    "loss": loss,
    "figures": figures,
    "raised": raised,
}
store = Store(folder)
champion = StoredModel.serving(store, Backbone.load(Path(model)))
settings = TrainConfig.model_validate_json(config)
said["checkpoint"] = run(store, settings, store.all(Dataset)[0], champion).id
said["again"] = run(store, settings, store.all(Dataset)[0], champion).id
Path(f"{told}.{workers.rank}").write_text(json.dumps(said))
workers.end()
"""


@pytest.fixture(scope="module")
def both(
    tiny_model: Path, pairs: list[PreferencePair], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, Project, list[dict]]:
    """The same KTO run by one process and by two; and what each of the two has to say."""
    folder = tmp_path_factory.mktemp("workers")
    alone, together = (fill(Store(folder / n), tiny_model, pairs) for n in ("alone", "together"))
    alone.train(CONFIG_OF_BOTH)
    (folder / "together.py").write_text(TOGETHER)
    settings = CONFIG_OF_BOTH.model_dump_json()
    done = launch(
        [str(folder / "together.py"), together.store.folder, tiny_model, settings, folder / "told"]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads((folder / f"told.{rank}").read_text()) for rank in (0, 1)]
    return alone, together, said


def test_two_processes_share_out_their_work_and_sum_what_they_found(
    both: tuple[Project, Project, list[dict]],
) -> None:
    first, second = both[2]
    assert first["share"] == [0, 2, 4] and second["share"] == [1, 3]
    for said in (first, second):
        assert said["count"] == 2
        assert said["gradient"] == [1.0, 2.0, 3.0], "the second had no group, and no gradient"
        assert said["loss"] == 3.0
        assert said["figures"] == [{"rank": 0}, {"rank": 1}]


def test_what_the_first_does_alone_all_hear_of(both: tuple[Project, Project, list[dict]]) -> None:
    for said in both[2]:
        assert said["alone"] == ["first", 0]
        assert said["raised"] == "Only the first looked. Got 1."


def test_two_processes_come_to_the_adapter_of_one(
    both: tuple[Project, Project, list[dict]],
) -> None:
    alone, together, said = both
    ours, theirs = only(alone.store), only(together.store)
    assert equal(alone.store.folder / ours.path, together.store.folder / theirs.path)
    assert len(ours.metrics["history"]) == len(theirs.metrics["history"])
    for one, other in zip(ours.metrics["history"], theirs.metrics["history"], strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"seconds"}:
            assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), key
    assert {one["checkpoint"] for one in said} == {theirs.id}


def test_a_run_of_two_processes_is_on_record_once_and_again_returns_it(
    both: tuple[Project, Project, list[dict]],
) -> None:
    _, together, said = both
    one_record_of_everything(together.store)
    assert {one["again"] for one in said} == {only(together.store).id}


def test_two_processes_share_the_reference_pass(both: tuple[Project, Project, list[dict]]) -> None:
    """Neither computes what the other has: half comes out of the cache."""
    alone, together, _ = both
    ours, theirs = (only(one.store).metrics["reference"] for one in (alone, together))
    assert ours["cached"] == 0 < ours["computed"]
    assert theirs["stored"] == ours["stored"]
    assert theirs["computed"] + theirs["cached"] == ours["computed"]
    assert theirs["cached"] > 0 and theirs["computed"] > 0


def test_the_command_in_the_documentation_works_for_two_processes(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Data set and turn lock are the first process's business; both say what one would."""
    settings = f"[model]\nbase = '{tiny_model}'\n[train]\npairs_per_step = 4\nlora_rank = 4\n"
    words = ["train", "--dataset", str(rows_file(tmp_path)), "--json"]
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trueup.toml").write_text(settings + "tokens_per_batch = 64\n")
    alone = CliRunner().invoke(
        cli, ["--project", str(tmp_path / "alone"), *words], catch_exceptions=False
    )
    together = launch(["-m", "trueup", "--project", tmp_path / "together", *words])
    assert together.returncode == 0, together.stderr[-3000:]
    found = [json.loads(text)["checkpoint"] for text in (alone.stdout, together.stdout)]
    stores = [Store(tmp_path / name / ".trueup") for name in ("alone", "together")]
    for store, told in zip(stores, found, strict=True):
        assert only(store).id == told["id"], "and it was said once"
    one_record_of_everything(stores[1])
    assert equal(*(store.folder / only(store).path for store in stores))
