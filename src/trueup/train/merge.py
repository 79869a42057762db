"""The step that keeps only a share of what a run changed."""

from typing import Any

from trueup.errors import ConfigError
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, TrainingRun
from trueup.store import Store, storage_errors

__all__ = ["merge"]


def merge(store: Store, checkpoint: Checkpoint, start: StoredModel, *, share: float) -> Checkpoint:
    """A checkpoint that lies `share` of the way from where a run started to what it gave.

    Lin et al. 2023, arXiv:2309.06256: interpolation gives up some of the gain for less of what
    alignment costs elsewhere.

    Reads:   both models' weights.
    Writes:  one TrainingRun with method `merge` and one Checkpoint.
    Keeps:   the share, both weights' names, and what cutting the product back to its rank lost.
    Again:   the same two and share return the same checkpoint.
    """
    from trueup.models.backbone import is_whole
    from trueup.models.merge import merge_adapters, merge_whole
    from trueup.train.keep import keep, new_folder, weights_in

    trained = store.get(TrainingRun, checkpoint.run_id)
    record = TrainingRun(
        dataset_id=trained.dataset_id,
        method="merge",
        config={"share": share, "of": [start.weights, checkpoint.weights], "run": trained.id},
        base_weights=checkpoint.base_weights,
        start_weights=start.weights,
        ref_weights=trained.ref_weights,
        template=trained.template,
    )
    store.add(record)
    finished = store.last(Checkpoint, run_id=record.id)
    if finished and (store.folder / finished.path).is_dir():
        return finished
    end, backbone = store.folder / checkpoint.path, start.backbone
    if is_whole(end) and start.adapter:
        raise ConfigError(
            "A whole model cannot be merged with an adapter on another",
            got=f"share {share:g} between {start.weights} and {checkpoint.weights}",
            expected="two adapters, or two whole models",
            next="set rounds.merge to 1, or train.adapter to 'lora'",
        )
    with storage_errors(store.folder):
        scratch = new_folder(store, record)
        if is_whole(end):
            merged = merge_whole(backbone.folder, end, scratch, share=share)
        else:
            merged = merge_adapters(start.adapter, end, scratch, share=share)
        metrics: dict[str, Any] = checkpoint.metrics | {
            "merge": {"share": share, **merged._asdict()}
        }
        weights = weights_in(backbone, scratch)
        base = weights if is_whole(end) else checkpoint.base_weights
        return keep(
            store, record, weights, base, metrics, name_of=lambda at: weights_in(backbone, at)
        )
