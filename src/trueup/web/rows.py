"""What the templates draw: figures of a page's data as rows of a plot."""

from collections.abc import Mapping, Sequence
from typing import Any

from trueup.web.plots import Bar, Curve, Row

__all__ = [
    "accuracy_rows",
    "audit_rows",
    "bars",
    "change_rows",
    "drill_rows",
    "found_curves",
    "gold_rows",
    "shift_rows",
    "span_rows",
    "stopped_rows",
]

Figures = Mapping[str, Any]
Three = tuple[float | None, float | None, float | None]


def bars(counts: Mapping[str, float]) -> list[Bar]:
    """Counts by name."""
    return [Bar(name.replace("_", " "), number) for name, number in counts.items()]


def gold_rows(gold: Figures) -> list[Row]:
    """The whole set first, then its slices, in points."""
    rows = [gold["all"]] if gold["all"] else []
    return [
        Row(
            "Whole gold set" if place == 0 else row["slice"],
            f"{row['champion_passed']:,} → {row['passed']:,} of {row['items']:,}",
            *_hundredths(row),
            strong=place == 0,
        )
        for place, row in enumerate([*rows, *gold["slices"]])
    ]


def audit_rows(checks: Sequence[Figures]) -> list[Row]:
    """The checks that have a figure, in hundredths."""
    return [
        Row(
            one["name"],
            f"{one['status']}, {one['items']:,} items",
            *_times_100(one["figure"], one["low"], one["high"]),
        )
        for one in checks
        if one["figure"] is not None
    ]


def drill_rows(faults: Sequence[Figures]) -> list[Row]:
    """How often a fault was caught at each strength, in per cent."""
    return [
        Row(
            f"{one['strength']:g} {one['unit']}".rstrip(),
            f"{one['num_caught']:,} of {one['num_trials']:,}",
            *_hundredths(one["rate"]),
        )
        for one in faults
    ]


def stopped_rows(controls: Sequence[Figures]) -> list[Row]:
    """How often what is honest was stopped, in per cent."""
    return [
        Row(
            one["fault"],
            f"{one['num_stopped']:,} of {one['num_trials']:,}",
            *_hundredths(one["stopped_rate"]),
        )
        for one in controls
    ]


def shift_rows(figures: Sequence[Figures]) -> list[Row]:
    """The shares, each with its line."""
    return [
        Row(
            one["name"],
            one["status"] if one["line"] is not None else "",
            one["figure"],
            one["low"],
            one["high"],
            mark=one["line"],
        )
        for one in figures
        if one["is_share"] and one["figure"] is not None
    ]


def accuracy_rows(standing: Figures) -> list[Row]:
    """A model's accuracy on the whole set, then on its slices, in per cent."""
    if not standing["accuracy"]:
        return []
    whole = standing["accuracy"] | {"items": standing["checked"]}
    return [
        Row(
            name,
            f"{round(one['estimate'] * one['items']):,} of {one['items']:,}",
            *_hundredths(one),
            strong=one is whole,
        )
        for name, one in [("All items", whole), *standing["slices"].items()]
    ]


def change_rows(paired: Figures) -> list[Row]:
    """A model less the champion: the whole set, then its slices, worst first, in points."""
    return [
        Row(
            "All items" if place == 0 else one["name"],
            f"{one['lost']:,} lost, {one['won']:,} won",
            *_hundredths(one["difference"]),
            strong=place == 0,
        )
        for place, one in enumerate([paired, *paired["slices"]])
    ]


def _hundredths(share: Figures | None) -> Three:
    """An interval times 100; nothing where there is none."""
    if share is None:
        return None, None, None
    return _times_100(share["estimate"], share["low"], share["high"])


def span_rows(flaggers: Sequence[Figures], name: str) -> list[Row]:
    """One estimate of each flagger, in hundredths."""
    return [
        Row(one["name"], one["kind"], *_hundredths(one[name]), strong=one["kind"] == "learned")
        for one in flaggers
    ]


def found_curves(learned: Figures, other: Figures) -> list[Curve]:
    """What two flaggers find at each depth, the learned one and another."""
    return [
        Curve(learned["name"], learned["found"]),
        Curve(other["name"], other["found"], style="rejected"),
    ]


def _times_100(estimate: float | None, low: float | None, high: float | None) -> Three:
    def times(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return times(estimate), times(low), times(high)
