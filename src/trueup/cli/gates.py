"""The gates and what follows from them, each a command. A refusal exits with 3."""

from collections.abc import Callable
from pathlib import Path

import click

from trueup import loop
from trueup.cli.output import bars, emit, exit_code, json_option, say, table, verdict_text
from trueup.cli.project import open_project
from trueup.errors import RecordNotFound
from trueup.project import Project
from trueup.records import Checkpoint, Report, Verdict

__all__ = ["ab", "evaluate", "guard", "promote", "rollback"]

_checkpoint_option = click.option(
    "--checkpoint", "checkpoint_id", metavar="ID", help="[default: the newest]"
)


def chosen_checkpoint(project: Project, checkpoint_id: str | None) -> Checkpoint:
    """The checkpoint the command line names, or the newest."""
    if checkpoint_id:
        return project.store.get(Checkpoint, checkpoint_id)
    newest = project.store.last(Checkpoint)
    if newest is None:
        raise RecordNotFound(
            "There is no checkpoint yet", expected="a trained candidate", next="trueup train"
        )
    return newest


def _gate(
    ctx: click.Context,
    checkpoint_id: str | None,
    as_json: bool,
    run: Callable[[Project, Checkpoint], Report],
) -> None:
    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        report = run(project, chosen_checkpoint(project, checkpoint_id))
    if as_json:
        emit(report)
    elif "alarms" in report.details:
        _show_alarms(report)
    else:
        _show(report.verdict)
    ctx.exit(exit_code(report.verdict))


def _show(verdict: Verdict) -> None:
    say(verdict_text(verdict))
    known = [
        [name, "unknown" if value is None else f"{value:.4g}"]
        for name, value in verdict.figures.items()
    ]
    table(["figure", "value"], known)


def _show_alarms(report: Report) -> None:
    """Every alarm with its lines, those that crossed one first."""
    say(verdict_text(report.verdict))
    order = ("red", "unknown", "amber", "inside")
    alarms = sorted(report.details["alarms"], key=lambda one: order.index(one["status"]))

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    rows = [
        [
            one["name"],
            one["status"],
            number(one["estimate"]),
            f"[{number(one['low'])}, {number(one['high'])}]",
            number(one.get("amber")),
            number(one.get("red")),
        ]
        for one in alarms
    ]
    table(["alarm", "status", "figure", "95 % interval", "amber", "red"], rows)
    for what, why in report.details["not_asked"].items():
        say(f"Not asked: {what} ({why})")
    say(f"Embeddings: {report.details['embedder']}")


@click.command()
@_checkpoint_option
@json_option
@click.pass_context
def guard(ctx: click.Context, checkpoint_id: str | None, as_json: bool) -> None:
    """Length, collapse, drift, diversity, manner and reward hacking, against the champion."""
    _gate(ctx, checkpoint_id, as_json, loop.guard_gate)


@click.command()
@_checkpoint_option
@click.option(
    "--gold",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure on this gold set or benchmark instead; no gate, nothing needs a candidate. "
    "Repeatable.",
)
@click.option(
    "--lm-eval",
    "tasks",
    metavar="TASK[,TASK]",
    help="Measure on tasks of lm-evaluation-harness, by name or as .yaml files; no gate.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="With --gold: a fixed sample of N items. With --lm-eval: the first N.",
)
@click.option(
    "--model",
    metavar="champion|base|ID",
    help="With --gold or --lm-eval: who is asked. "
    "[default: the newest checkpoint, else the champion]",
)
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    checkpoint_id: str | None,
    files: tuple[Path, ...],
    tasks: str | None,
    limit: int | None,
    model: str | None,
    as_json: bool,
) -> None:
    """The gold set, paired with the champion; with --gold, any model on any set."""
    if files and tasks:
        raise click.UsageError("--gold and --lm-eval are two measurements; give one")
    if not files and not tasks:
        if limit or model:
            raise click.UsageError("--limit and --model go with --gold or --lm-eval")
        _gate(ctx, checkpoint_id, as_json, loop.evaluate_gate)
        return
    if checkpoint_id and model:
        raise click.UsageError("--checkpoint and --model name the same thing; give one")
    from trueup.cli.gold import measure_gold, measure_tasks

    if tasks:
        measure_tasks(ctx, tasks.split(","), limit, model or checkpoint_id, as_json)
    else:
        measure_gold(ctx, files, limit, model or checkpoint_id, as_json)


@click.command()
@_checkpoint_option
@json_option
@click.pass_context
def ab(ctx: click.Context, checkpoint_id: str | None, as_json: bool) -> None:
    """Head-to-head on held-out prompts, by a scorer that did not label."""
    _gate(ctx, checkpoint_id, as_json, loop.ab_gate)


@click.command()
@_checkpoint_option
@json_option
@click.pass_context
def promote(ctx: click.Context, checkpoint_id: str | None, as_json: bool) -> None:
    """Make a checkpoint the champion, if every gate passed it. Exits with 3 if not."""
    from trueup import promote as stage

    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        checkpoint = chosen_checkpoint(project, checkpoint_id)
        reports = loop.todays_reports(project, checkpoint)
        gates = project.config.promote.gates
        if all(gate in reports and reports[gate].verdict.passed for gate in gates):
            reports |= loop.earlier_releases(project, checkpoint)
        verdict = stage.run(project.store, project.config.promote, checkpoint, reports)
    if as_json:
        emit(verdict)
    else:
        _show(verdict)
        say("Next: trueup status" if verdict.passed else "Next: trueup report")
    ctx.exit(exit_code(verdict))


@click.command()
@click.option("--reason", default="", help="Why, for the record.")
@json_option
@click.pass_context
def rollback(ctx: click.Context, reason: str, as_json: bool) -> None:
    """Serve again what served before; a running server follows within one request."""
    from trueup import promote as stage

    project = open_project(ctx)
    with project.store.exclusive():
        release = stage.rollback(project.store, reason=reason)
    if as_json:
        emit(release)
    else:
        say(f"{release.weights} serves again. Next: trueup status")
