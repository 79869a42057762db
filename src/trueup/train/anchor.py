"""Which model a run is held to, and how its log-probs are had."""

from collections.abc import Sequence

from trueup.errors import ConfigError
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint
from trueup.store import Store
from trueup.train.config import TrainConfig
from trueup.train.data import Row
from trueup.train.logprob_cache import LogprobCache
from trueup.train.policy import Policy
from trueup.train.reference import FixedReference, MovingReference
from trueup.train.workers import Workers

__all__ = ["moving", "prepared", "reference_model", "reference_weights"]


def reference_weights(store: Store, config: TrainConfig, champion: StoredModel) -> str:
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


def reference_model(store: Store, config: TrainConfig, champion: StoredModel) -> StoredModel:
    """The frozen model that the settings name; for a moving average, where it starts."""
    if config.reference == "base":
        return StoredModel(store, champion.backbone, None)
    if config.reference in ("previous", "ema"):
        return champion
    return StoredModel(store, champion.backbone, config.reference, role="reference")


def moving(policy: Policy, config: TrainConfig, tokens_per_batch: int) -> MovingReference:
    """The policy's own moving average."""
    return MovingReference(
        policy.acting_as_average,
        policy.average,
        dict(policy.parameters),
        decay=config.ema_decay,
        tokens_per_batch=tokens_per_batch,
    )


def prepared(
    store: Store, model: StoredModel, rows: Sequence[Row], tokens_per_batch: int, workers: Workers
) -> FixedReference:
    """A stored model as the reference, with the log-probs of these rows at hand."""
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
