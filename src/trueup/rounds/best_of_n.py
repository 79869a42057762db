"""Best-of-N as training data: learn the best of the model's own answers, beside a control.

Rejection sampling trains on what a reward picked. How much of the change is the picking, and how
much is only more training on the model's own text? A second run on randomly picked answers to the
same prompts tells: the matched control.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean

from trueup import ab, loop, pair, train
from trueup.errors import DataError
from trueup.judges import resolve
from trueup.project import Project
from trueup.records import Checkpoint, Dataset, Label, Report
from trueup.rounds.answers import prompts_of, rank_answers, reward_of
from trueup.rounds.config import RoundsConfig
from trueup.rounds.run import training

__all__ = ["Arm", "BestOfN", "best_of_n", "expected_best", "kl_bound", "kl_seen"]


@dataclass
class Arm:
    """One way of picking answers, and the candidate that learned them."""

    name: str
    """`best` or `random`."""
    checkpoint: Checkpoint
    picked_score: float
    """Mean score of the answers that were learned."""
    reports: dict[str, Report] = field(default_factory=dict)
    """`guard` and `ab` against the champion."""


@dataclass
class BestOfN:
    """What picking the best of N is worth, before and after it is learned."""

    num_samples: int
    prompts: int
    skipped: dict[str, int]
    expected_scores: list[float]
    """Mean score of the best of 1, 2, … N answers."""
    kl_bound: float
    """Most nats that always answering with the best of N can be from the model itself."""
    kl_seen: float
    """The same with the ties that there are, mean over the prompts."""
    arms: list[Arm] = field(default_factory=list)


def kl_bound(n: int) -> float:
    """ln n - (n - 1) / n: the KL divergence of best-of-n from the model that draws, in nats.

    Exact where all scores differ; ties only bring it closer (Beirami et al. 2024,
    arXiv:2401.01879). Best-of-8 is at most 1.204 nats away, best-of-64 3.174: far for the score it
    gives, which is why it is the bar that training has to reach.
    """
    return math.log(n) - (n - 1) / n


def kl_seen(scores: list[float]) -> float:
    """The KL divergence of best-of-n from the model, in nats, where ties are broken at random.

    An answer of score s is F(s)^n - F(s-)^n over F(s) - F(s-) times as likely to be the best of n,
    F the distribution of the model's scores. F is read off the n scores themselves, which is a
    little low: 0.59 for four that differ, where `kl_bound` says 0.64; equal scores are 0 away.
    """
    n, kl, below = len(scores), 0.0, 0
    for _, count in sorted(Counter(scores).items()):
        chance = ((below + count) / n) ** n - (below / n) ** n
        kl += chance * math.log(chance * n / count) if chance else 0.0
        below += count
    return kl


def expected_best(scores: list[float], k: int) -> float:
    """Mean of the best of k answers over all ways of drawing k from these, without a simulation.

    The i-th smallest of n is the best in C(i - 1, k - 1) of C(n, k) draws. Unbiased for the model's
    own expected best of k, which the best of all n answers is only for k = n.
    """
    ordered, n = sorted(scores), len(scores)
    total = math.comb(n, k)
    return math.fsum(s * math.comb(i, k - 1) / total for i, s in enumerate(ordered) if i >= k - 1)


def best_of_n(project: Project, config: RoundsConfig | None = None) -> BestOfN:
    """Draw N answers a prompt, then train on the best of each, and on a random one.

    Reads:   prompts of the traffic or of a file; the champion's weights.
    Writes:  the answers, one Label a prompt, two data sets of single answers, two Checkpoints, and
             for each a guard report and an A/B report against the champion.
    Again:   the same settings, prompts and champion return the same result.
    Killed:  answers, scores and saved steps are kept; the next call goes on from there.
    Stops:   ConfigError if what picks would also promote.
    Cost:    N answers and scores a prompt, two runs of SFT, and two of the gates twice.
    Next:    promote.run, after 'trueup evaluate'
    """
    config = config or project.config.rounds
    with project.store.exclusive():
        return _best_of_n(project, config)


def _best_of_n(project: Project, config: RoundsConfig) -> BestOfN:
    champion, held_out = project.champion(), loop.held_out(project)
    reward = reward_of(project, config, champion)
    scorer = resolve(
        project.config.ab.scorer, endpoint=project.config.ab.endpoint, suite=project.suite
    )
    ab.check_scorer(scorer, loop.behind(project.store, reward.id))
    prompts, too_long = prompts_of(project, config, held_out, champion)
    asked = prompts[: config.max_prompts]
    ranked = rank_answers(project.store, config, champion, reward, asked)
    labels, skipped = ranked.labels, dict(too_long + ranked.skipped)
    if not labels:
        raise DataError(
            "No answer was scored, so there is none to learn",
            got=skipped,
            expected="scores from rounds.reward",
            next="mend the reward, or name another",
        )
    found = BestOfN(
        num_samples=config.num_samples,
        prompts=len(labels),
        skipped=skipped,
        expected_scores=[
            fmean(expected_best(list(one.scores), k) for one in labels)
            for k in range(1, config.num_samples + 1)
        ],
        kl_bound=kl_bound(config.num_samples),
        kl_seen=fmean(kl_seen(list(one.scores)) for one in labels),
    )
    sft = training(project, config).model_copy(update={"method": "sft", "plus": {}})
    for name in ("best", "random"):
        places = [_place(one, name, config.seed) for one in labels]
        dataset = _dataset(project, labels, places, name)
        checkpoint = train.run(project.store, sft, dataset, champion, is_held_out=held_out.contains)
        score = fmean(one.scores[at] for one, at in zip(labels, places, strict=True))
        arm = Arm(name, checkpoint, score)
        arm.reports["guard"] = loop.guard_gate(project, checkpoint)
        arm.reports["ab"] = loop.ab_gate(project, checkpoint)
        found.arms.append(arm)
    return found


def _place(label: Label, name: str, seed: int) -> int:
    """Which answer an arm learns; an empty one is never the best."""
    places = [i for i, c in enumerate(label.candidates) if c.text.strip()] or [0]
    if name == "best":
        return max(places, key=lambda i: label.scores[i])
    return random.Random(f"{seed} {label.id}").choice(places)


def _dataset(project: Project, labels: list[Label], places: list[int], name: str) -> Dataset:
    """The picked answers as labels of their own, and a data set of those."""
    picked = [
        Label(
            prompt=one.prompt,
            candidates=(one.candidates[at],),
            scores=(1.0,),
            annotator=one.annotator if name == "best" else "code:random",
            annotator_kind=one.annotator_kind if name == "best" else "code",
            source=f"best-of-n:{one.id}",
        )
        for one, at in zip(labels, places, strict=True)
    ]
    project.store.add_all(picked)
    return pair.freeze(project.store, [], labels=picked, source=f"best-of-n:{name}")
