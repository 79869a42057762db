"""The results for a reader's eye."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from claims import MATCHED_KL, Claim, Runs, at_kl

__all__ = ["as_text"]

SHOWN = ("gold", "kl", "copy", "right", "agrees", "length")


def as_text(runs: Runs, claims: Mapping[str, Sequence[Claim]]) -> str:
    """Every run's curve, then every claim."""
    parts = [_curve(name, found) for name, found in runs.items()]
    for experiment, made in claims.items():
        parts.append(experiment)
        parts += [f"  {'holds' if c.held else 'FAILS'}  {c.name}: {c.said}" for c in made]
    return "\n".join(parts)


def _curve(name: str, seeds: Sequence[dict[str, Any]]) -> str:
    matched = [at_kl(one) for one in seeds]
    known = [one for one in matched if one is not None]
    gold = f"{_mean(known)} at KL {MATCHED_KL}" if known else f"never at KL {MATCHED_KL}"
    if known and len(known) < len(matched):
        gold += f" ({len(known)} of {len(matched)} seeds)"
    change = seeds[0]["trained_on"].get("chosen_logps_change") if "trained_on" in seeds[0] else None
    rows = [f"{name}: {seeds[0]['labels']} labels, gold {gold}"]
    if change:
        changes = [fmean(s["trained_on"]["chosen_logps_change"][-24:]) for s in seeds]
        rows[0] += f", chosen log-prob {_mean(changes)}"
    points = [one["points"] for one in seeds]
    names = [*SHOWN, *(("proxy",) if "proxy" in points[0][0] else ())]
    rows.append("  " + "step".rjust(18) + "".join(f"{p['step']:>14g}" for p in points[0]))
    for figure in names:
        columns = [[seed[at][figure] for seed in points] for at in range(len(points[0]))]
        rows.append("  " + figure.rjust(18) + "".join(_mean(c).rjust(14) for c in columns))
    return "\n".join([*rows, ""])


def _mean(values: Sequence[float]) -> str:
    """Mean and, with more than one, deviation over seeds."""
    return f"{fmean(values):.2f}" + (f"±{stdev(values):.2f}" if len(values) > 1 else "")
