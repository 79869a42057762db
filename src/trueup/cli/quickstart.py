"""`trueup quickstart`: the product's main job once, for real, on one machine."""

import textwrap
from pathlib import Path

import click

from trueup.cli.output import bars, emit, json_option, say, verdict_text
from trueup.cli.summary import show_summary
from trueup.cli.turn import turn_data, turn_page

__all__ = ["quickstart"]


@click.command()
@click.option(
    "--example",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("examples/support"),
    show_default=True,
    help="Folder with trueup.toml and prompts.jsonl.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("quickstart"),
    show_default=True,
    help="Where the project is made. A half-finished one is taken up again.",
)
@json_option
def quickstart(example: Path, folder: Path, as_json: bool) -> None:
    """Serve a small model, send it traffic, and turn the loop once: about ten minutes.

    Pulls the model, starts the server, sends every training prompt of the example through it,
    then flags, labels, pairs, trains, guards, evaluates, A/B-tests and promotes or refuses.
    Exits with 0 for any completed verdict.
    """
    from trueup.quickstart import run

    with bars(hidden=as_json):
        done = run(example, folder)
    turn, page = done.turn, turn_page(done.project.store, done.turn)
    if as_json:
        emit({**turn_data(turn, page), "served": done.served})
        return
    say(verdict_text(turn.verdict))
    show_summary(turn)
    for shown in done.examples:
        say("")
        for name, text in shown._asdict().items():
            say(
                textwrap.fill(
                    text, width=79, initial_indent=f"{name:<11}", subsequent_indent=" " * 11
                )
            )
    say("")
    say(f"The server answers with {done.served} now.")
    if page:
        say(f"Report: {page}")
    say(f"Next: trueup --project {folder} status, or trueup --project {folder} rollback")
