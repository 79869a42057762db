"""`trueup run`: one turn of the loop. `trueup report`: the page that shows why."""

import dataclasses
from pathlib import Path

import click

from trueup import loop
from trueup.cli.gates import chosen_checkpoint
from trueup.cli.output import bars, emit, exit_code, json_option, say, verdict_text
from trueup.cli.project import open_project
from trueup.cli.summary import show_summary
from trueup.loop import Turn
from trueup.project import Project
from trueup.promote import reports_for
from trueup.records import Checkpoint, GuardReport, TrainingRun, Verdict
from trueup.store import Store

__all__ = ["report", "run", "turn_data", "turn_page"]


@click.command()
@json_option
@click.pass_context
def run(ctx: click.Context, as_json: bool) -> None:
    """One turn of the loop: everything that can be done with today's records."""
    project = open_project(ctx)
    with bars(hidden=as_json):
        turn = loop.turn(project)
    page = turn_page(project.store, turn)
    if as_json:
        emit(turn_data(turn, page))
    else:
        say(verdict_text(turn.verdict))
        show_summary(turn)
        if page:
            say(f"Report: {page}")
        say(
            {
                "passed": "Next: trueup status, or 'trueup rollback' to undo",
                "refused": "Next: read the report; the champion serves on",
                "pending": "Next: gather more traffic and feedback, then 'trueup run' again",
            }[turn.verdict.status]
        )
    ctx.exit(exit_code(turn.verdict))


def turn_page(store: Store, turn: Turn) -> Path | None:
    """The report of a turn, written; None where there was no candidate to report of."""
    from trueup.web.report import write_report

    if turn.checkpoint is None:
        return None
    return write_report(
        store,
        turn.checkpoint,
        verdict=turn.verdict,
        reports=turn.reports,
        costs=turn.costs,
        counts=turn.counts,
    )


def turn_data(turn: Turn, page: Path | None) -> dict[str, object]:
    """A turn as JSON, without the reports' long details."""
    return {
        "verdict": turn.verdict,
        "champion": turn.champion,
        "counts": turn.counts,
        "warnings": turn.warnings,
        "checkpoint": turn.checkpoint and turn.checkpoint.id,
        "reports": [{"id": r.id, "verdict": r.verdict} for r in turn.reports],
        "costs": [dataclasses.asdict(cost) for cost in turn.costs],
        "report": str(page) if page else None,
    }


def _held_against(project: Project, checkpoint: Checkpoint) -> str:
    """The weights that its newest report compares a checkpoint with; without one, those it started
    from. A later round starts from the round before and is held against the champion."""
    newest = project.store.last(GuardReport, checkpoint_id=checkpoint.id)
    return (
        newest.champion
        if newest
        else project.store.get(TrainingRun, checkpoint.run_id).start_weights
    )


@click.command()
@click.option("--checkpoint", "checkpoint_id", metavar="ID", help="[default: the newest]")
@json_option
@click.pass_context
def report(ctx: click.Context, checkpoint_id: str | None, as_json: bool) -> None:
    """Write the HTML report of a checkpoint again from its records."""
    from trueup.web.report import report_data, write_report

    project = open_project(ctx)
    checkpoint = chosen_checkpoint(project, checkpoint_id)
    reports = list(
        reports_for(project.store, checkpoint, _held_against(project, checkpoint)).values()
    )
    stopped = next((r.verdict for r in reports if not r.verdict.passed), None)
    verdict = stopped or (
        reports[-1].verdict
        if reports
        else Verdict(gate="guard", status="pending", reason="no gate ran")
    )
    page = write_report(project.store, checkpoint, verdict=verdict, reports=reports)
    if as_json:
        emit(report_data(project.store, checkpoint, verdict=verdict, reports=reports))
    else:
        say(f"{verdict_text(verdict)}\nReport: {page}")
