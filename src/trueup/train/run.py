"""The step from a data set to a checkpoint."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Dataset, Messages, TrainingRun
from trueup.store import Store, storage_errors
from trueup.train.config import ONLINE, TrainConfig
from trueup.train.gather import gather, need_held_out, need_rows, settled, sides

if TYPE_CHECKING:
    from trueup.train.online.rewards import Reward
    from trueup.train.reference import FixedReference, MovingReference, Reference
    from trueup.train.workers import Workers

__all__ = ["run", "unfinished"]

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
    from trueup.train.anchor import reference_weights
    from trueup.train.workers import Workers

    workers, backbone = Workers(), champion.backbone
    reward = _reward(store, config, champion)
    record = TrainingRun(
        dataset_id=dataset.id,
        method=config.method,
        config=_settings(config, reward),
        base_weights=backbone.base_weights,
        start_weights=champion.weights,
        ref_weights=reference_weights(store, config, champion),
        template=backbone.template,
    )
    finished = workers.alone(lambda: _recorded(store, record))
    if finished:
        if reward:
            reward.end()
        return finished
    record = store.get(TrainingRun, record.id)  # as it was first asked for
    with storage_errors(store.folder):
        if config.method == "reward":
            from trueup.train.reward import run_reward

            return run_reward(store, config, dataset, champion, record, is_held_out=is_held_out)
        if reward:
            from trueup.train.online.run import run_online

            return run_online(
                store, config, dataset, champion, record, reward, is_held_out=is_held_out
            )
        return _train(store, config, dataset, champion, record, is_held_out, workers)


def unfinished(
    store: Store, config: TrainConfig, champion: StoredModel, *, source: str
) -> Dataset | None:
    """The data set of this source that training with these settings was killed on, once it had
    saved a state. What came in since then would make another data set, and begin another run."""
    mine = config.outcome()
    for record in reversed(store.all(TrainingRun)):
        has_state = any((store.folder / "runs" / record.id).rglob("step-*"))
        theirs = {name: value for name, value in record.config.items() if name != "rewarded_by"}
        settings = {name: mine.get(name) for name in theirs}
        if has_state and record.start_weights == champion.weights and theirs == settings:
            dataset = store.get(Dataset, record.dataset_id)
            if dataset.source == source:
                return dataset
    return None


def _reward(store: Store, config: TrainConfig, champion: StoredModel) -> "Reward | None":
    """What scores the answers of an online method."""
    if config.method not in ONLINE:
        return None
    from trueup.train.online.rewards import resolve_reward

    return resolve_reward(store, config.online, champion)


def _settings(config: TrainConfig, reward: "Reward | None") -> dict[str, Any]:
    """All that decides the outcome: with a reward who it is, without one nothing of it."""
    if reward is None:
        return {name: value for name, value in config.outcome().items() if name != "online"}
    return config.outcome() | {"rewarded_by": reward.id}


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
    from trueup.train.anchor import moving, prepared, reference_model
    from trueup.train.fit import fit
    from trueup.train.identity import check_identity, check_reference
    from trueup.train.keep import keep_policy
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
    reference: FixedReference | MovingReference | NoReference
    if not {config.method, *config.plus} - WITHOUT_REFERENCE:
        reference = NoReference()
    elif config.reference == "ema":
        reference = moving(policy, config, tokens_per_batch)
    else:
        model = reference_model(store, config, champion)
        reference = prepared(store, model, rows, tokens_per_batch, workers)
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
            start = prepared(store, champion, held_rows, tokens_per_batch, workers)
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
    checkpoint = workers.alone(lambda: keep_policy(store, policy, record, metrics))
    policy.end()
    return checkpoint
