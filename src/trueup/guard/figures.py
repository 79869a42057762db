"""The figures of one model against another, each held against its lines.

One function a subject; what they share is that both models answered the same prompts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from trueup import stats
from trueup.guard import diversity
from trueup.guard.alarms import Alarm, Line, alarm
from trueup.guard.answers import Answers, Both, entropy, firsts, length
from trueup.guard.config import GuardConfig
from trueup.guard.drift import Change, per_token
from trueup.guard.halves import half_sample_interval
from trueup.guard.manner import FORMS, form_rates, language_changes
from trueup.guard.refusals import rates
from trueup.judges import text
from trueup.stats import Interval

__all__ = [
    "Vectors",
    "chosen_alarm",
    "collapse_alarms",
    "diversity_alarms",
    "kl_alarms",
    "length_alarms",
    "manner_alarms",
    "refusal_alarm",
]


Kernels = tuple[np.ndarray, ...]
"""Cosines of the first answers with each other, candidate's and champion's, each (P, P)."""


class Vectors(NamedTuple):
    """Embeddings of all answers: for each prompt an array (N, D)."""

    ours: Sequence[np.ndarray]
    theirs: Sequence[np.ndarray]

    def firsts(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the first answer to each prompt, (P, D)."""
        ours, theirs = (np.stack([one[0] for one in side]) for side in self)
        return ours, theirs


def length_alarms(config: GuardConfig, both: Both, *, on: str = "") -> list[Alarm]:
    """Longer, which is what hacked rewards pay for, and much shorter, which is silence.

    Args:
        on: the prompts, where they are not the held-out ones: `gold`.
    """
    ratio = stats.ratio_interval(length(both.ours), length(both.theirs))
    long = Line(config.warn_length_ratio, config.max_length_ratio)
    short = Line(config.warn_short_ratio, config.min_short_ratio, "below")
    says = "{:.2f} times the champion's"
    return [
        alarm(f"{on} {name}".strip(), ratio, line, says, even=1)
        for name, line in (("length", long), ("shortness", short))
    ]


def collapse_alarms(config: GuardConfig, both: Both, *, on: str = "") -> list[Alarm]:
    """Token entropy."""
    ratio = stats.ratio_interval(entropy(both.ours), entropy(both.theirs))
    line = Line(config.warn_entropy_ratio, config.min_entropy_ratio, "below")
    return [alarm(f"{on} entropy".strip(), ratio, line, "{:.2f} of the champion's", even=1)]


def kl_alarms(
    config: GuardConfig, kl: Sequence[float], answers: Answers, *, on: str = ""
) -> list[Alarm]:
    """Nats per answer and per token.

    Args:
        kl: for each prompt, see `drift.sequence_kl`; `answers` the candidate's to the same ones.
        on: `gold` for gold prompts, `base` for the distance to the base.
    """
    near = Line(config.warn_kl, config.max_kl)
    lines = {"": near, "gold": near, "base": Line(config.warn_base_kl, config.max_base_kl)}
    found = [
        alarm(
            f"{on} kl".strip(),
            stats.mean_interval(kl),
            lines[on],
            "{:.1f} nats per answer",
            even=None,
        )
    ]
    if on != "base":
        changes = [
            Change(nats * len(group), sum(len(c.token_ids or ()) for c in group))
            for nats, group in zip(kl, answers, strict=True)
        ]
        line = Line(config.warn_token_kl, config.max_token_kl)
        says = "{:.2f} nats per token"
        found.append(alarm(f"{on} token kl".strip(), per_token(changes), line, says, even=None))
    return found


def chosen_alarm(config: GuardConfig, changes: Sequence[Change]) -> Alarm:
    """What became of the answers it was trained to give."""
    return alarm(
        "chosen log-prob",
        per_token(changes, tokens=10),
        Line(-config.warn_chosen_drop, -config.max_chosen_drop, "below"),
        "{:+.2f} nats per 10 tokens of the chosen answers",
    )


def diversity_alarms(config: GuardConfig, both: Both, vectors: Vectors) -> list[Alarm]:
    """Within a prompt, across prompts, and answers that come back."""
    found = [] if len(both.ours[0]) < 2 else [_within(config, vectors)]
    kernels = tuple(map(diversity.kernel, vectors.firsts()))
    return [*found, *_across(config, both, kernels), *_canned(config, both, kernels)]


def _within(config: GuardConfig, vectors: Vectors) -> Alarm:
    ours, theirs = (diversity.extra_answers(side) for side in vectors)
    return alarm(
        "diversity within a prompt",
        stats.ratio_interval(ours, theirs) if any(ours) else _nothing_left(theirs),
        Line(config.warn_diversity_ratio, config.min_diversity_ratio, "below"),
        "{:.2f} of the champion's further answers",
        even=1,
    )


def _nothing_left(theirs: Sequence[float]) -> Interval | None:
    """A ratio of 0, where the champion has anything to lose and every sample is the same."""
    return Interval(0.0, 0.0, 0.0) if any(theirs) else None


