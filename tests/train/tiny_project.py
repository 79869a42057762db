"""What the tests of training share: a project of a tiny taught model, and ways to run it.

Half of the pairs are the champion's own samples with their log-probs, half are plain text from a
file; stopped runs are real processes and real signals.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from trueup import progress
from trueup.models.backbone import Backbone
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Completion, Dataset, Message, PreferencePair, Sampling
from trueup.store import Store
from trueup.train import TrainConfig, run
from trueup.train.data import Row
from trueup.train.reference import FixedReference

CONFIG = TrainConfig(epochs=2, pairs_per_step=4, learning_rate=2e-3, lora_rank=4, lora_alpha=8.0)
THINGS = ("sky", "leaf", "coal", "snow")
ADAPTER = "adapter_model.safetensors"


class Project(NamedTuple):
    """What a training run reads."""

    store: Store
    champion: StoredModel
    dataset: Dataset

    def train(self, config: TrainConfig = CONFIG) -> Checkpoint:
        return run(self.store, config, self.dataset, self.champion)

    def adapter(self, checkpoint: Checkpoint) -> Path:
        return self.store.folder / checkpoint.path / ADAPTER


MakeProject = Callable[..., Project]


def question(thing: str, spaces: int = 0) -> tuple[Message, ...]:
    return (Message(role="user", content=f"{thing}?{' ' * spaces}"),)


def pair(prompt: tuple[Message, ...], chosen: Completion, rejected: Completion) -> PreferencePair:
    return PreferencePair(
        prompt=prompt, chosen=chosen, rejected=rejected, margin=1.0, label_ids=("label_1",)
    )


def drawn_pairs(champion: StoredModel, seed: int = 1) -> list[PreferencePair]:
    """The champion's own answers, the shortest over the longest."""
    prompts = [question(thing, spaces) for thing in THINGS for spaces in (0, 1)]
    answers = champion.complete(prompts, Sampling(max_tokens=24, seed=seed), num_samples=4)
    found = []
    for prompt, group in zip(prompts, answers, strict=True):
        by_length = sorted(group, key=lambda c: len(c.token_ids or ()))
        if by_length[0].token_ids != by_length[-1].token_ids:
            found.append(pair(prompt, by_length[0], by_length[-1]))
    return found


def written_pairs() -> list[PreferencePair]:
    """Text that never was tokens, as an import brings it."""
    return [
        pair(
            question(thing, 2 + n),
            Completion(text=f"{colour}.", finish_reason="stop"),
            Completion(text=f"um, um, the {thing} is {colour}", finish_reason="stop"),
        )
        for thing, colour in zip(THINGS, ("blue", "green", "black", "white"), strict=True)
        for n in range(2)
    ]


def fill(store: Store, model: Path, pairs: list[PreferencePair]) -> Project:
    store.add_all(pairs)
    dataset = Dataset(pair_ids=tuple(p.id for p in pairs), source="loop")
    store.add(dataset)
    return Project(store, StoredModel.serving(store, Backbone.load(model)), dataset)


def save_windowed(folder: Path, tokenizer: Path) -> Path:
    """A random model that looks back over 24 tokens, fewer than a row of these pairs has."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

    words = AutoTokenizer.from_pretrained(tokenizer)
    config = MistralConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        sliding_window=24,
        tie_word_embeddings=True,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


class Trained(NamedTuple):
    """A finished run in a store that no test changes."""

    project: Project
    checkpoint: Checkpoint

    @property
    def folder(self) -> Path:
        return self.project.store.folder / self.checkpoint.path


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def logprobs_of(backbone: Backbone, role: str | None) -> torch.Tensor:
    """Of a fixed text, under a role."""
    row = Branches(list(range(3, 40)), [list(range(50, 70)), [7, 8, 9]])
    with torch.no_grad(), backbone.acting_as(role) as model:
        return torch.cat(completion_logprobs(model, [row])[0])


def reference_of(project: Project, rows: list[Row]) -> FixedReference:
    """The champion as the reference, ready for these rows."""
    reference = FixedReference(
        project.champion.acting, project.champion.weights, tokens_per_batch=200
    )
    reference.prepare(rows)
    return reference


@contextmanager
def heard(tasks: dict[str, int]) -> Iterator[None]:
    """Write down the name and size of every piece of work announced."""

    @contextmanager
    def listener(name: str, total: int) -> Iterator[Callable[[int], None]]:
        tasks[name] = total
        yield lambda _: None

    with progress.listen(listener):
        yield


STOPPABLE = CONFIG.model_copy(update={"epochs": 8, "save_every_steps": 2})
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


def start(project: Project, config: TrainConfig) -> subprocess.Popen[bytes]:
    """Train in a process of its own."""
    command = [sys.executable, "-c", TRAIN, project.store.folder, project.champion.backbone.folder]
    return subprocess.Popen(
        [*map(str, command), config.model_dump_json()], env=environment(), stderr=subprocess.DEVNULL
    )


def environment() -> dict[str, str]:
    """For a process that imports what this one does, and takes no more of the machine."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }


def stop_in_the_middle(
    project: Project,
    how: signal.Signals,
    config: TrainConfig = STOPPABLE,
    *,
    after_step: int = 1,
    pause_s: float = 0.0,
) -> list[dict]:
    """Train in another process and send it a signal once a state of `after_step` or a later one is
    saved, and `pause_s` has gone by; returns what the newest state says of the steps so far."""
    process = start(project, config)
    runs = project.store.folder / "runs"
    deadline = time.monotonic() + 120
    while not any(int(one.name[5:]) >= after_step for one in runs.glob("*/step-*")):
        assert process.poll() is None and time.monotonic() < deadline, "it never saved a state"
        time.sleep(0.002)
    time.sleep(pause_s)
    while process.poll() is None:  # Python drops a Ctrl-C that comes while it collects garbage
        process.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.25)
    assert process.returncode != 0
    state = max(runs.glob("*/step-*"))
    return json.loads((state / "state.json").read_text())["history"]
