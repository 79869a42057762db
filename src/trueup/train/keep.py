"""A finished run's files, named by what they contain, and its checkpoint on the record."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trueup.errors import ModelError
from trueup.models.backbone import Backbone, base_weights, is_whole
from trueup.records import Checkpoint, TrainingRun
from trueup.store import Store
from trueup.train.policy import Policy

__all__ = ["keep", "keep_policy", "new_folder", "weights_in"]


def new_folder(store: Store, record: TrainingRun) -> Path:
    """An empty folder beside the checkpoints' final places."""
    scratch = store.folder / "checkpoints" / f".{record.id}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def keep(
    store: Store,
    record: TrainingRun,
    weights: str,
    base: str,
    metrics: dict[str, Any],
    *,
    name_of: Callable[[Path], str],
) -> Checkpoint:
    """Rename what was written to `new_folder` to its final place, record it, then drop the run.

    Args:
        weights: the name of what was written; `base` of what it stands on.
        name_of: the name of the weights in a folder.
    """
    scratch = store.folder / "checkpoints" / f".{record.id}"
    place = scratch.with_name(weights)
    if _holds(place, weights, name_of):
        shutil.rmtree(scratch)  # the same weights are there, and may be in use
    else:
        shutil.rmtree(place, ignore_errors=True)
        scratch.rename(place)
    checkpoint = Checkpoint(
        run_id=record.id,
        path=str(place.relative_to(store.folder)),
        weights=weights,
        base_weights=base,
        metrics=json.loads(json.dumps(metrics)),
    )
    store.add(checkpoint)
    shutil.rmtree(store.folder / "runs" / record.id, ignore_errors=True)
    return checkpoint


def keep_policy(
    store: Store, policy: Policy, record: TrainingRun, metrics: dict[str, Any]
) -> Checkpoint:
    """Write what a policy has become."""
    scratch = new_folder(store, record)
    weights = policy.save(scratch, card={"run": record.model_dump(mode="json"), "metrics": metrics})
    base = policy.backbone.base_weights if not policy.is_whole else weights
    return keep(
        store, record, weights, base, metrics, name_of=lambda at: weights_in(policy.backbone, at)
    )


def weights_in(backbone: Backbone, folder: Path) -> str:
    """The name of a folder's weights: an adapter on this base, or a whole model."""
    return base_weights(folder) if is_whole(folder) else backbone.weights(folder)


def _holds(place: Path, weights: str, name_of: Callable[[Path], str]) -> bool:
    """True where a folder already has these weights, whole."""
    try:
        return place.is_dir() and name_of(place) == weights
    except (OSError, ValueError, ModelError):
        return False