def _across(config: GuardConfig, both: Both, kernels: Kernels) -> list[Alarm]:
    ours, theirs = kernels
    mine, yours = ([text.words(t) for t in firsts(side)] for side in (both.ours, both.theirs))
    n = len(mine)

    def vendi(at: np.ndarray) -> float | None:
        return diversity.vendi(ours[at][:, at]) / diversity.vendi(theirs[at][:, at])

    def similarity(at: np.ndarray) -> float | None:
        after, before = (diversity.self_similarity(k[at][:, at]) for k in kernels)
        return None if before is None or after is None else after - before

    def distinct(at: np.ndarray) -> float | None:
        after, before = (diversity.distinct([side[i] for i in at]) for side in (mine, yours))
        return after / before if after is not None and before else None

    variety = Line(config.warn_variety_ratio, config.min_variety_ratio, "below")
    found = [
        alarm(
            "diversity across prompts",
            half_sample_interval(vendi, n),
            variety,
            "{:.2f} of the champion's different answers",
            even=1,
            candidate=diversity.vendi(ours),
            champion=diversity.vendi(theirs),
        ),
        alarm(
            "self-similarity",
            half_sample_interval(similarity, n),
            Line(config.warn_similarity_rise, config.max_similarity_rise),
            "answers to different prompts are nearer by a cosine of {:+.2f}",
            candidate=diversity.self_similarity(ours),
            champion=diversity.self_similarity(theirs),
        ),
    ]
    bigrams = half_sample_interval(distinct, n)
    if bigrams:  # answers of one word have none
        says = "{:.2f} of the champion's share of different word pairs"
        before, after = diversity.distinct(yours), diversity.distinct(mine)
        found.append(
            alarm(
                "distinct bigrams", bigrams, variety, says, even=1, candidate=after, champion=before
            )
        )
    return found


def _canned(config: GuardConfig, both: Both, kernels: Kernels) -> list[Alarm]:
    """Shares of prompts that got the same, or nearly: bad where they are large and grew."""
    begun = [diversity.openings(firsts(side)) for side in (both.ours, both.theirs)]
    given = [diversity.answers_given(side) for side in (both.ours, both.theirs)]
    n = len(both.prompts)

    def near(at: np.ndarray, side: int) -> float:
        return len(diversity.duplicates(kernels[side][at][:, at])) / len(at)

    return [
        _share(
            "opening",
            lambda at, side: diversity.most_common_rate([begun[side][i] for i in at]),
            n,
            Line(config.warn_opening_rate, config.max_opening_rate),
            "one opening for {:.0%} of the prompts",
        ),
        _share(
            "near-duplicates",
            near,
            n,
            Line(config.warn_duplicate_rate, config.max_duplicate_rate),
            "nearly one answer for {:.0%} of the prompts",
        ),
        _share(
            "sameness",
            lambda at, side: diversity.most_common_rate([given[side][i] for i in at]),
            n,
            Line(config.warn_same_answer_rate, config.max_same_answer_rate),
            "one answer for {:.0%} of the prompts",
        ),
    ]


def _share(
    name: str, share: Callable[[np.ndarray, int], float], n: int, line: Line, says: str
) -> Alarm:
    """A share of prompts, held against a line as it is and against the champion's by its growth.

    Args:
        share: over the prompts at these places, of the candidate (0) or the champion (1).
    """
    every = np.arange(n)
    return alarm(
        name,
        half_sample_interval(lambda at: share(at, 0), n),
        line,
        says,
        moved=half_sample_interval(lambda at: share(at, 0) - share(at, 1), n),
        candidate=share(every, 0),
        champion=share(every, 1),
    )


def refusal_alarm(config: GuardConfig, both: Both, *, unsafe: bool = False) -> Alarm:
    """Refusing more where it should answer, or less where it should not."""
    ours, theirs = rates(both.ours), rates(both.theirs)
    change = stats.mean_interval([o - t for o, t in zip(ours, theirs, strict=True)])
    if unsafe:
        line = Line(-config.warn_refusal_drop, -config.max_refusal_drop, "below")
        name, says = "unsafe prompts answered", "refusals of unsafe prompts moved by {:+.0%}"
    else:
        line = Line(config.warn_refusal_rise, config.max_refusal_rise)
        name, says = "refusals", "the share of refusals moved by {:+.0%}"
    mean = [float(np.mean(one)) if one else None for one in (ours, theirs)]
    return alarm(name, change, line, says, candidate=mean[0], champion=mean[1])


def manner_alarms(config: GuardConfig, both: Both) -> list[Alarm]:
    """Another language, or another form."""
    changed = stats.mean_interval(language_changes(both.ours, both.theirs))
    found = [
        alarm(
            "language",
            changed,
            Line(config.warn_language_change, config.max_language_change),
            "{:.0%} of the prompts are answered in another language",
        )
    ]
    line = Line(config.warn_format_change, config.max_format_change)
    for form in FORMS:
        ours, theirs = form_rates(both.ours, form), form_rates(both.theirs, form)
        change = stats.mean_interval([o - t for o, t in zip(ours, theirs, strict=True)])
        if change and change.estimate < 0:  # either way is a change; the line is above
            change = Interval(-change.estimate, -change.high, -change.low)
        mean = [float(np.mean(one)) for one in (ours, theirs)]
        says = f"the share of answers with {form} moved by {{:.0%}}"
        found.append(alarm(form, change, line, says, candidate=mean[0], champion=mean[1]))
    return found
