"""The step from prompts to a checkpoint, by way of the policy's own answers."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from trueup.errors import ConfigError, TrainingError
from trueup.models.offload import Offload
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Dataset, Messages, TrainingRun
from trueup.store import Store
from trueup.train.anchor import moving, reference_model
from trueup.train.config import TrainConfig
from trueup.train.identity import check_identity
from trueup.train.keep import keep_policy
from trueup.train.online.choices import importance_of
from trueup.train.online.critic import Critic
from trueup.train.online.engine import Engine, LocalEngine
from trueup.train.online.fit import OnlineRun, fit_online
from trueup.train.online.gap import check_engine, engine_gap
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
             computes for them; TrainingError if the reward fails too often or a server's log-probs
             leave the policy's, UpstreamError if it is down, both ready to be resumed.
    Cost:    a batch is one draw, one pass of the reference and about 3 an update; with PPO one more
             for the values.
    """
    _need_one_process()
    config = _settled(config)
    prompts, skipped = prompts_of(store, config, dataset, champion.backbone, is_held_out)
    ours, held_out = sides(prompts, config.eval_share)
    _need_both_sides(ours, held_out, config)
    with ExitStack() as held:  # roles and adapters are given back however this ends
        held.callback(reward.end)
        policy = Policy.start(champion, config)
        held.callback(policy.end)
        folder = store.folder / "runs" / record.id
        engine = _engine(config, champion, policy, folder / "engine")
        held.callback(engine.end)
        served = Offload(champion.backbone, enabled=config.online.offload and policy.is_whole)
        held.callback(served.end)
        reward.near = served.here
        rollouts = _rollouts(store, config, champion, policy, engine, reward, served)
        with served.here():
            identity = _check(champion, policy, rollouts, ours, config)
        critic = None
        if config.method == "ppo":
            critic = Critic.start(champion, policy, config, served)
            held.callback(critic.end)
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
        return keep_policy(store, policy, record, metrics)


def _settled(config: TrainConfig) -> TrainConfig:
    """With the correction that the engine calls for."""
    importance = importance_of(config.method, config.online)
    online = config.online.model_copy(update={"importance": importance})
    return config.model_copy(update={"online": online})


def _engine(config: TrainConfig, champion: StoredModel, policy: Policy, folder: Path) -> Engine:
    engine = config.online.engine
    if engine.kind == "local":
        return LocalEngine(policy, champion.weights)
    from trueup.models.vllm import VLLMServer
    from trueup.train.online.vllm import VLLMEngine

    server = VLLMServer(
        engine.base_url,
        api_key_env=engine.api_key_env,
        timeout_s=engine.timeout_s,
        concurrency=engine.concurrency,
        max_retries=engine.max_retries,
    )
    return VLLMEngine(policy, champion.weights, server, folder, adapter=engine.adapter)


def _rollouts(
    store: Store,
    config: TrainConfig,
    champion: StoredModel,
    policy: Policy,
    engine: Engine,
    reward: Reward,
    served: Offload,
) -> Rollouts:
    tokens_per_batch = budget(config, policy.backbone.device)
    reference: FixedReference | MovingReference | NoReference
    measured_against = config.method == "online_dpo" or config.max_kl is not None
    if config.online.kl_coef == 0 and not measured_against:
        reference = NoReference()
    elif config.reference == "ema":
        reference = moving(policy, config, tokens_per_batch)
    else:
        model = reference_model(store, config, champion)
        acting = served.acting(model.acting)
        reference = FixedReference(acting, model.weights, tokens_per_batch=tokens_per_batch)
    return Rollouts(
        engine, policy.acting, reference, reward, config.online, tokens_per_batch=tokens_per_batch
    )


def _check(
    champion: StoredModel,
    policy: Policy,
    rollouts: Rollouts,
    prompts: list[Prompt],
    config: TrainConfig,
) -> dict[str, float]:
    """The identity gate on answers drawn now. A fresh policy is the champion, so what it draws
    itself carries the champion's name, and sampler, kernel and a plain pass must agree on it. A
    server's answers carry another name; how far its log-probs are off is measured here."""
    rows = rollouts.rows(prompts[:NUM_CHECKED], seed=config.seed, name="identity")
    figures = check_identity(champion, policy.acting, rows, config)
    if config.online.engine.kind != "local":
        gap = engine_gap(rows, rollouts.policy_logprobs(rows))
        figures |= check_engine(gap, rollouts.importance)
    return figures


def _need_both_sides(ours: list[Prompt], held_out: list[Prompt], config: TrainConfig) -> None:
    """A run without prompts learns nothing; a line that nothing is measured against stops
    nothing."""
    if not ours:
        raise TrainingError(
            "Every prompt is held out, so there is none to learn on",
            got=f"{len(held_out)} prompts, train.eval_share = {config.eval_share:g}",
            expected="prompts on both sides",
            next="lower train.eval_share, or give more prompts",
        )
    if config.max_kl is not None and not held_out:
        raise TrainingError(
            "No prompt is held out, so train.max_kl could not stop anything",
            got=f"train.eval_share = {config.eval_share:g}",
            expected="held-out prompts to measure on",
            next="raise train.eval_share, or unset train.max_kl",
        )


def _need_one_process() -> None:
    if Workers().count > 1:
        raise ConfigError(
            "Online methods run in one process",
            got=f"{Workers().count} processes",
            expected="one",
            next="start it without torchrun; offline methods take several",
        )
