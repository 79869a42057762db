"""The step from prompts to a checkpoint, by way of the policy's own answers."""

from collections.abc import Callable

from trueup.errors import ConfigError
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Dataset, Messages, TrainingRun
from trueup.store import Store
from trueup.train.anchor import moving, reference_model
from trueup.train.config import TrainConfig
from trueup.train.identity import check_identity
from trueup.train.keep import keep_policy
from trueup.train.online.critic import Critic
from trueup.train.online.engine import LocalEngine
from trueup.train.online.fit import OnlineRun, fit_online
from trueup.train.online.prompts import prompts_of, sides
from trueup.train.online.rewards import Reward
from trueup.train.online.rollouts import Prompt, Rollouts
from trueup.train.policy import Policy
from trueup.train.reference import FixedReference, MovingReference, NoReference
from trueup.train.step import budget
from trueup.train.workers import Workers

__all__ = ["run_online"]

NUM_CHECKED = 3  # prompts whose first answers must have the log-probs the trainer computes


def run_online(
    store: Store,
    config: TrainConfig,
    dataset: Dataset,
    champion: StoredModel,
    record: TrainingRun,
    reward: Reward,
    *,
    is_held_out: Callable[[Messages], bool] = lambda prompt: False,
) -> Checkpoint:
    """Train a candidate from exactly the champion on answers of its own.

    Reads:   the data set's prompts; the champion's weights; the reward.
    Writes:  one Checkpoint, a folder of safetensors with a JSON card.
    Skips:   prompts that leave no room for an answer, or whose answers the reward cannot score;
             counted by reason in the checkpoint's metrics.
    Keeps:   for every batch score, KL, entropy, length, clip rate, skipped prompts.
    Killed:  the next call resumes from the last saved batch, to the same weights (bitwise on CPU).
    Stops:   IdentityError if the policy's first answers do not have the log-probs that the trainer
             computes for them; TrainingError if the reward fails too often, ready to be resumed.
    Cost:    a batch is one draw, one pass of the reference and about 3 an update; with PPO one more
             for the values.
    """
    _need_one_process()
    prompts, skipped = prompts_of(store, config, dataset, champion.backbone, is_held_out)
    ours, held_out = sides(prompts, config.eval_share)
    policy = Policy.start(champion, config)
    rollouts, engine = _rollouts(store, config, champion, policy, reward)
    identity = _check(champion, policy, rollouts, engine, ours or held_out, config)
    critic = Critic.start(champion, policy, config) if config.method == "ppo" else None
    folder = store.folder / "runs" / record.id
    folder.mkdir(parents=True, exist_ok=True)
    run = OnlineRun(policy, engine, rollouts, rollouts.reference, critic, config, folder)
    fitted = fit_online(run, ours, held_out)
    metrics = {
        "num_prompts": len(ours),
        "num_held_out": len(held_out),
        "skipped": dict(skipped + fitted.skipped),
        "rewarded_by": reward.id,
        "identity": identity,
        "stopped": fitted.stopped,
        "first": fitted.history[0],
        "last": fitted.history[-1],
        "history": fitted.history,
    }
    checkpoint = keep_policy(store, policy, record, metrics)
    policy.end()
    if critic:
        critic.end()
    return checkpoint


def _rollouts(
    store: Store, config: TrainConfig, champion: StoredModel, policy: Policy, reward: Reward
) -> tuple[Rollouts, LocalEngine]:
    tokens_per_batch = budget(config, policy.backbone.device)
    reference: FixedReference | MovingReference | NoReference
    if config.online.kl_coef == 0 and config.method != "online_dpo":
        reference = NoReference()
    elif config.reference == "ema":
        reference = moving(policy, config, tokens_per_batch)
    else:
        model = reference_model(store, config, champion)
        reference = FixedReference(model.acting, model.weights, tokens_per_batch=tokens_per_batch)
    engine = LocalEngine(policy, champion.weights)
    rollouts = Rollouts(
        engine, policy.acting, reference, reward, config.online, tokens_per_batch=tokens_per_batch
    )
    return rollouts, engine


def _check(
    champion: StoredModel,
    policy: Policy,
    rollouts: Rollouts,
    engine: LocalEngine,
    prompts: list[Prompt],
    config: TrainConfig,
) -> dict[str, float]:
    """The identity gate on answers drawn now: a fresh policy is the champion, so what it draws
    carries the champion's name, and sampler, kernel and a plain pass must agree on it."""
    groups, _ = rollouts.groups(prompts[:NUM_CHECKED], seed=config.seed, name="identity")
    if not groups:
        return {}
    return check_identity(champion, policy.acting, [g.row for g in groups], config)


def _need_one_process() -> None:
    if Workers().count > 1:
        raise ConfigError(
            "Online methods run in one process",
            got=f"{Workers().count} processes",
            expected="one",
            next="start it without torchrun; offline methods take several",
        )
