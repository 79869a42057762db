"""The last step: the alias `champion` moves, or stays, and the reason is on record."""

from collections.abc import Mapping
from typing import Any

from trueup.errors import DataError
from trueup.models.backbone import adapter_weights, base_weights, is_whole
from trueup.promote import cumulative
from trueup.promote.config import PromoteConfig
from trueup.records import ABReport, Checkpoint, EvalReport, GuardReport, Release, Report, Verdict
from trueup.store import Store

__all__ = ["reports_for", "rollback", "run"]

REPORTS: dict[str, type[Report]] = {"guard": GuardReport, "evaluate": EvalReport, "ab": ABReport}


def run(
    store: Store, config: PromoteConfig, checkpoint: Checkpoint, reports: Mapping[str, Report]
) -> Verdict:
    """Make a checkpoint the champion if every gate passed it against today's champion.

    Reads:   the gates' reports under today's settings, and under `first` and `approved` those of
             the candidate's meetings with earlier releases; the checkpoint's files.
    Writes:  one Release, and the alias `champion` with it, in one transaction.
    Again:   promoting what already serves writes nothing and passes.
    Killed:  the alias moved with its release, or not at all.
    Refuses: a report that is missing, is about another checkpoint or champion, or did not pass;
             files that are not the weights on record; a meeting that is due and has no report,
             or that the earlier release won (see `cumulative`).
    Next:    the running server picks the new champion up by itself; `rollback` undoes.
    """
    champion = store.champion()
    if champion and champion.checkpoint_id == checkpoint.id:
        return Verdict(
            gate="promote", status="passed", reason=f"{checkpoint.weights} serves already"
        )
    against = champion.weights if champion else checkpoint.base_weights
    problems = []
    for gate in config.gates:
        report = reports.get(gate)
        if report is None or (report.checkpoint_id, report.champion) != (checkpoint.id, against):
            problems.append(f"{gate}: no report against today's champion under today's settings")
        elif not report.verdict.passed:
            problems.append(f"{gate}: {report.verdict.reason}")
    if not _is_whole(store, checkpoint):
        problems.append("weights: the checkpoint's files are missing or changed")
    beside = _standings(store, config, checkpoint, reports)
    problems += cumulative.problems(beside, reports)
    figures = {f"{g}.{k}": v for g, r in reports.items() for k, v in r.verdict.figures.items()}
    figures |= cumulative.figures(beside)
    if problems:
        return Verdict(
            gate="promote", status="refused", reason="; ".join(problems), figures=figures
        )
    store.release(
        Release(
            action="promote",
            weights=checkpoint.weights,
            checkpoint_id=checkpoint.id,
            previous=champion.id if champion else None,
            report_ids=tuple(r.id for r in reports.values()),
            reason="passed " + ", ".join(config.gates),
        )
    )
    reason = "; ".join([f"{checkpoint.weights} is champion", *cumulative.warnings(beside, reports)])
    return Verdict(gate="promote", status="passed", reason=reason, figures=figures)


def _standings(
    store: Store, config: PromoteConfig, checkpoint: Checkpoint, reports: Mapping[str, Report]
) -> list[cumulative.Standing]:
    """Beside the anchors, by the scorer of the A/B gate; nothing where that gate is not asked."""
    ab = reports.get("ab")
    if "ab" not in config.gates or not isinstance(ab, ABReport):
        return []
    return cumulative.standings(store, config, checkpoint, ab.scorer)


def _is_whole(store: Store, checkpoint: Checkpoint) -> bool:
    """True where the files on disk are the weights on record."""
    folder = store.folder / checkpoint.path
    try:
        if is_whole(folder):
            found = base_weights(folder)
        else:
            found = adapter_weights(checkpoint.base_weights, folder)
    except (OSError, ValueError):
        return False
    return found == checkpoint.weights


def reports_for(
    store: Store,
    checkpoint: Checkpoint,
    champion: str,
    settings: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, Report]:
    """The newest report of each gate for this checkpoint against these weights.

    Args:
        settings: by gate, what the report must have been made with; None takes any, which is for
            looking back and never for promoting.
    """
    found: dict[str, Report] = {}
    for gate, kind in REPORTS.items():
        for report in store.each(kind, checkpoint_id=checkpoint.id, champion=champion):
            if settings is None or report.config == settings.get(gate):
                found[gate] = report
    return found


def rollback(store: Store, *, reason: str = "") -> Release:
    """Serve again what served before the present champion; again goes one further back.

    Raises:
        DataError: nothing served before.
    """
    champion = store.champion()
    # a rollback's own place in history is the release it restored
    at = store.get(Release, champion.restores) if champion and champion.restores else champion
    if champion is None or at is None or at.previous is None:
        raise DataError(
            "There is nothing to roll back to",
            got=champion.action if champion else "no release",
            expected="a release before the present one",
            next="promote a checkpoint first",
        )
    target = store.get(Release, at.previous)
    if target.restores:
        target = store.get(Release, target.restores)
    release = Release(
        action="rollback",
        weights=target.weights,
        checkpoint_id=target.checkpoint_id,
        previous=champion.id,
        restores=target.id,
        reason=reason,
    )
    store.release(release)
    return release
