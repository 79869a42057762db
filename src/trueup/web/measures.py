"""What the gates measured, as the rows of the table and the series of the plots.

Every row says by the rule of its gate whether it is inside the line. What was not measured is None,
never zero.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trueup import stats
from trueup.records import Checkpoint, Report

__all__ = ["checked", "details", "measures", "number", "scored", "series", "setting"]

HISTORY = (
    "loss",
    "margin",
    "chosen_logps_change",
    "rejected_logps_change",
    "score",
    "kl",
    "entropy",
    "tokens",
)


def measures(
    guard: Report | None, evaluate: Report | None, ab: Report | None
) -> list[dict[str, Any]]:
    """The rows of the table, in its order."""
    rows = (
        _score(ab),
        _win_rate(ab),
        _at_equal_length(ab),
        _evidence(ab),
        _length(guard),
        _entropy(guard),
        _kl(guard),
        _sameness(guard),
        _accuracy(evaluate),
    )
    return [asdict(row) for row in rows]


def series(
    checkpoint: Checkpoint, guard: Report | None, evaluate: Report | None, ab: Report | None
) -> dict[str, Any]:
    """What each plot draws, by the plot's name."""
    return {
        "evidence": _evidence_path(ab),
        "win_rate": _win_rate_path(ab),
        "length": _both_sides(guard, "length"),
        "entropy": _both_sides(guard, "entropy"),
        "kl": {"values": _finite(details(guard).get("kl")), "max_kl": _limit(guard, "max_kl")},
        "training": _history(checkpoint),
        "gold": _slices(evaluate),
    }


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measure:
    """One row of the table. `kind` and `change_kind` name how `plots.figure` prints it."""

    name: str
    kind: str
    candidate: float | None
    champion: float | None = None
    has_champion: bool = True
    """False where the measure compares the two, and the champion has no figure of its own."""
    change: float | None = None
    has_change: bool = True
    low: float | None = None
    high: float | None = None
    """Of the 95 % interval: of the change, or of the candidate's figure where there is none."""
    has_interval: bool = True
    change_kind: str = ""
    line: str | None = None
    """The threshold in words; None where nothing is decided by this measure."""
    status: Literal["inside", "outside", "unknown", "not run", "no line"] = "no line"
    note: str = ""


def _status(
    report: Report | None, inside: bool | None
) -> Literal["inside", "outside", "unknown", "not run"]:
    """By the rule of the gate; unknown refuses."""
    if report is None:
        return "not run"
    if inside is None:
        return "unknown"
    return "inside" if inside else "outside"


def _score(ab: Report | None) -> _Measure:
    gap = stats.mean_interval([ours - theirs for ours, theirs, _ in scored(ab)])
    scorer = setting(ab, "scorer_id") or setting(ab, "scorer")
    return _Measure(
        "Held-out score",
        "score",
        _figure(ab, "score"),
        _figure(ab, "champion_score"),
        change=gap and gap.estimate,
        low=gap and gap.low,
        high=gap and gap.high,
        change_kind="difference",
        note=f"by {scorer}" if scorer else "",
    )


def _win_rate(ab: Report | None) -> _Measure:
    low = _figure(ab, "win_rate_low")
    votes = {
        name: _figure(ab, f"{vote}_votes")
        for vote, name in (("win", "wins"), ("tie", "ties"), ("loss", "losses"))
    }
    return _Measure(
        "Win rate",
        "rate",
        _figure(ab, "win_rate"),
        has_champion=False,
        has_change=False,
        low=low,
        high=_figure(ab, "win_rate_high"),
        change_kind="rate",
        line="interval above 50%",
        status=_status(ab, None if low is None else low > 0.5),
        note=", ".join(f"{n:,.0f} {name}" for name, n in votes.items() if n is not None),
    )


def _at_equal_length(ab: Report | None) -> _Measure:
    high, contests = _figure(ab, "lc_win_rate_high"), _figure(ab, "length_contests")
    return _Measure(
        "Win rate at equal length",
        "rate",
        _figure(ab, "lc_win_rate"),
        has_champion=False,
        has_change=False,
        low=_figure(ab, "lc_win_rate_low"),
        high=high,
        change_kind="rate",
        line="interval not below 50%",
        status=_status(ab, None if high is None else high >= 0.5),
        note="" if contests is None else f"length learned from {contests:,.0f} contests",
    )


