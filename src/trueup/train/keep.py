"""A finished run's files, named by what they contain, and its checkpoint on the record."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trueup.errors import ModelError
from trueup.records import Checkpoint, TrainingRun
from trueup.store import Store

__all__ = ["keep", "new_folder"]


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
    base_weights: str,
    metrics: dict[str, Any],
    *,
    name_of: Callable[[Path], str],
) -> Checkpoint:
    """Rename what was written to `new_folder` to its final place, record it, then drop the run.

    Args:
        weights: the name of what was written.
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
        base_weights=base_weights,
        metrics=json.loads(json.dumps(metrics)),
    )
    store.add(checkpoint)
    shutil.rmtree(store.folder / "runs" / record.id, ignore_errors=True)
    return checkpoint


def _holds(place: Path, weights: str, name_of: Callable[[Path], str]) -> bool:
    """True where a folder already has these weights, whole."""
    try:
        return place.is_dir() and name_of(place) == weights
    except (OSError, ValueError, ModelError):
        return False
