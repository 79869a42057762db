"""What the votes come to, and what the gate makes of it."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from trueup import stats
from trueup.ab.config import ABConfig
from trueup.ab.contests import POINTS, votes_of
from trueup.ab.sequence import NextPlace
from trueup.records import Verdict
from trueup.stats import Interval, Vote

__all__ = ["LENGTH_SHIFT", "POINTS", "Findings", "findings", "gate_verdict", "standing_verdict"]

LENGTH_SHIFT = 0.10
"""A win rate that moves by more than this at equal length is named, as AlpacaEval does."""

THIS = "this contest"


class Findings(NamedTuple):
    """All that the votes say, before anything is decided."""

    rate: Interval | None
    """The raw win rate; None for fewer than two prompts."""
    at_equal_length: Interval | None
    evidence: float
    """The e-value after the last vote."""
    highest_evidence: float
    """The highest on the way."""
    figures: dict[str, float | None]
    slices: list[dict[str, Any]]


def findings(
    config: ABConfig, votes: Sequence[dict[str, Any]], others: Sequence[Vote] = ()
) -> Findings:
    """Win rates, raw and at equal length, evidence and slices.

    Args:
        others: votes of other contests by the same scorer, to learn from what it gives for length.
    """
    points = [v["points"] for v in votes]
    rate = _rate(config, votes)
    control = stats.length_controlled([*votes_of(THIS, votes), *others], THIS)
    at_equal_length = control.win_rate if control else None
    path = stats.evidence_path(points)
    sequence = stats.confidence_sequence(points)
    outcomes = [o for v in votes for o in v["outcomes"]]
    longer = [d for v in votes for d in v.get("length_differences", ())]
    figures: dict[str, float | None] = {
        **_named("win_rate", rate),
        **_named("lc_win_rate", at_equal_length),
        "length_coefficient": control and control.length_coefficient.estimate,
        "length_difference": fmean(longer) if longer else None,
        "length_contests": float(control.num_contests) if control else None,
        "sequence_low": sequence[-1].low if sequence else None,
        "sequence_high": sequence[-1].high if sequence else None,
        "prompts": float(len(votes)),
        **{f"{name}_votes": float(outcomes.count(name)) for name in POINTS},
        "score": fmean(v["score"] for v in votes) if votes else None,
        "champion_score": fmean(v["champion_score"] for v in votes) if votes else None,
    }
    return Findings(
        rate,
        at_equal_length,
        path[-1] if path else 1.0,
        max(path, default=1.0),
        figures,
        _slices(votes),
    )


def gate_verdict(config: ABConfig, found: Findings, place: NextPlace) -> Verdict:
    """Pass a candidate that is shown to be better, and not by length alone.

    Passes where all hold:
        the e-value reaches what the ledger asks of this place, and `min_evidence`;
        the 95 % interval of the raw win rate lies above one half;
        the interval at equal length does not lie below it; where equal length is unknown, the
            candidate's answers are not the longer ones, or `unknown_length` lets them.

    e-LOND reads the e-value after the last vote: its proof takes a number whose mean is at most 1
    in every week, whatever the others hold, and the highest on the way is no such number. LORD++
    reads one over the highest, which is a p-value.
    """
    evidence = found.evidence if config.ledger == "e-lond" else found.highest_evidence
    needed = max(config.min_evidence, place.needed)
    figures = {
        **found.figures,
        "evidence": evidence,
        "evidence_needed": needed,
        "place": float(place.place),
        "promotions": float(len(place.discoveries)),
    }
    if found.rate is None:
        return _refused("unknown: fewer than two prompts", figures)
    shown = f"{_shown(found)}, evidence {evidence:.3g}"
    at_equal_length = found.at_equal_length
    if at_equal_length and at_equal_length.high < 0.5:
        return _refused(f"worse at equal length: {shown}", figures)
    if _may_be_length(config, found):
        return _refused(f"unknown: its answers are longer nearly everywhere: {shown}", figures)
    if found.rate.low > 0.5 and evidence >= needed:
        return Verdict(gate="ab", status="passed", reason=f"better: {shown}", figures=figures)
    wanted = f"needs an interval above 50 % and evidence of {needed:.3g} (test {place.place})"
    return _refused(f"not shown to be better: {shown}; {wanted}", figures)


def _may_be_length(config: ABConfig, found: Findings) -> bool:
    longer = found.figures["length_difference"]
    is_unknown = found.at_equal_length is None and longer is not None and longer > 0
    return is_unknown and config.unknown_length == "refuse"


def standing_verdict(found: Findings) -> Verdict:
    """What a candidate is beside an earlier release, of which it should be the better, too.

    Refused where it is unknown, or shown to be worse; one that is only not shown to be better
    passes with a warning, since a direct contest can miss what a chain of them found.
    """
    figures = {**found.figures, "evidence": found.evidence}
    if found.rate is None:
        return _refused("unknown: fewer than two prompts", figures)
    if found.rate.high < 0.5:
        return _refused(f"worse: {_shown(found)}", figures)
    word = "better" if found.rate.low > 0.5 else "warning, chain: not shown to be better"
    return Verdict(gate="ab", status="passed", reason=f"{word}: {_shown(found)}", figures=figures)


def _shown(found: Findings) -> str:
    """Both win rates in words, and the warning that they call for."""
    rate, level = found.rate, found.at_equal_length
    assert rate is not None, "the caller has a rate"
    text = f"win rate {_percent(rate)}"
    if level is None:
        return f"{text}, at equal length unknown"
    text += f", at equal length {_percent(level)}"
    if abs(level.estimate - rate.estimate) > LENGTH_SHIFT:
        text += " (warning, length-shift: length moves it by more than 10 points)"
    return text


def _percent(one: Interval) -> str:
    return f"{one.estimate:.1%} [{one.low:.1%}, {one.high:.1%}]"


def _refused(reason: str, figures: dict[str, float | None]) -> Verdict:
    return Verdict(gate="ab", status="refused", reason=reason, figures=figures)


def _named(name: str, one: Interval | None) -> dict[str, float | None]:
    return {
        name: one and one.estimate,
        f"{name}_low": one and one.low,
        f"{name}_high": one and one.high,
    }


def _rate(config: ABConfig, votes: Sequence[dict[str, Any]]) -> Interval | None:
    """A prompt is one observation, the mean of its samples; strata by their shares."""
    points = [v["points"] for v in votes]
    strata = [v.get("stratum", "") for v in votes]
    if len(set(strata)) < 2:
        return stats.cluster_share(points)
    weights = stats.stratum_weights(strata, config.stratum_weights)
    return stats.cluster_share(points, strata=strata, weights=weights)


def _slices(votes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The raw win rate of each stratum, the worst first; nothing where there is only one."""
    members: dict[str, list[float]] = {}
    for vote in votes:
        members.setdefault(vote.get("stratum", ""), []).append(vote["points"])
    if len(members) < 2:
        return []
    rows = [
        {
            "slice": name or "none",
            "prompts": len(points),
            "win_rate": fmean(points),
            "low": (one := stats.cluster_share(points)) and one.low,
            "high": one and one.high,
        }
        for name, points in members.items()
    ]
    return sorted(rows, key=lambda row: row["win_rate"])