def _evidence(ab: Report | None) -> _Measure:
    evidence, needed = _figure(ab, "evidence"), _evidence_needed(ab)
    prompts = _figure(ab, "prompts")
    return _Measure(
        "Evidence",
        "number",
        evidence,
        has_champion=False,
        has_change=False,
        has_interval=False,
        line=_line("at least {:g}", needed),
        status=_status(ab, _both(evidence, needed, lambda e, n: e >= n)),
        note="e-value" if prompts is None else f"e-value over {prompts:,.0f} prompts",
    )


def _length(guard: Report | None) -> _Measure:
    ratio, low = _figure(guard, "length_ratio"), _figure(guard, "length_ratio_low")
    most = _limit(guard, "max_length_ratio")
    # the guard's own rule: over the line only if the interval also says it is longer at all
    inside = None if low is None else _both(ratio, most, lambda r, m: r <= m or low <= 1)
    return _Measure(
        "Answer length",
        "tokens",
        _figure(guard, "length"),
        _figure(guard, "champion_length"),
        change=ratio,
        low=low,
        high=_figure(guard, "length_ratio_high"),
        change_kind="ratio",
        line=_line("at most ×{:.2f}", most),
        status=_status(guard, inside),
        note="mean tokens",
    )


def _entropy(guard: Report | None) -> _Measure:
    ratio, least = _figure(guard, "entropy_ratio"), _limit(guard, "min_entropy_ratio")
    sides = _both_sides(guard, "entropy")
    interval = stats.ratio_interval(sides["candidate"], sides["champion"])
    return _Measure(
        "Token entropy",
        "nats",
        _figure(guard, "entropy"),
        _figure(guard, "champion_entropy"),
        change=ratio,
        low=interval and interval.low,
        high=interval and interval.high,
        change_kind="ratio",
        line=_line("at least ×{:.2f}", least),
        status=_status(guard, _both(ratio, least, lambda r, m: r >= m)),
        note="nats per token",
    )


def _kl(guard: Report | None) -> _Measure:
    kl, most = _figure(guard, "kl"), _limit(guard, "max_kl")
    return _Measure(
        "KL per answer",
        "nats",
        kl,
        has_champion=False,
        has_change=False,
        low=_figure(guard, "kl_low"),
        high=_figure(guard, "kl_high"),
        change_kind="nats",
        line=_line("at most {:g} nats", most),
        status=_status(guard, _both(kl, most, lambda k, m: k <= m)),
        note="nats from the champion",
    )


def _sameness(guard: Report | None) -> _Measure:
    same, before = _figure(guard, "same_answer_rate"), _figure(guard, "champion_same_answer_rate")
    most = _limit(guard, "max_same_answer_rate")
    # the guard's own rule: a champion that repeats itself as often has not got worse
    inside = None if before is None else _both(same, most, lambda s, m: s <= m or s <= before)
    return _Measure(
        "Most common answer",
        "rate",
        same,
        before,
        has_change=False,
        has_interval=False,
        line=_line("at most {:.0%}", most),
        status=_status(guard, inside),
        note="share of prompts that got it",
    )


def _accuracy(evaluate: Report | None) -> _Measure:
    low, margin = _figure(evaluate, "difference_low"), _limit(evaluate, "margin")
    items, needed = _figure(evaluate, "items"), _figure(evaluate, "items_needed")
    enough = _both(items, needed, lambda have, need: have >= need)
    note = "" if items is None else f"{items:,.0f} items"
    if enough is False:
        note += f" of the {needed:,.0f} it takes"
    return _Measure(
        "Gold accuracy",
        "rate",
        _figure(evaluate, "accuracy"),
        _figure(evaluate, "champion_accuracy"),
        change=_figure(evaluate, "difference"),
        low=low,
        high=_figure(evaluate, "difference_high"),
        change_kind="points",
        line=_line("interval above −{:g} points", None if margin is None else 100 * margin),
        status=_status(evaluate, _both(low, margin, lambda at, m: at > -m) if enough else None),
        note=note,
    )


def _evidence_needed(ab: Report | None) -> float | None:
    """More than `min_evidence` where the candidate was tried before."""
    needed = _figure(ab, "evidence_needed")
    return _limit(ab, "min_evidence") if needed is None else needed


# --- the plots ------------------------------------------------------------------------------------


