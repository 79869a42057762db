"""The step from a data set to a checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

from trueup.errors import TrainingError
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Dataset, PreferencePair, TrainingRun
from trueup.store import Store, storage_errors
from trueup.train.config import DPOConfig

__all__ = ["run"]

POLICY = "policy"


def run(store: Store, config: DPOConfig, dataset: Dataset, champion: StoredModel) -> Checkpoint:
    """Train a candidate from exactly the champion, against the champion as its reference.

    Reads:   the data set's pairs; the champion's weights.
    Writes:  one TrainingRun before the first step; one Checkpoint, a folder of safetensors with
             a JSON card.
    Skips:   empty completions, equal token sequences, pairs over `max_tokens`; counted by reason
             in the checkpoint's metrics.
    Keeps:   the weights it started from and referred to, the template's hash, the whole config.
    Again:   the same data set, champion and config return the same checkpoint, without training.
    Killed:  the next call resumes from the last saved step, to the same weights (bitwise on CPU).
    Stops:   IdentityError if the starting policy is not the champion; TrainingError on a
             non-finite loss or an empty data set.
    Cost:    about 3 forward passes a pair and epoch; the reference is free where the champion
             drew the completions.
    Next:    guard.run
    """
    backbone = champion.backbone
    record = TrainingRun(
        dataset_id=dataset.id,
        method=config.method,
        config=config.model_dump(mode="json"),
        base_weights=backbone.base_weights,
        start_weights=champion.weights,
        ref_weights=champion.weights,
        template=backbone.template,
    )
    store.add(record)
    finished = store.last(Checkpoint, run_id=record.id)
    if finished and (store.folder / finished.path).is_dir():
        return finished
    with storage_errors(store.folder):
        metrics = _train(store, config, dataset, champion, store.folder / "runs" / record.id)
        return _save(store, backbone, record, metrics)


def _train(
    store: Store, config: DPOConfig, dataset: Dataset, champion: StoredModel, folder: Path
) -> dict[str, Any]:
    """Train the policy role; returns what the checkpoint should say of it."""
    from trueup.train.data import encode
    from trueup.train.identity import check_identity
    from trueup.train.preference import train_preferences
    from trueup.train.reference import ref_logps

    pairs = store.get_all(PreferencePair, dataset.pair_ids)
    rows, skipped = encode(champion.backbone, pairs, max_tokens=config.max_tokens)
    if not rows:
        raise TrainingError(
            "The data set has no pair to train on",
            got=dict(skipped) or "no pairs",
            expected=f"pairs of at most {config.max_tokens} tokens with two different completions",
            next="raise train.max_tokens, or look at the pairs",
        )
    _start(champion, config)
    identity = check_identity(champion, POLICY, rows)
    refs = ref_logps(champion, rows, tokens_per_batch=config.tokens_per_batch)
    folder.mkdir(parents=True, exist_ok=True)
    history = train_preferences(champion.backbone, POLICY, rows, refs, config, folder)
    return {
        "num_pairs": len(rows),
        "skipped": dict(skipped),
        "identity": identity,
        "first": history[0],
        "last": history[-1],
        "history": history,
    }


def _start(champion: StoredModel, config: DPOConfig) -> None:
    """Give the policy the champion's own adapter, or, on the base, one that changes nothing yet."""
    if champion.adapter:
        champion.backbone.attach(POLICY, champion.adapter)
    else:
        champion.backbone.new_adapter(
            POLICY,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            targets=config.lora_targets,
            seed=config.seed,
        )


def _save(
    store: Store, backbone: Backbone, record: TrainingRun, metrics: dict[str, Any]
) -> Checkpoint:
    """Write the adapter beside its final place, rename it, then record it."""
    scratch = store.folder / "checkpoints" / f".{record.id}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    weights = backbone.save_adapter(
        POLICY, scratch, card={"run": record.model_dump(mode="json"), "metrics": metrics}
    )
    backbone.detach(POLICY)
    place = scratch.with_name(weights)
    if place.is_dir() and _same(backbone, place, weights):
        shutil.rmtree(scratch)  # the same weights are there, and may be serving
    else:
        shutil.rmtree(place, ignore_errors=True)
        scratch.rename(place)
    checkpoint = Checkpoint(
        run_id=record.id,
        path=str(place.relative_to(store.folder)),
        weights=weights,
        base_weights=backbone.base_weights,
        metrics=json.loads(json.dumps(metrics)),
    )
    store.add(checkpoint)
    shutil.rmtree(store.folder / "runs" / record.id, ignore_errors=True)
    return checkpoint


def _same(backbone: Backbone, place: Path, weights: str) -> bool:
    """True where a folder already holds these weights, whole."""
    try:
        return backbone.weights(place) == weights
    except (OSError, ValueError):
        return False
