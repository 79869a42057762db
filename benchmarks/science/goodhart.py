"""A reward model is not the truth: what happens to a policy that learns from one without a price.

3,000 labelled pairs train a reward model by `train.run`; the policy then learns from its scores by
RLOO with nothing that holds it to the base. The proxy is measured on the same prompts as the truth.
"""

from statistics import fmean
from typing import Any

from methods import train_online
from world import World

from trueup import pair, train
from trueup.toy.language import MAX_TOKENS
from trueup.toy.measure import sampling
from trueup.train.online.config import OnlineConfig
from trueup.train.online.rewards import resolve_reward
from trueup.train.policy import Policy

__all__ = ["goodhart"]

NUM_PAIRS = 3000
LOOK_AT = (0, 5, 10, 15, 20, 30, 60, 90, 120, 180, 240)


def goodhart(world: World) -> dict[str, Any]:
    """The truth and the proxy over 240 steps."""
    pairs = world.own_pairs(world.prompts(NUM_PAIRS, part=1))
    dataset = pair.freeze(world.store, pairs, source="science")
    config = world.config(
        method="reward",
        adapter="lora",
        learning_rate=3e-3,
        schedule="linear",
        warmup=0.1,
        epochs=4,
        eval_share=0.1,
        eval_every_steps=1000,
    )
    checkpoint = train.run(world.store, config, dataset, world.base)
    asked = OnlineConfig(reward=checkpoint.id, max_tokens=MAX_TOKENS)
    reward = resolve_reward(world.store, asked, world.base)
    looked = world.prompts(128, part=8, held_out=True)

    def proxy(policy: Policy) -> dict[str, float]:
        said = policy.backbone.complete(
            looked, sampling(0), role=policy.role, weights="looked-at", num_samples=2
        )
        scored, _ = reward.score(looked, said)
        return {"proxy": fmean(score for one in scored if one for score in one.scores)}

    online = {"prompts_per_step": 16, "num_samples": 4, "kl_coef": 0.0}
    found = train_online(world, "rloo", online, reward, seen=LOOK_AT, also=proxy)
    accuracy = checkpoint.metrics["accuracy"]
    return found | {
        "reward_model": {"pairs": checkpoint.metrics["num_pairs"], "accuracy": accuracy}
    }
