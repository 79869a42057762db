"""`trueup drill`: would the gates notice?"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trueup.cli.output import EXIT_REFUSED, bars, emit, json_option, say, table
from trueup.cli.project import open_project

if TYPE_CHECKING:
    from trueup.drill.run import Drill, Row

__all__ = ["drill"]


@click.command()
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Drills of each fault at each strength.",
)
@click.option(
    "--controls",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Honest candidates; a quarter as many well-taught ones and fair judges.",
)
@click.option("--only", multiple=True, metavar="FAULT", help="One fault by name; repeatable.")
@click.option("--quick", is_flag=True, help="One seed, two controls: minutes, and no proof.")
@click.option(
    "--own", is_flag=True, help="On this project's model and gates: two faults, at their worst."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes. [default: one a core]")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where outcomes and the page are kept. "
    "[default: the cache; with --own the project's reports]",
)
@json_option
@click.pass_context
def drill(
    ctx: click.Context,
    seeds: int,
    controls: int,
    only: tuple[str, ...],
    quick: bool,
    own: bool,
    jobs: int | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Plant faults in a toy language and see that the gates stop each of them.

    Seven faults at three strengths, and honest candidates that must pass. Needs no project and
    touches none; with --own it plants two of them in the project's own model. Exits with 3 where a
    fault was caught in less than four drills of five, or an honest candidate was stopped. Killed,
    it goes on with the same command.
    """
    from trueup import drill as drills
    from trueup.drill.run import run, run_on
    from trueup.models.catalog import home
    from trueup.web import drill_data, write_drill

    by_name = {one.name: one for one in drills.FAULTS}
    if unknown := set(only) - set(by_name):
        raise click.BadParameter(
            f"{sorted(unknown)}; there are {', '.join(by_name)}", param_hint="--only"
        )
    project = open_project(ctx) if own else None
    kept = folder or (project.store.folder / "reports" if project else home() / "drill")
    with bars(hidden=as_json):
        done = (
            run_on(project)
            if project
            else run(
                kept,
                faults=[by_name[name] for name in only] or drills.FAULTS,
                num_seeds=1 if quick else seeds,
                num_controls=2 if quick else controls,
                jobs=jobs,
            )
        )
    name = project.folder.resolve().name if project else ""
    page = write_drill(done, kept, project=name)
    if as_json:
        emit(drill_data(done, project=name) | {"report": str(page)})
    else:
        _show(done)
        say(f"Report: {page}")
    ctx.exit(EXIT_REFUSED if done.missed or done.false_alarms else 0)


def _show(done: "Drill") -> None:
    rows = [_cells(row) for row in done.rows()]
    table(["fault", "strength", "caught", "by", "delay", "gold", "copy"], rows)
    say(
        "caught: by a gate that should; by: all gates that stopped it; delay: candidates\n"
        "of it promoted before one was caught; gold and copy: the true change, which no\n"
        "gate sees.\n"
    )
    for row in done.controls():
        say(f"{row.fault}: {row.num_stopped} of {row.num_trials} stopped")
    if done.bound is not None:
        say(f"False alarms among honest candidates: below {done.bound:.1%}, with 95 % confidence")
    if done.left_out:
        say(f"{done.left_out} honest candidates came out no better, or forgot, and do not count.")
    for one in done.false_alarms:
        say(f"FALSE ALARM by {one.stopped_by}, seed {one.seed}: {one.reason}")
    for row in done.missed:
        say(f"MISSED: {row.fault} at {row.strength:g} {row.unit}")
    if not done.missed and not done.false_alarms:
        say("Every fault was caught, and nothing else was stopped.")


def _cells(row: "Row") -> list[str]:
    by = ", ".join(f"{gate} {n}" for gate, n in row.stopped_by.items())
    return [
        row.fault,
        f"{row.strength:g}",
        f"{row.num_caught}/{row.num_trials}",
        by,
        "" if row.delay is None else f"{row.delay:.1f}",
        *("" if one is None else f"{one:+.2f}" for one in (row.gold, row.copy)),
    ]
