"""The step from a data set to a checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.errors import ConfigError, TrainingError
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Dataset, Label, Messages, PreferencePair, TrainingRun
from trueup.store import Store, storage_errors
from trueup.train.config import TrainConfig

if TYPE_CHECKING:
    from trueup.train.data import Row
    from trueup.train.policy import Policy
    from trueup.train.reference import FixedReference, MovingReference, NoReference, Reference
    from trueup.train.workers import Workers

__all__ = ["run", "served_template"]

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
    from trueup.train.data import held_out
    from trueup.train.fit import budget, fit
    from trueup.train.identity import check_identity, check_reference
    from trueup.train.objectives import KTO, SFT, Objective, Preference
    from trueup.train.policy import Policy
    from trueup.train.reference import NoReference
    from trueup.train.watch import Watch

    rows, told = _rows(store, config, dataset, champion, is_held_out)
    config = _settled(config, told)
    train_rows, held_rows = held_out(rows, config.eval_share)
    _need_rows(train_rows, config, told)
    _need_held_out(held_rows, config)

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


def _rows(
    store: Store,
    config: TrainConfig,
    dataset: Dataset,
    champion: StoredModel,
    is_held_out: Callable[[Messages], bool],
) -> tuple[list["Row"], dict[str, Any]]:
    """The tokens to train on, and what the checkpoint should say of them."""
    from trueup.train import quality
    from trueup.train.data import encode, encode_single
    from trueup.train.lint import lint

    pairs = store.get_all(PreferencePair, dataset.pair_ids)
    told: dict[str, Any] = {}
    if config.replay_share:
        earlier = [p for p in _earlier(store, dataset) if not is_held_out(p.prompt)]
        mix = quality.mix_replay(pairs, earlier, config.replay_share, config.seed)
        pairs = mix.pairs
        told["replay"] = {"replayed": mix.num_replayed, "wanted": mix.num_wanted}
    lint(
        champion.backbone,
        pairs,
        max_tokens=config.max_tokens,
        allow=frozenset(config.allow),
        served_template=served_template(store, champion),
    ).stop()
    rows, skipped = encode(champion.backbone, pairs, max_tokens=config.max_tokens)
    if config.method in ("kto", "sft") and dataset.label_ids:
        single, skipped_single = encode_single(
            champion.backbone, store.get_all(Label, dataset.label_ids), max_tokens=config.max_tokens
        )
        rows, skipped = rows + single, skipped + skipped_single
    if config.method == "sft":
        rows = [row for row in rows if any(row.desirable)]
    told |= {"num_usable": len(rows), "skipped": dict(skipped)}
    lengths = {row.id: row.lengths for row in rows}
    # all labels of these prompts: pairs keep one of several that agree, and noise is disagreement
    prompts = {p.prompt for p in pairs}
    labels = [one for one in store.each(Label) if one.prompt in prompts]
    usable = [p for p in pairs if p.id in lengths]
    if usable:
        found = quality.quality(usable, labels, lengths)
        told["quality"] = found.model_dump(mode="json")
        if found.length_coefficient:
            told["quality"]["length_coefficient"]["rdpo_alpha"] = (
                found.length_coefficient.rdpo_alpha
            )
    if config.short_share:
        rows = quality.raise_short_share(rows, config.short_share, config.seed, lengths)
    return rows, told


def _settled(config: TrainConfig, told: dict[str, Any]) -> TrainConfig:
    """The settings with every `auto` replaced by what the data says.

    Raises:
        ConfigError: the data does not say.
    """
    found, settled = told.get("quality", {}), {}
    for name, source, figure in (
        ("label_smoothing", "label_noise", "estimate"),
        ("alpha", "length_coefficient", "rdpo_alpha"),
    ):
        if getattr(config, name) != "auto":
            continue
        estimate = found.get(source)
        if estimate is None:
            raise ConfigError(
                f"train.{name} = 'auto' needs an estimate, and this data set gives none",
                got=source,
                expected="comparisons that were labelled more than once"
                if source == "label_noise"
                else "pairs of different lengths",
                next=f"set train.{name} to a number",
            )
        settled[name] = min(0.49, float(estimate[figure]))
    told["settled"] = settled
    return config.model_copy(update=settled)


def _need_rows(rows: list["Row"], config: TrainConfig, told: dict[str, Any]) -> None:
    if not rows and told["num_usable"]:
        raise TrainingError(
            "Every prompt is held out, so there is none to train on",
            got=f"train.eval_share = {config.eval_share:g}, {told['num_usable']} usable records",
            expected="prompts on both sides",
            next="lower train.eval_share, or bring more prompts",
        )
    if not rows:
        raise TrainingError(
            "The data set has no pair to train on",
            got=told["skipped"] or "no pairs",
            expected=f"pairs of at most {config.max_tokens} tokens with two different completions",
            next="raise train.max_tokens, or look at the pairs",
        )


def _need_held_out(rows: list["Row"], config: TrainConfig) -> None:
    """A line that nothing is measured against would never be crossed."""
    lines = [n for n in ("max_chosen_drop", "max_kl") if getattr(config, n) is not None]
    if lines and not rows:
        raise TrainingError(
            f"No prompt is held out, so train.{lines[0]} could not stop anything",
            got=f"train.eval_share = {config.eval_share:g}",
            expected="held-out prompts to measure on",
            next=f"raise train.eval_share, or unset train.{lines[0]}",
        )


def _earlier(store: Store, dataset: Dataset) -> list[PreferencePair]:
    """Pairs of earlier turns."""
    known = set(dataset.pair_ids)
    ids = [
        one
        for other in store.each(Dataset)
        if other.id != dataset.id and other.source == "loop"
        for one in other.pair_ids
        if one not in known
    ]
    return store.get_all(PreferencePair, list(dict.fromkeys(ids)))


def served_template(store: Store, champion: StoredModel) -> str | None:
    """The template the champion was trained and has served with; None for a base."""
    if champion.checkpoint is None:
        return None
    return store.get(TrainingRun, champion.checkpoint.run_id).template


def _reference_weights(store: Store, config: TrainConfig, champion: StoredModel) -> str:
    """The name of what the policy is held to."""
    if config.reference == "base":
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
    """Write the weights beside their final place, rename them, then record them."""
    scratch = store.folder / "checkpoints" / f".{record.id}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    weights = policy.save(scratch, card={"run": record.model_dump(mode="json"), "metrics": metrics})
    base = policy.backbone.base_weights if not policy.is_whole else weights
    place = scratch.with_name(weights)
    if place.is_dir() and _same(policy.backbone, place, weights):
        shutil.rmtree(scratch)  # the same weights are there, and may be serving
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


def _same(backbone: Backbone, place: Path, weights: str) -> bool:
    """True where a folder already holds these weights, whole."""
    from trueup.models.backbone import base_weights, is_whole

    try:
        if is_whole(place):
            return base_weights(place) == weights
        return backbone.weights(place) == weights
    except (OSError, ValueError):
        return False
