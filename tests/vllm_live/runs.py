"""Whole training runs whose rollouts a vLLM server draws, see `scenarios.py`."""

from pathlib import Path
from statistics import fmean

from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Completion, Dataset, Message, Messages, PreferencePair, TrainingRun
from trueup.store import Store
from trueup.train import TrainConfig, run

__all__ = ["CONFIG", "RUNS", "a_short_rloo_run", "engine_at", "filled", "low"]

CONFIG = {
    "method": "rloo",
    "learning_rate": 2e-3,
    "schedule": "constant",
    "warmup": 0.0,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "online": {
        "reward": "vllm_live.runs:low",
        "prompts_per_step": 3,
        "num_samples": 4,
        "max_tokens": 12,
        "steps": 3,
    },
}


def low(prompt: Messages, text: str) -> float:
    """The more of an answer is plain characters, the better."""
    return fmean(map(str.isascii, text)) if text else 0.0


def engine_at(url: str, **more: object) -> dict:
    """`[train.online.engine]` for a server."""
    return {"kind": "vllm", "base_url": url, "max_retries": 0, "timeout_s": 120.0, **more}


def filled(folder: Path, model: Path) -> tuple[Store, Dataset, StoredModel]:
    """A store with a data set, whose prompts are what matters, and the base as the champion."""
    store = Store(folder)
    pairs = [
        PreferencePair(
            prompt=(Message(role="user", content=f"{word}?"),),
            chosen=Completion(text="a"),
            rejected=Completion(text="b"),
            margin=1.0,
            label_ids=("label_1",),
        )
        for word in ("sky", "leaf", "coal", "snow")
    ]
    store.add_all(pairs)
    dataset = Dataset(pair_ids=tuple(p.id for p in pairs), source="loop")
    store.add(dataset)
    backbone = Backbone.load(model, device="cpu", dtype="float32")
    return store, dataset, StoredModel.serving(store, backbone)


def a_short_rloo_run(folder: Path, model: Path, url: str) -> None:
    store, dataset, champion = filled(folder, model)
    config = TrainConfig.model_validate(
        CONFIG | {"online": {**CONFIG["online"], "engine": engine_at(url)}}
    )
    metrics = run(store, config, dataset, champion).metrics
    assert metrics["identity"]["engine_gap"] < 1e-5
    assert metrics["identity"]["engine_gap_max"] < 1e-4
    assert "served_gap" not in metrics["identity"], "a server's answers are not what served"
    history = metrics["history"]
    print("\n", metrics["identity"], *history, sep="\n")
    assert [batch["answers"] for batch in history] == [12.0, 4.0, 12.0], (
        "of four prompts, in threes"
    )
    assert all(abs(batch["weight"] - 1) < 1e-3 for batch in history)
    # the server follows: after two updates its log-probs are still the policy's
    assert all(abs(batch["engine_kl"]) < 1e-6 for batch in history)
    assert history[-1]["kl"] > 1e-4, "the policy did not move, so nothing was shown"
    assert store.all(TrainingRun)[0].config["online"]["engine"]["kind"] == "vllm"
    store.close()


RUNS = {one.__name__: one for one in (a_short_rloo_run,)}
