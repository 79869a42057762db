"""Six weeks of the loop: 768 new prompts, four answers each, the best against the worst, DPO."""

import random
from typing import Any

from world import Eye, World

from trueup import pair, train
from trueup.models.stored import StoredModel
from trueup.records import Completion, Label, PreferencePair
from trueup.toy.language import FILLERS, copy_prompts, words

__all__ = ["iterative", "weekly", "with_likelihood", "with_replay"]

WEEKS, PROMPTS, EPOCHS = 6, 768, 4
NUM_COPIES = 3072
SFT = 2.0


def weekly(
    world: World,
    *,
    weeks: int = WEEKS,
    prompts: int = PROMPTS,
    num_samples: int = 4,
    replay_share: float = 0.0,
    sft: float = 0.0,
) -> dict[str, Any]:
    """Each week starts from, and refers to, what the last one gave."""
    eye, model = Eye.of(world), world.base
    pair.freeze(world.store, copy_pairs(world), source="loop")
    points = [eye.look(model, 0)]
    for week in range(1, weeks + 1):
        asked = world.prompts(prompts, part=10 + week)
        pairs = world.own_pairs(asked, model=model, num_samples=num_samples)
        dataset = pair.freeze(world.store, pairs, source="loop")
        config = world.config(
            method="dpo",
            epochs=EPOCHS,
            replay_share=replay_share,
            plus={"sft": sft} if sft else {},
            seed=world.seed * 100 + week,
        )
        checkpoint = train.run(world.store, config, dataset, model)
        model = StoredModel(world.store, world.backbone, checkpoint.id)
        points.append(eye.look(model, week))
    return {"points": points, "labels": weeks * prompts}


def with_likelihood(world: World) -> dict[str, Any]:
    """The same with the likelihood of the chosen answers beside DPO; the control of `with_replay`,
    whose copies are kept by that term."""
    return weekly(world, sft=SFT)


def with_replay(world: World) -> dict[str, Any]:
    """As `with_likelihood`, and half of each week's pairs are of earlier weeks, the copies
    among them."""
    return weekly(world, sft=SFT, replay_share=0.5)


def iterative(world: World) -> dict[str, Any]:
    """Four rounds with the labels of an offline run: two answers to 384 prompts a round."""
    return weekly(world, weeks=4, prompts=384, num_samples=2)


def copy_pairs(world: World) -> list[PreferencePair]:
    """What the model was once labelled on for its second skill: the right copy, and one with a
    word that is wrong."""
    rng, labels = random.Random(world.seed), []
    for prompt in copy_prompts(NUM_COPIES, world.seed):
        right = words(prompt[-1].content)[1:]
        at = rng.randrange(len(right))
        slip = rng.choice([word for word in FILLERS if word != right[at]])
        wrong = [*right[:at], slip, *right[at + 1 :]]
        labels.append(
            Label(
                prompt=prompt,
                candidates=(Completion(text=" ".join(right)), Completion(text=" ".join(wrong))),
                scores=(1.0, 0.0),
                annotator="code:toy-copies/1",
                annotator_kind="code",
            )
        )
    world.store.add_all(labels)
    return world.pairs_of(labels)
