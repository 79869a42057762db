"""Does the chain add up? A candidate beside the first release, and the last that a person approved.

Weekly wins need not be transitive: each candidate may beat the one before by what this week's
scorer likes, and end up worse than where it all began. So a candidate is held against fixed
points, too: by the chain of all contests on record at every promotion, and head to head at every
few, or as soon as the chain itself looks doubtful.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trueup.promote.config import PromoteConfig
from trueup.records import ABReport, Checkpoint, Release, Report
from trueup.stats import Game, Strength, bradley_terry
from trueup.store import Store

__all__ = ["Anchor", "Standing", "anchors", "chain", "standings"]


class Anchor(NamedTuple):
    """A release that later ones are measured from."""

    name: str
    """`first` or `approved`."""
    weights: str
    checkpoint_id: str | None


class Standing(NamedTuple):
    """A candidate beside an anchor."""

    anchor: Anchor
    strength: Strength | None
    """By the chain of contests; None where no chain links the two."""
    promotions: int
    """Since the two were last compared head to head, this one counted."""
    is_due: bool
    """True where they must meet before this promotion."""


def anchors(store: Store, checkpoint: Checkpoint) -> list[Anchor]:
    """The fixed points that this candidate has not met at the gate: the first release, and the
    newest that a person approved. Neither where it is the champion, which the gate compares."""
    champion = store.champion()
    releases = store.all(Release)
    found: dict[str, Anchor] = {}
    first = next((r for r in releases if r.action != "approve"), None)
    approved = next((r for r in reversed(releases) if r.action == "approve"), None)
    for name, release in (("first", first), ("approved", approved)):
        if release is None or release.weights in found:
            continue
        if champion and release.weights not in (champion.weights, checkpoint.weights):
            found[release.weights] = Anchor(name, release.weights, release.checkpoint_id)
    return list(found.values())


def standings(
    store: Store, config: PromoteConfig, checkpoint: Checkpoint, scorer: tuple[str, str]
) -> list[Standing]:
    """Where the candidate stands beside each anchor, and which it must meet.

    Due at every `cumulative_every` promotions, and earlier where the chain does not put it above
    the anchor: its 95 % interval holds one half, or there is no chain.
    """
    found = []
    for anchor in anchors(store, checkpoint):
        strength = chain(store, scorer, anchor.weights).get(checkpoint.weights)
        promotions = _promotions_since(store, anchor) + 1
        is_doubtful = strength is None or strength.win_rate.low <= 0.5
        is_due = is_doubtful or promotions >= config.cumulative_every
        found.append(Standing(anchor, strength, promotions, is_due))
    return found


def chain(store: Store, scorer: tuple[str, str], anchor: str) -> dict[str, Strength]:
    """Bradley-Terry strengths of all weights that this scorer's contests link to the anchor.

    A prompt of a contest is one game, its samples' points averaged.

    Args:
        scorer: id and version, as `ABReport.scorer` has them.
    """
    weights = {one.id: one.weights for one in store.each(Checkpoint)}
    games = [
        Game(weights[report.checkpoint_id], report.champion, vote["prompt_hash"], vote["points"])
        for report in store.each(ABReport)
        if report.scorer == scorer and report.checkpoint_id in weights
        for vote in _votes(report)
    ]
    return bradley_terry(games, anchor)


def problems(found: Sequence[Standing], reports: Mapping[str, Report]) -> list[str]:
    """Why the anchors stand in the way: one that is due and has not been met, or that won."""
    said = []
    for one in found:
        report = reports.get(one.anchor.name)
        if report is None or report.champion != one.anchor.weights:
            if one.is_due:
                said.append(f"{one.anchor.name}: due after {one.promotions} promotions, not drawn")
        elif not report.verdict.passed:
            said.append(f"{one.anchor.name}: {report.verdict.reason}")
    return said


def warnings(found: Sequence[Standing], reports: Mapping[str, Report]) -> list[str]:
    """What a person should know although it stops nothing."""
    met = [(one.anchor.name, reports.get(one.anchor.name)) for one in found]
    return [
        f"{name}: {report.verdict.reason}"
        for name, report in met
        if report and report.verdict.reason.startswith("warning")
    ]


def figures(found: Sequence[Standing]) -> dict[str, float | None]:
    """The chain's win rates, by anchor."""
    told: dict[str, float | None] = {}
    for one in found:
        rate = one.strength.win_rate if one.strength else None
        for end in ("estimate", "low", "high"):
            told[f"chain.{one.anchor.name}_{end}"] = getattr(rate, end) if rate else None
        told[f"chain.{one.anchor.name}_promotions"] = float(one.promotions)
    return told


def _votes(report: ABReport) -> list[dict[str, Any]]:
    return [v for v in report.details.get("votes", ()) if v.get("prompt_hash")]


def _promotions_since(store: Store, anchor: Anchor) -> int:
    """Promotions since the newest that rests on a head-to-head with the anchor, or since the
    anchor itself."""
    count = 0
    for release in reversed(store.all(Release)):
        if release.action != "promote":
            continue
        if release.weights == anchor.weights:
            break
        reports = store.get_all(ABReport, release.report_ids)
        if any(r.champion == anchor.weights for r in reports):
            break
        count += 1
    return count
