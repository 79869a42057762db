"""The runs that are compared: each trains with the product's own loop and is looked at on the way.

A run is a function of a world; it returns what is written as JSON.
"""

from collections.abc import Callable, Sequence
from typing import Any

from world import LOOK_AT, NUM_PAIRS, PAIRS_PER_STEP, STEPS, Eye, World

from trueup.models import chat
from trueup.models.offload import Offload
from trueup.records import PreferencePair
from trueup.toy.labellers import GoldJudge
from trueup.toy.language import MAX_TOKENS, foreign_writer
from trueup.train.fit import fit
from trueup.train.objectives import Preference
from trueup.train.online.critic import Critic
from trueup.train.online.engine import LocalEngine
from trueup.train.online.fit import OnlineRun, fit_online
from trueup.train.online.rewards import Reward
from trueup.train.online.rollouts import Prompt, Rollouts
from trueup.train.policy import Policy
from trueup.train.reference import NoReference

__all__ = ["offline_foreign", "offline_own", "online_dpo", "ppo", "rloo", "train_online"]

Found = dict[str, Any]


def offline_own(world: World, *, beta: float = 0.1) -> Found:
    """DPO on the base's own answers: on the policy's distribution at first, never again."""
    return _offline(world, world.own_pairs(world.prompts(NUM_PAIRS)), beta)


def offline_foreign(world: World) -> Found:
    """DPO on another writer's answers to the same prompts."""
    return _offline(world, world.written_pairs(world.prompts(NUM_PAIRS), foreign_writer), 0.1)


def _offline(world: World, pairs: Sequence[PreferencePair], beta: float) -> Found:
    rows, eye = world.rows(pairs), Eye.of(world)
    epochs = STEPS * PAIRS_PER_STEP // NUM_PAIRS
    config = world.config(method="dpo", beta=beta, epochs=epochs)
    policy = Policy.start(world.base, config)
    points, step = [eye.look(policy, 0)], 0

    def after_step() -> None:
        nonlocal step
        step += 1
        if step in LOOK_AT:
            points.append(eye.look(policy, step))

    objective = Preference(config, world.reference(rows))
    fitted = fit(
        policy.acting,
        policy.parameters,
        rows,
        objective,
        config,
        world.store.folder / "run",
        after_step=after_step,
    )
    return {"points": points, "labels": len(rows), "trained_on": _curves(fitted.history)}


def online_dpo(world: World) -> Found:
    """Two fresh answers of the policy to 64 new prompts a step, labelled by the same labeller."""
    online = {"prompts_per_step": PAIRS_PER_STEP, "num_samples": 2}
    return train_online(world, "online_dpo", online, world.reward(world.labeller), seen=LOOK_AT)


def rloo(world: World) -> Found:
    """Four answers to 16 prompts a step, scored by the truth; 0.1 for a nat."""
    online = {"prompts_per_step": 16, "num_samples": 4, "kl_coef": 0.1}
    return train_online(world, "rloo", online, world.reward(GoldJudge()), seen=LOOK_AT)


def ppo(world: World) -> Found:
    """One answer to 64 prompts a step, scored by the truth; a value model of its own."""
    online = {
        "prompts_per_step": 64,
        "num_samples": 1,
        "kl_coef": 0.1,
        "value": "full",
        "updates_per_batch": 2,
    }
    return train_online(world, "ppo", online, world.reward(GoldJudge()), seen=LOOK_AT)


def train_online(
    world: World,
    method: str,
    online: dict[str, Any],
    reward: Reward,
    *,
    seen: Sequence[int],
    also: Callable[[Policy], dict[str, float]] = lambda policy: {},
) -> Found:
    """Train on fresh answers and look at the policy after the steps `seen`.

    Args:
        also: further figures of the policy.
    """
    eye = Eye.of(world)
    steps = max(seen)
    config = world.config(
        method=method,
        online={"reward": "given", "max_tokens": MAX_TOKENS, "steps": steps, **online},
    )
    policy = Policy.start(world.base, config)
    reference = world.reference()
    if config.online.kl_coef == 0 and method != "online_dpo":
        reference = NoReference()
    engine = LocalEngine(policy, world.base.weights)
    rollouts = Rollouts(
        engine, policy.acting, reference, reward, config.online, tokens_per_batch=8192
    )
    stays = Offload(world.backbone, enabled=False)
    critic = Critic.start(world.base, policy, config, stays) if method == "ppo" else None
    folder = world.store.folder / "run"
    asked = world.prompts(steps * config.online.prompts_per_step)
    tokenizer = world.backbone.tokenizer
    prompts = [Prompt(one, tuple(chat.prompt_ids(tokenizer, one))) for one in asked]
    points = [eye.look(policy, 0) | also(policy)]

    def after_batch(step: int) -> None:
        if step in seen:
            points.append(eye.look(policy, step) | also(policy))

    run = OnlineRun(policy, engine, rollouts, reference, critic, config, folder)
    fitted = fit_online(run, prompts, [], after_batch=after_batch)
    num_scored = sum(int(one.get("answers", 0)) for one in fitted.history)
    labels = num_scored // 2 if method == "online_dpo" else num_scored
    return {"points": points, "labels": labels, "trained_on": _curves(fitted.history)}


def _curves(history: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """What the trainer logged, of every step."""
    names = ("chosen_logps_change", "accuracy", "score", "kl", "seconds", "rollout_seconds")
    return {
        name: [round(one[name], 5) for one in history]
        for name in names
        if all(name in one for one in history)
    }
