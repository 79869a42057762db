"""A model's own answers, ranked: N a prompt, each set one label."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from trueup import pair
from trueup.errors import DataError
from trueup.judges import version_of
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.project import Project
from trueup.records import (
    Completion,
    Dataset,
    Label,
    Messages,
    PreferencePair,
    Sampling,
    content_hash,
)
from trueup.rounds.config import RoundsConfig
from trueup.store import Store
from trueup.suite import read_suite
from trueup.train.online.config import OnlineConfig
from trueup.train.online.rewards import Reward, resolve_reward

__all__ = ["Ranked", "pairs_of", "prompts_of", "rank_answers", "reward_of"]

NO_ROOM = "no room for an answer in the model's context"
BATCH = 32  # prompts between two commits


class Ranked(NamedTuple):
    """Labels of one model's answers, and the prompts left out counted by reason."""

    labels: list[Label]
    skipped: Counter[str]


def reward_of(project: Project, config: RoundsConfig, champion: StoredModel) -> Reward:
    """What ranks.

    Raises:
        ConfigError: there is none of this name.
    """
    asked = OnlineConfig(
        reward=config.reward,
        endpoint=config.endpoint,
        audit=config.audit,
        max_skip_rate=config.max_skip_rate,
        reward_timeout_s=config.reward_timeout_s,
    )
    return resolve_reward(project.store, asked, champion)


def prompts_of(
    project: Project, config: RoundsConfig, held_out: pair.HeldOut, model: StoredModel
) -> tuple[list[Messages], Counter[str]]:
    """The prompts to answer, in an order of their own hashes, and those left out by reason.

    Raises:
        DataError: there are none.
    """
    if config.prompts:
        read = read_suite(project.folder / config.prompts, split="train", setting="rounds.prompts")
        found = [p.messages for p in read if not held_out.contains(p.messages)]
    else:
        found = _of_traffic(project.store, config, held_out, model)
    asked = list(dict.fromkeys(found))
    fitting = [p for p in asked if model.fits(p, config.max_tokens)]
    if not fitting:
        raise DataError(
            "There is no prompt to answer",
            got=f"{len(found)} prompts in {config.prompts or 'the traffic'}, none of which fits",
            expected="prompts that are not held out and leave room for an answer",
            next="serve or import traffic, or name a file in rounds.prompts",
        )
    skipped = Counter({NO_ROOM: len(asked) - len(fitting)} if len(fitting) < len(asked) else {})
    return sorted(fitting, key=lambda p: content_hash([m.model_dump() for m in p])), skipped


def _of_traffic(
    store: Store, config: RoundsConfig, held_out: pair.HeldOut, model: StoredModel
) -> list[Messages]:
    """The prompts of traffic, as they were when this was first asked for: one that arrives between
    a kill and the next call must not begin everything anew."""
    source = f"traffic:{model.weights}:{content_hash(config.outcome())}"
    frozen = next((one for one in store.each(Dataset) if one.source == source), None)
    if frozen:
        return [prompt for prompt in frozen.prompts if not held_out.contains(prompt)]
    found = pair.traffic_prompts(store, held_out)
    if found:
        pair.freeze_prompts(store, found, source=source, interaction_ids=found.values())
    return list(found)


def rank_answers(
    store: Store, config: RoundsConfig, model: StoredModel, reward: Reward, prompts: list[Messages]
) -> Ranked:
    """`num_samples` answers a prompt, scored; what was drawn before is read, and what was scored by
    this very version of the reward.

    Raises:
        TrainingError: the reward leaves too many answers without a score; those so far are kept.
    """
    sampling = Sampling(max_tokens=config.max_tokens, seed=config.seed)
    version = version_of(reward.judge)
    asked = content_hash(
        [sampling.model_dump(mode="json"), config.num_samples, *([version] if version else [])]
    )
    source = f"rounds:{model.weights}:{asked}"
    known = {one.prompt: one for one in store.each(Label, source=source, annotator=reward.id)}
    answers = model.samples(
        store, prompts, sampling, num_samples=config.num_samples, name="answers"
    )
    missing = [(p, drawn) for p, drawn in zip(prompts, answers, strict=True) if p not in known]
    skipped = Counter[str]()
    with task("rank", len(missing)) as advance:
        for at in range(0, len(missing), BATCH):
            batch = missing[at : at + BATCH]
            scored, left_out = reward.ask([p for p, _ in batch], [drawn for _, drawn in batch])
            labels = [
                _label(p, drawn, one.scores, reward, source)
                for (p, drawn), one in zip(batch, scored, strict=True)
                if one is not None
            ]
            store.add_all(labels)
            known |= {one.prompt: one for one in labels}
            skipped += left_out
            advance(len(batch))
    reward.need_few(skipped, len(prompts))
    return Ranked([known[p] for p in prompts if p in known], skipped)


def pairs_of(
    labels: Sequence[Label], config: RoundsConfig, *, min_margin: float
) -> tuple[list[PreferencePair], Counter[str]]:
    """The labels' pairs as `rounds.pairs` wants them, and labels without one by reason."""
    pairs, skipped = [], Counter[str]()
    for label in labels:
        chosen_first = _sides(label, config)
        made = [
            one
            for best, worse in chosen_first
            if (one := _pair(label, best, worse, min_margin)) is not None
        ]
        pairs += made
        if not made:
            skipped["tie" if len(set(label.scores)) == 1 else "no usable pair"] += 1
    return pairs, skipped


def _sides(label: Label, config: RoundsConfig) -> list[tuple[int, int]]:
    """Places of (chosen, rejected)."""
    scores = label.scores
    best = max(range(len(scores)), key=lambda i: scores[i])
    lesser = [i for i in range(len(scores)) if scores[i] < scores[best]]
    if not lesser:
        return []
    if config.pairs == "best_vs_worst":
        return [(best, min(lesser, key=lambda i: scores[i]))]
    if config.pairs == "best_vs_random":
        return [(best, random.Random(f"{config.seed} {label.id}").choice(lesser))]
    places = range(len(scores))
    return [(i, j) for i in places for j in places if scores[i] > scores[j]]


def _pair(label: Label, best: int, worse: int, min_margin: float) -> PreferencePair | None:
    chosen, rejected = label.candidates[best], label.candidates[worse]
    margin = label.scores[best] - label.scores[worse]
    same = chosen.text.strip() == rejected.text.strip()
    if margin < min_margin or same or not chosen.text.strip():
        return None
    return PreferencePair(
        prompt=label.prompt,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        label_ids=(label.id,),
        prompt_hash=content_hash([m.model_dump() for m in label.prompt]),
    )


def _label(
    prompt: Messages,
    answers: Sequence[Completion],
    scores: tuple[float, ...],
    reward: Reward,
    source: str,
) -> Label:
    return Label(
        prompt=prompt,
        candidates=tuple(answers),
        scores=scores,
        annotator=reward.id,
        annotator_kind=reward.judge.kind,
        source=source,
    )