def _evidence_path(ab: Report | None) -> dict[str, Any]:
    after_each = [number(v) for v in details(ab).get("evidence", ())]
    # before the first prompt the e-value is 1: no evidence either way
    return {"path": [1.0, *after_each] if after_each else [], "min_evidence": _evidence_needed(ab)}


def _win_rate_path(ab: Report | None) -> dict[str, list[float | None]]:
    """The win rate after each prompt, and the confidence sequence around it: limits that hold at
    every prompt at once."""
    points = [number(vote.get("points")) for vote in details(ab).get("votes", ())]
    ends = [(number(low), number(high)) for low, high in details(ab).get("sequence", ())]
    known = [p for p in points if p is not None]
    if len(known) < len(points) or len(ends) != len(points):
        return {"rate": [], "low": [], "high": []}
    rates = [sum(known[: n + 1]) / (n + 1) for n in range(len(known))]
    return {
        "rate": [100 * rate for rate in rates],
        "low": [low and 100 * low for low, _ in ends],
        "high": [high and 100 * high for _, high in ends],
    }


def _both_sides(guard: Report | None, name: str) -> dict[str, list[float]]:
    """Both models' values for the prompts where both are known."""
    sides = details(guard).get(name) or {}
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(
            map(number, sides.get("candidate", ())),
            map(number, sides.get("champion", ())),
            strict=False,
        )
        if ours is not None and theirs is not None
    ]
    return {"candidate": [o for o, _ in pairs], "champion": [t for _, t in pairs]}


def _history(checkpoint: Checkpoint) -> dict[str, list[float | None]]:
    """A column a figure, a place an optimizer step."""
    steps = checkpoint.metrics.get("history") or []
    columns = {name: [number(step.get(name)) for step in steps] for name in HISTORY}
    return {name: column if _finite(column) else [] for name, column in columns.items()}


def _slices(evaluate: Report | None) -> dict[str, Any]:
    """The paired difference on the whole gold set and on each slice, the worst slice first."""
    slices: dict[str, list[dict[str, Any]]] = {}
    items = checked(evaluate)
    for item in items:
        slices.setdefault(str(item.get("slice", "all")), []).append(item)
    rows = [_slice(name, members) for name, members in slices.items()]
    rows.sort(key=lambda row: (row["estimate"], row["slice"]))
    return {
        "margin": _limit(evaluate, "margin"),
        "all": _slice("all", items) if items else None,
        "slices": rows if len(rows) > 1 else [],
    }


def _slice(name: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ours = [bool(item["passed"]) for item in items]
    theirs = [bool(item["champion_passed"]) for item in items]
    gap = stats.paired_difference(ours, theirs)
    assert gap is not None, "a slice has items"
    return {
        "slice": name,
        "items": len(items),
        "passed": sum(ours),
        "champion_passed": sum(theirs),
        **gap._asdict(),
    }


# --- reading a report -----------------------------------------------------------------------------


def scored(ab: Report | None) -> list[tuple[float, float, dict[str, Any]]]:
    """Votes with both scores known: the candidate's, the champion's, the vote."""
    votes = [
        (number(vote.get("score")), number(vote.get("champion_score")), vote)
        for vote in details(ab).get("votes", ())
    ]
    return [(o, t, vote) for o, t, vote in votes if o is not None and t is not None]


def checked(evaluate: Report | None) -> list[dict[str, Any]]:
    """Gold items that could be checked for both models."""
    return [
        item
        for item in details(evaluate).get("items", ())
        if item.get("passed") is not None and item.get("champion_passed") is not None
    ]


def details(report: Report | None) -> dict[str, Any]:
    """Its figures prompt by prompt; none where the gate did not run."""
    return report.details if report else {}


def setting(report: Report | None, name: str) -> Any:
    """What the gate was set to."""
    return report.config.get(name) if report else None


def _limit(report: Report | None, name: str) -> float | None:
    return number(setting(report, name))


def _figure(report: Report | None, name: str) -> float | None:
    return number(report.verdict.figures.get(name)) if report else None


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _finite(values: Iterable[object] | None) -> list[float]:
    return [v for v in map(number, values or ()) if v is not None]


def _line(form: str, value: float | None) -> str:
    return "unknown" if value is None else form.format(value)


def _both(
    first: float | None, second: float | None, rule: Callable[[float, float], bool]
) -> bool | None:
    """The rule's answer, or None where one of the two is unknown."""
    return None if first is None or second is None else rule(first, second)
