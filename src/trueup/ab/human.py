"""What people would say of a contest, from few of their labels and all of the scorer's votes."""

from statistics import fmean
from typing import NamedTuple

import numpy as np

from trueup import stats
from trueup.ab.contests import POINTS
from trueup.records import ABReport, Label, content_hash
from trueup.store import Store

__all__ = ["HumanView", "human_view"]

Pair = tuple[str, str, str]
"""A prompt's hash, the candidate's answer, the champion's."""


class HumanView(NamedTuple):
    """People's side of a contest, and how far the scorer stands in for them."""

    num_human: int
    """Contested prompts that people have labelled."""
    num_scorer: int
    """Those that the scorer alone has judged."""
    win_rate: stats.PPIMean | None
    """By people's measure; None for fewer than two labels."""
    correlation: float | None
    """Of people's points with the scorer's; None where one of the two never varies."""
    human_sd: float | None


def human_view(store: Store, report: ABReport) -> HumanView:
    """Join a contest's votes with the labels that people gave to the very same answers.

    A label counts where its prompt is the vote's and its candidates hold the first answers of both
    sides; several people's are averaged. Prompts that people chose by looking at the answers
    make the estimate wrong: give them out at random.
    """
    said = _people(store)
    human, judge, alone = [], [], []
    for vote in report.details.get("votes", ()):
        points = POINTS[vote["outcomes"][0]]
        pair = (vote.get("prompt_hash", ""), vote["answer"], vote["champion_answer"])
        if pair in said:
            human.append(fmean(said[pair]))
            judge.append(points)
        else:
            alone.append(points)
    varies = len(human) > 1 and np.std(human) > 0 and np.std(judge) > 0
    return HumanView(
        len(human),
        len(alone),
        stats.ppi_mean(human, judge, alone),
        float(np.corrcoef(human, judge)[0, 1]) if varies else None,
        float(np.std(human, ddof=1)) if len(human) > 1 else None,
    )


NOTHING = {"withdrawn", "unsettled", "gold question"}
"""Reasons on people's labels that say nothing of the answers: `trueup.label`, `trueup.review`."""


def _people(store: Store) -> dict[Pair, list[float]]:
    """Points of the first answer against the second, by every human label, both ways round."""
    found: dict[Pair, list[float]] = {}
    labels = list(store.each(Label, annotator_kind="human"))
    replaced = {one.replaces for one in labels if one.replaces}
    for label in labels:
        # what was changed or taken back is nobody's word any more
        reasons = {reason for some in label.reasons for reason in some}
        if label.id in replaced or reasons & NOTHING:
            continue
        asked = content_hash([m.model_dump() for m in label.prompt])
        for ours, our_score in zip(label.candidates, label.scores, strict=True):
            for theirs, their_score in zip(label.candidates, label.scores, strict=True):
                if ours is not theirs:
                    points = 0.5 + 0.5 * float(np.sign(our_score - their_score))
                    found.setdefault((asked, ours.text, theirs.text), []).append(points)
    return found
