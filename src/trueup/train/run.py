"""The step from a data set to a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.errors import ConfigError
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Dataset, Messages, TrainingRun
from trueup.store import Store, storage_errors
from trueup.train.config import TrainConfig
from trueup.train.gather import gather, need_held_out, need_rows, settled, sides
from trueup.train.keep import keep, new_folder

if TYPE_CHECKING:
    from trueup.train.data import Row
    from trueup.train.policy import Policy
    from trueup.train.reference import FixedReference, MovingReference, NoReference, Reference
    from trueup.train.workers import Workers

__all__ = ["run"]

WITHOUT_REFERENCE = frozenset(("simpo", "orpo", "sft", "reward"))


def run(
    store: Store,
    config: TrainConfig,
    dataset: Dataset,
    champion: StoredModel,
    *,
    is_held_out: Callable[[Messages], bool] = lambda prompt: False,
) -> Checkpoint:
    """Train a candidate from exactly the champion.

    Reads:   the data set's pairs and unpaired labels; the champion's weights; with `replay_share`
             the pairs of earlier turns that `is_held_out` lets through.
    Writes:  one TrainingRun before the first step; one Checkpoint, a folder of safetensors with
             a JSON card.
    Skips:   empty completions, equal token sequences, records over `max_tokens`; counted by reason
             in the checkpoint's metrics.
    Keeps:   the weights it started from and referred to, the template's hash, the whole config.
    Again:   the same data set, champion and config return the same checkpoint, without training.
    Killed:  the next call resumes from the last saved step, to the same weights (bitwise on CPU).
    Stops:   DataError if the linter finds what `allow` does not name; IdentityError if the
             starting policy is not the champion; TrainingError on a non-finite loss or an empty
             data set.
    Cost:    about 3 forward passes a pair and epoch; the reference is free where it drew the
             completions, or where any earlier run asked for the same ones.
    Next:    guard.run
    """
    from trueup.train.workers import Workers

    workers, backbone = Workers(), champion.backbone
    record = TrainingRun(
        dataset_id=dataset.id,
        method=config.method,
        config=config.model_dump(mode="json"),
        base_weights=backbone.base_weights,
        start_weights=champion.weights,
        ref_weights=_reference_weights(store, config, champion),
        template=backbone.template,
    )
    finished = workers.alone(lambda: _recorded(store, record))
    if finished:
        return finished
    record = store.get(TrainingRun, record.id)  # as it was first asked for
    with storage_errors(store.folder):
        if config.method == "reward":
            from trueup.train.reward import run_reward

            return run_reward(store, config, dataset, champion, record, is_held_out=is_held_out)
        return _train(store, config, dataset, champion, record, is_held_out, workers)


def _recorded(store: Store, record: TrainingRun) -> Checkpoint | None:
    """Put the run on the record; its checkpoint, if it was finished before."""
    store.add(record)
    finished = store.last(Checkpoint, run_id=record.id)
    return finished if finished and (store.folder / finished.path).is_dir() else None


def _train(
    store: Store,
    config: TrainConfig,
    dataset: Dataset,
    champion: StoredModel,
    record: TrainingRun,
    is_held_out: Callable[[Messages], bool],
    workers: "Workers",
) -> Checkpoint:
    from trueup.train.fit import fit
    from trueup.train.identity import check_identity, check_reference
    from trueup.train.objectives import KTO, SFT, Objective, Preference
    from trueup.train.policy import Policy
    from trueup.train.reference import NoReference
    from trueup.train.step import budget
    from trueup.train.watch import Watch

    rows, told = gather(store, config, dataset, champion, is_held_out, before=record.created_at)
    config = settled(config, told)
    train_rows, held_rows = sides(rows, config, config.eval_share)
    need_rows(train_rows, config, told)
    need_held_out(held_rows, config)

    policy = Policy.start(champion, config)
    identity = check_identity(champion, policy.acting, rows, config)
    tokens_per_batch = budget(config, policy.backbone.device)
    reference = _reference(store, config, champion, policy, rows, tokens_per_batch, workers)
    identity |= check_reference(reference, champion, rows, config)
    objective: Objective
    if config.method == "kto":
        objective = KTO(config, reference)
    elif config.method == "sft":
        objective = SFT()
    else:
        objective = Preference(config, reference)
    watch = None
    if held_rows:
        start: Reference = reference
        if config.reference != "previous" or isinstance(reference, NoReference):
            start = _fixed(store, champion, held_rows, tokens_per_batch, workers)
        watch = Watch(
            policy.backbone,
            held_rows,
            objective,
            reference,
            config,
            tokens_per_batch=tokens_per_batch,
            start=start,
        )
    folder = store.folder / "runs" / record.id
    folder.mkdir(parents=True, exist_ok=True)
    fitted = fit(
        policy.acting,
        policy.parameters,
        train_rows,
        objective,
        config,
        folder,
        kept=policy.average,
        watching=watch,
        after_step=reference.moved,
        workers=workers,
    )
    metrics = {
        "num_pairs": len(train_rows),
        "num_held_out": len(held_rows),
        **told,
        "identity": identity,
        "reference": getattr(reference, "sources", {}),
        "stopped": fitted.stopped,
        "first": fitted.history[0],
        "last": fitted.history[-1],
        "history": fitted.history,
    }
    checkpoint = workers.alone(lambda: _save(store, policy, record, metrics))
    policy.end()
    return checkpoint


def _reference_weights(store: Store, config: TrainConfig, champion: StoredModel) -> str:
    """The name of what the policy is held to."""
    if config.reference == "base":
        if champion.checkpoint and champion.weights == champion.backbone.base_weights:
            raise ConfigError(
                "The champion is a whole model, so it has no base below it to refer to",
                got="train.reference = 'base'",
                expected="'previous', or a checkpoint's id",
                next="set train.reference to 'previous'",
            )
        return champion.backbone.base_weights
    if config.reference in ("previous", "ema"):
        return champion.weights
    return store.get(Checkpoint, config.reference).weights


def _reference(
    store: Store,
    config: TrainConfig,
    champion: StoredModel,
    policy: "Policy",
    rows: list["Row"],
    tokens_per_batch: int,
    workers: "Workers",
) -> "FixedReference | MovingReference | NoReference":
    from trueup.train.reference import MovingReference, NoReference

    if not {config.method, *config.plus} - WITHOUT_REFERENCE:
        return NoReference()
    if config.reference == "ema":
        return MovingReference(
            policy.acting_as_average,
            policy.average,
            dict(policy.parameters),
            decay=config.ema_decay,
            tokens_per_batch=tokens_per_batch,
        )
    model = champion
    if config.reference == "base":
        model = StoredModel(store, champion.backbone, None)
    elif config.reference != "previous":
        model = StoredModel(store, champion.backbone, config.reference, role="reference")
    return _fixed(store, model, rows, tokens_per_batch, workers)


def _fixed(
    store: Store, model: StoredModel, rows: list["Row"], tokens_per_batch: int, workers: "Workers"
) -> "FixedReference":
    """A stored model as the reference, with the log-probs of these rows at hand."""
    from trueup.train.logprob_cache import LogprobCache
    from trueup.train.reference import FixedReference

    cache = LogprobCache(store.folder / "cache" / "logprobs.sqlite")
    fixed = FixedReference(
        model.acting, model.weights, tokens_per_batch=tokens_per_batch, cache=cache
    )
    if workers.count > 1:  # each a share; the cache then has the others'
        fixed.prepare(workers.share(rows))
        workers.wait()
    fixed.prepare(rows)
    cache.close()
    return fixed


def _save(
    store: Store, policy: "Policy", record: TrainingRun, metrics: dict[str, Any]
) -> Checkpoint:
    scratch = new_folder(store, record)
    weights = policy.save(scratch, card={"run": record.model_dump(mode="json"), "metrics": metrics})
    base = policy.backbone.base_weights if not policy.is_whole else weights
    return keep(
        store, record, weights, base, metrics, name_of=lambda at: _weights_in(policy.backbone, at)
    )


def _weights_in(backbone: Backbone, folder: Path) -> str:
    from trueup.models.backbone import base_weights, is_whole

    return base_weights(folder) if is_whole(folder) else backbone.weights(folder)
