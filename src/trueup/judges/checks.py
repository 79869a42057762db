"""What can be said of a judge from verdicts alone: how far it agrees with people, and how much of
that is length or liking for its own answers.

Everything here is a pure function of verdicts: 0 a tie, 1 the first answer, 2 the second, None
unreadable. A figure that the rows cannot give is None.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from trueup.judges.base import Side
from trueup.judges.people import JudgedByPeople
from trueup.stats import (
    Interval,
    agreement_rate,
    annotator_reliability,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    mean_interval,
    paired_difference,
    wilson,
)

__all__ = ["among_people", "length_control", "self_preference", "with_people"]

Verdicts = Sequence[Side | None]


def among_people(rows: Sequence[JudgedByPeople]) -> dict[str, Any]:
    """Agreement of the annotators with each other: the ceiling for any judge."""
    columns = [list(column) for column in zip(*(one.people for one in rows), strict=True)]
    pairs = [
        {"annotators": [a + 1, b + 1], **_agreement(columns[a], columns[b])}
        for a, b in combinations(range(len(columns)), 2)
    ]
    return {
        "num_annotators": len(columns),
        "pairs": pairs,
        "mean_agreement": _mean_of([one["agreement"] for one in pairs]),
        "mean_kappa": _mean_of([one["kappa"] for one in pairs]),
        "fleiss_kappa": _plain(fleiss_kappa(columns)),
        "krippendorff_alpha": _plain(krippendorff_alpha(columns)),
        "reliability": [
            {"annotator": place, "agreement": _plain(one.agreement), "num_items": one.num_items}
            for place, one in enumerate(annotator_reliability(columns), start=1)
        ],
    }


def with_people(rows: Sequence[JudgedByPeople], verdicts: Verdicts) -> dict[str, Any]:
    """Agreement of the judge with the majority of people, on all rows and on those that neither
    calls a tie."""
    most = [one.majority for one in rows]
    decided = [(a or None, b or None) for a, b in zip(most, verdicts, strict=True)]
    return {
        **_agreement(most, verdicts),
        "without_ties": _agreement([a for a, _ in decided], [b for _, b in decided]),
        "num_unreadable": sum(one is None for one in verdicts),
    }


def length_control(rows: Sequence[JudgedByPeople], verdicts: Verdicts) -> dict[str, Any]:
    """How much of the judge's choice is length (in characters), on pairs of unequal length that
    neither the judge nor most people call a tie.

    `balanced_agreement` is the mean of the agreement where people prefer the longer answer and of
    that where they prefer the shorter one: it is 1/2 for a judge that looks at nothing but length,
    whatever people prefer, and asks for no model of what length is worth.
    """
    known = [
        (longer, judge == longer, people == longer)
        for one, judge in zip(rows, verdicts, strict=True)
        if judge and (people := one.majority) and (longer := _longer(one))
    ]
    judge, people = [j for _, j, _ in known], [p for _, _, p in known]
    return {
        "num_items": len(known),
        "judge_prefers_longer": _plain(wilson(sum(judge), len(known))),
        "people_prefer_longer": _plain(wilson(sum(people), len(known))),
        "excess": _plain(paired_difference(judge, people)),
        "balanced_agreement": _plain(
            _mean_of_two(
                wilson(sum(j for j, p in zip(judge, people, strict=True) if p), sum(people)),
                wilson(
                    sum(not j for j, p in zip(judge, people, strict=True) if not p),
                    len(people) - sum(people),
                ),
            )
        ),
    }


def self_preference(
    rows: Sequence[JudgedByPeople], verdicts: Verdicts, model: str
) -> tuple[Interval | None, int]:
    """Points that the judge gives its own model's answers beyond what people give the same answers,
    in [-1, 1], and the rows it rests on: those where one of the two answers is the model's."""
    excess = []
    for one, verdict in zip(rows, verdicts, strict=True):
        people = one.majority
        if one.models is None or (one.models[0] == model) == (one.models[1] == model):
            continue
        if verdict is not None and people is not None:
            own = 1 if one.models[0] == model else 2
            excess.append(_points(verdict, own) - _points(people, own))
    return mean_interval(excess), len(excess)


# --- inside ---------------------------------------------------------------------------------------


def _agreement(first: Verdicts, second: Verdicts) -> dict[str, Any]:
    common = sum(a is not None and b is not None for a, b in zip(first, second, strict=True))
    return {
        "num_items": common,
        "agreement": _plain(agreement_rate(first, second)),
        "kappa": _plain(cohen_kappa(first, second)),
    }


def _longer(one: JudgedByPeople) -> Side:
    """0 for equal lengths."""
    first, second = (len(text) for text in one.answers)
    return 1 if first > second else 2 if second > first else 0


def _points(verdict: Side, side: Side) -> float:
    return 0.5 if verdict == 0 else float(verdict == side)


def _mean_of(intervals: Sequence[dict[str, float] | None]) -> float | None:
    """The mean of the estimates, None if one of them is unknown."""
    known = [one["estimate"] for one in intervals if one]
    return fmean(known) if known and len(known) == len(intervals) else None


def _mean_of_two(first: Interval | None, second: Interval | None) -> Interval | None:
    """The mean of two independent proportions; limits combined as Newcombe 1998 does for their
    difference."""
    if first is None or second is None:
        return None
    middle = (first.estimate + second.estimate) / 2
    down = math.hypot(first.estimate - first.low, second.estimate - second.low) / 2
    up = math.hypot(first.high - first.estimate, second.high - second.estimate) / 2
    return Interval(middle, middle - down, middle + up)


def _plain(interval: Interval | None) -> dict[str, float] | None:
    return interval and interval._asdict()
