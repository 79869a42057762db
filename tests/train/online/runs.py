"""What the tests of online runs share: a project of a tiny taught model with prompts to answer, and
a way to end runs at any moment.

Ended runs are real processes and a real SIGKILL. Starting Python costs seconds, so one process that
has imported everything waits for work and forks for each run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tiny_project import ADAPTER, THINGS, environment, question, sha256

from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Dataset
from trueup.store import Store
from trueup.train import TrainConfig, run
from trueup.train.config import Method

METHODS: dict[str, tuple[Method, dict[str, Any]]] = {
    "ppo head": ("ppo", {"value": "head"}),
    "ppo adapter": ("ppo", {"value": "adapter"}),
    "ppo full": ("ppo", {"value": "full"}),
    "rloo": ("rloo", {}),
    "grpo": ("grpo", {}),
    "dr_grpo": ("dr_grpo", {}),
    "online_dpo": ("online_dpo", {}),
}
"""Every way an online run works."""
PROMPTS = tuple(question(thing) for thing in THINGS)
STEPS = 6


def setting(name: str = "rloo", **online: Any) -> TrainConfig:
    """Short runs on an easy reward; `train` among the words holds fields of the training."""
    method, own = METHODS[name]
    train = online.pop("train", {})
    settings = {
        "reward": "scorers:starts_with_um",
        "max_tokens": 8,
        "steps": STEPS,
        "prompts_per_step": len(PROMPTS),
        "num_samples": 4,
        "kl_coef": 0.02,
    }
    return TrainConfig.model_validate(
        {
            "method": method,
            "learning_rate": 1e-2,
            "lora_rank": 4,
            "lora_alpha": 8.0,
            "schedule": "constant",
            "warmup": 0.0,
            "save_every_steps": 1,
            "beta": 0.1,
            "online": settings | own | online,
        }
        | train
    )


class Project(NamedTuple):
    """What an online run reads."""

    store: Store
    champion: StoredModel
    dataset: Dataset

    @classmethod
    def make(cls, folder: Path, model: Path, *, prompts: tuple[Any, ...] = PROMPTS) -> "Project":
        store = Store(folder)
        dataset = Dataset(pair_ids=(), source="prompts", prompts=prompts)
        store.add(dataset)
        return cls(store, StoredModel.serving(store, Backbone.load(model)), dataset)

    def train(self, config: TrainConfig) -> Checkpoint:
        return run(self.store, config, self.dataset, self.champion)

    def history(self, config: TrainConfig) -> list[dict[str, float]]:
        return self.train(config).metrics["history"]

    def weights_of(self, checkpoint: Checkpoint) -> str:
        return sha256(self.store.folder / checkpoint.path / ADAPTER)

    def saved(self) -> int:
        """The newest saved step of a run that is not finished; -1 where nothing was saved."""
        found = [int(one.name[5:]) for one in self.store.folder.glob("runs/*/step-*")]
        return max(found, default=-1)


WAITING = """
import json, os, sys
from pathlib import Path
import peft, scipy.stats, torch, transformers.models.llama.modeling_llama
import trueup.judges.reward_model, trueup.train.online.run, trueup.models.sampler
from trueup.models.backbone import Backbone
from trueup.errors import TrueupError
from trueup.models.stored import StoredModel
from trueup.records import Dataset
from trueup.store import Store
from trueup.train import TrainConfig, run

for line in sys.stdin:
    told = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)
        continue
    os.environ.update(told["environment"])
    if "WORLD_SIZE" in os.environ:
        other = os.fork()
        os.environ["RANK"] = str(int(other == 0))
    store = Store(told["store"])
    champion = StoredModel.serving(store, Backbone.load(Path(told["model"])))
    config = TrainConfig.model_validate_json(told["config"])
    try:
        run(store, config, store.all(Dataset)[0], champion)
    except TrueupError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(bool("RANK" not in os.environ or not other or os.wait()))
    os._exit(0)
"""


class Runner:
    """A process that forks for every run it is asked for."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in `end`
        self.process = subprocess.Popen(
            [sys.executable, "-c", WAITING],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def begin(self, project: Project, config: TrainConfig, **variables: str) -> int:
        """Start a run; returns its process's id."""
        assert self.process.stdin and self.process.stdout
        told = {
            "store": str(project.store.folder),
            "model": str(project.champion.backbone.folder),
            "config": config.model_dump_json(),
            "environment": variables,
        }
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        """How the run ended, as `os.waitpid` has it; waits for that."""
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def kill_after(self, project: Project, config: TrainConfig, step: int, pause_s: float) -> None:
        """Send a run SIGKILL when it has saved this step or a later one, and a moment has gone."""
        child = self.begin(project, config)
        deadline = time.monotonic() + 120
        while project.saved() < step:
            assert time.monotonic() < deadline, "it never saved a state"
            time.sleep(0.002)
        time.sleep(pause_s)
        os.kill(child, 9)
        assert self.status() == 9

    def complaints(self) -> str:
        """All errors of all runs so far."""
        self._said.seek(0)
        return self._said.read()

    def end(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self._said.close()


MakeProject = Callable[..., Project]


class Undisturbed(NamedTuple):
    """A finished run that no test changes."""

    project: Project
    checkpoint: Checkpoint

    @property
    def history(self) -> list[dict[str, float]]:
        return self.checkpoint.metrics["history"]

    @property
    def weights(self) -> str:
        return self.project.weights_of(self.checkpoint)
