"""What should be seen, and whether it was: each claim is held against the mean over seeds."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy.stats import spearmanr

__all__ = ["CLAIMS", "MATCHED_KL", "Claim", "Runs", "at_kl", "each"]

Found = dict[str, Any]
Runs = Mapping[str, Sequence[Found]]
"""For each run what it found, seed after seed; the same seeds everywhere."""

MATCHED_KL = 3.5
BETAS = {"offline-own-beta-0.02": 0.02, "offline-own": 0.1, "offline-own-beta-0.5": 0.5}


class Claim(NamedTuple):
    """One assertion with the figures it stands on."""

    name: str
    held: bool
    said: str
    figures: list[float | None]
    """Of each seed; None where there is none."""


def at_kl(found: Found, kl: float = MATCHED_KL) -> float | None:
    """Gold at this distance from the base, between the two looks where it is first passed; None
    for a run that never went so far."""
    points = found["points"]
    for before, after in pairwise(points):
        if before["kl"] < kl <= after["kl"]:
            share = (kl - before["kl"]) / (after["kl"] - before["kl"])
            return before["gold"] + share * (after["gold"] - before["gold"])
    return None


def each(runs: Sequence[Found], figure: Callable[[Found], float | None]) -> list[float | None]:
    return [figure(found) for found in runs]


def _claim(
    name: str, figures: Sequence[float | None], holds: Callable[[float], bool], wanted: str
) -> Claim:
    """Unknown in one seed is not shown."""
    known = [one for one in figures if one is not None]
    if len(known) < len(figures):
        said = f"unknown in {len(figures) - len(known)} of {len(figures)} seeds; wanted {wanted}"
        return Claim(name, False, said, list(figures))
    mean = fmean(known)
    spread = f" ± {stdev(known) / len(known) ** 0.5:.2f}" if len(known) > 1 else ""
    return Claim(name, holds(mean), f"{mean:.2f}{spread}; wanted {wanted}", list(figures))


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def online_vs_offline(runs: Runs) -> list[Claim]:
    """The gap at matched KL."""
    claims = []
    for rival, least in (("offline-foreign", 0.2), ("offline-own", 0.1)):
        gaps = [
            _difference(at_kl(a), at_kl(b))
            for a, b in zip(runs["online-dpo"], runs[rival], strict=True)
        ]
        name = f"at KL {MATCHED_KL} online DPO beats {rival}, in gold"
        claims.append(
            _claim(name, gaps, lambda gap, least=least: gap >= least, f"{least:g} or more")
        )
    return claims


def over_training(runs: Runs) -> list[Claim]:
    """Offline DPO falls while what a team could see does not."""
    own = runs["offline-own"]
    return [
        _claim(
            "offline DPO's final gold over its own peak",
            each(own, lambda f: _last(f, "gold") / max(_all(f, "gold"))),
            lambda share: share <= 0.85,
            "0.85 or less",
        ),
        _claim(
            "offline DPO's final accuracy on held-out pairs",
            each(own, lambda f: _last(f, "right")),
            lambda accuracy: accuracy >= 0.75,
            "0.75 or more",
        ),
        _claim(
            "offline DPO's change of the chosen answers' log-prob",
            each(own, _chosen_change),
            lambda change: change < 0,
            "below 0",
        ),
        _claim(
            "online DPO's change of the chosen answers' log-prob",
            each(runs["online-dpo"], _chosen_change),
            lambda change: change > 0,
            "above 0",
        ),
    ]


def goodhart(runs: Runs) -> list[Claim]:
    """The proxy rises to the end, the truth does not."""
    found = runs["goodhart"]
    return [
        _claim(
            "gold's peak over the base's gold",
            each(found, lambda f: max(_all(f, "gold")) - _all(f, "gold")[0]),
            lambda gain: gain > 0.1,
            "above 0.1",
        ),
        _claim(
            "final gold over the base's gold",
            each(found, lambda f: _last(f, "gold") - _all(f, "gold")[0]),
            lambda gain: gain < 0,
            "below 0",
        ),
        _claim(
            "rank correlation of proxy and step",
            each(found, lambda f: _rank_correlation(_all(f, "step"), _all(f, "proxy"))),
            lambda rho: rho >= 0.9,
            "0.9 or more",
        ),
    ]


def replay(runs: Runs) -> list[Claim]:
    """The second skill in the last three weeks."""

    def kept(found: Found) -> float:
        return fmean(_all(found, "copy")[4:7])

    claims = [
        _claim(
            "copy skill in weeks 4 to 6 with replay",
            each(runs["weekly-replay"], kept),
            lambda copy: copy >= 0.97,
            "0.97 or more",
        )
    ]
    for rival in ("weekly-plain", "weekly-sft"):
        gaps = [kept(a) - kept(b) for a, b in zip(runs["weekly-replay"], runs[rival], strict=True)]
        name = f"copy skill with replay over {rival}"
        claims.append(_claim(name, gaps, lambda gap: gap > 0, "above 0"))
    return claims


def beta(runs: Runs) -> list[Claim]:
    """A larger beta stays closer."""
    kls = [fmean(_last(f, "kl") for f in runs[name]) for name in BETAS]
    falls = all(a > b for a, b in pairwise(kls))
    said = ", ".join(f"beta {b:g}: {kl:.1f}" for b, kl in zip(BETAS.values(), kls, strict=True))
    return [Claim("KL to the base falls as beta grows", falls, said, list(kls))]


CLAIMS: dict[str, tuple[tuple[str, ...], Callable[[Runs], list[Claim]]]] = {
    "online-vs-offline": (
        ("offline-own", "offline-foreign", "iterative", "online-dpo", "rloo", "ppo"),
        online_vs_offline,
    ),
    "over-training": (("offline-own", "online-dpo"), over_training),
    "goodhart": (("goodhart",), goodhart),
    "replay": (("weekly-plain", "weekly-sft", "weekly-replay"), replay),
    "beta": (tuple(BETAS), beta),
}
"""Each experiment's runs, and what is claimed of them."""


def _all(found: Found, name: str) -> list[float]:
    return [point[name] for point in found["points"]]


def _last(found: Found, name: str) -> float:
    return found["points"][-1][name]


def _chosen_change(found: Found) -> float:
    """Nats an answer, mean of the last 24 steps, on the pairs that were trained on."""
    return fmean(found["trained_on"]["chosen_logps_change"][-24:])


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    return float(spearmanr(a, b)[0])  # type: ignore[arg-type]
