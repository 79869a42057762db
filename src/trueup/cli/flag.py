"""`trueup flag`: score new traffic, and see what the scores are worth."""

import click

from trueup.cli.output import bars, emit, json_option, say
from trueup.cli.project import open_project

__all__ = ["flag"]


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def flag(ctx: click.Context, as_json: bool) -> None:
    """Score new interactions and raise flags on the weak ones."""
    if ctx.invoked_subcommand:
        return
    from trueup import flag as stage
    from trueup.loop import flag_parts

    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        flags = stage.run(project.store, project.config.flag, flag_parts(project))
    raised = sum(f.raised for f in flags)
    if as_json:
        notes = {"notes": dict(flags.notes)} if flags.notes else {}
        emit({"examined": len(flags), "raised": raised, **notes})
        return
    for why, count in flags.notes.items():
        say(f"{count:,} {why}")
    say(f"{len(flags):,} interactions examined, {raised:,} flagged. Next: trueup label")
