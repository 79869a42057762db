"""The last step: the alias `champion` moves, or stays, and the reason is on record."""

from trueup.errors import DataError
from trueup.promote.config import PromoteConfig
from trueup.records import ABReport, Checkpoint, EvalReport, GuardReport, Release, Report, Verdict
from trueup.store import Store

__all__ = ["reports_for", "rollback", "run"]

REPORTS: dict[str, type[Report]] = {"guard": GuardReport, "evaluate": EvalReport, "ab": ABReport}


def run(store: Store, config: PromoteConfig, checkpoint: Checkpoint) -> Verdict:
    """Make a checkpoint the champion if every gate passed it against today's champion.

    Reads:   the newest report of each gate for this checkpoint and the serving weights.
    Writes:  one Release, and the alias `champion` with it, in one transaction.
    Again:   promoting what already serves writes nothing and passes.
    Killed:  the alias moved with its release, or not at all.
    Refuses: a report that is missing, is about another champion, or did not pass.
    Next:    the running server picks the new champion up by itself; `rollback` undoes.
    """
    champion = store.champion()
    if champion and champion.checkpoint_id == checkpoint.id:
        return Verdict(
            gate="promote", status="passed", reason=f"{checkpoint.weights} serves already"
        )
    reports = reports_for(
        store, checkpoint, champion.weights if champion else checkpoint.base_weights
    )
    problems = []
    for gate in config.gates:
        report = reports.get(gate)
        if report is None:
            problems.append(f"{gate}: no report against today's champion")
        elif not report.verdict.passed:
            problems.append(f"{gate}: {report.verdict.reason}")
    figures = {f"{g}.{k}": v for g, r in reports.items() for k, v in r.verdict.figures.items()}
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
    return Verdict(
        gate="promote", status="passed", reason=f"{checkpoint.weights} is champion", figures=figures
    )


def reports_for(store: Store, checkpoint: Checkpoint, champion: str) -> dict[str, Report]:
    """The newest report of each gate for this checkpoint against these weights."""
    found = {
        gate: store.last(kind, checkpoint_id=checkpoint.id, champion=champion)
        for gate, kind in REPORTS.items()
    }
    return {gate: report for gate, report in found.items() if report is not None}


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
