"""What people are asked: tasks in and out, their votes settled, and who gave them."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from trueup.cli.output import emit, json_option, say, table, write_file
from trueup.cli.project import open_project
from trueup.stats.intervals import Interval

if TYPE_CHECKING:
    from trueup.label.files import Taken
    from trueup.label.weigh import Annotator

__all__ = ["annotators", "tasks"]


@click.group()
def tasks() -> None:
    """Comparisons that wait for people, and their votes."""


@tasks.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@json_option
@click.pass_context
def list_(ctx: click.Context, limit: int, as_json: bool) -> None:
    """How many tasks wait, are unsettled or settled, and the first of them."""
    from trueup import label

    project = open_project(ctx)
    found = label.weigh(project.store, project.config.label)
    unsettled = found.unsettled
    counts = {
        "waiting": len(found.waiting),
        "unsettled": len(unsettled),
        "settled": len(found.outcomes) - len(unsettled),
        "gold": sum(one.gold is not None for one in found.tasks.values()),
    }
    if as_json:
        emit({"counts": counts, "waiting": found.waiting[:limit], "unsettled": unsettled[:limit]})
        return
    table(["tasks", "count"], [[name, f"{n:,}"] for name, n in counts.items()])
    for state, some in (("unsettled", unsettled), ("waiting", found.waiting)):
        for one in some[:limit]:
            text = one.prompt[-1].content if one.prompt else ""
            line = "".join(c if c.isprintable() else " " for c in text)
            say(f"{state:<10} {one.id}  {len(found.votes.get(one.id, ()))} votes  {line[:60]!r}")
    say("Next: trueup tasks export, or trueup tasks settle")


@tasks.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--gold", is_flag=True, help="The rows have their answers: they test annotators.")
@json_option
@click.pass_context
def add(ctx: click.Context, file: Path, gold: bool, as_json: bool) -> None:
    """Make tasks of a JSONL file of prompts with two candidates each."""
    from trueup.label import files

    project = open_project(ctx)
    text = files.read_text(file)
    taken = files.add_tasks(project.store, text, name=file.name, gold=gold, scrub=project.scrub)
    _tell(taken, "tasks", as_json)


@tasks.command()
@click.option("--csv", "form", flag_value="csv", default="csv", help="A table.  [default]")
@click.option("--jsonl", "form", flag_value="jsonl", help="One JSON object a line.")
@click.option("--votes", is_flag=True, help="Every vote that counts, in place of waiting tasks.")
@click.option("--annotator", default="", help="Whose file it will be; written into each row.")
@click.option("--out", type=click.Path(path_type=Path), help="A file.  [default: stdout]")
@click.pass_context
def export(
    ctx: click.Context, form: Literal["csv", "jsonl"], votes: bool, annotator: str, out: Path | None
) -> None:
    """Write waiting tasks, gold questions among them, for people to fill in the column 'vote'."""
    from trueup import label
    from trueup.label import files
    from trueup.privacy import trail

    project = open_project(ctx)
    if votes:
        text = files.export_votes(project.store, form)
    else:
        asked = label.weigh(project.store, project.config.label).open_to(annotator)
        text = files.export_tasks(asked, form, annotator=annotator)
    what = "votes" if votes else "tasks"
    told = {"what": what, "characters": len(text), "to": str(out or "stdout")}
    trail.note(project.store, "export", told)
    if out is None:
        click.echo(text, nl=False)
        return
    write_file(out, text)
    say(f"Wrote {out}. Next: fill in 'vote' (1, 2, tie, both bad), then trueup tasks import {out}")


@tasks.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--annotator", default="", help="Whose votes these are where a row does not say.")
@json_option
@click.pass_context
def import_(ctx: click.Context, file: Path, annotator: str, as_json: bool) -> None:
    """Read votes back from an exported file, .csv or .jsonl."""
    from trueup.label import files

    project = open_project(ctx)
    form = "csv" if file.suffix.lower() == ".csv" else "jsonl"
    taken = files.import_votes(
        project.store,
        files.read_text(file),
        name=file.name,
        form=form,
        annotator=annotator,
        scrub=project.scrub,
    )
    _tell(taken, "votes", as_json)


@tasks.command()
@json_option
@click.pass_context
def settle(ctx: click.Context, as_json: bool) -> None:
    """Settle tasks that have votes enough into labels; 'trueup label' does so, too."""
    from trueup import label

    project = open_project(ctx)
    with project.store.exclusive():
        done = label.settle(project.store, project.config.label)
    waiting, unsettled = len(done.weighed.waiting), len(done.weighed.unsettled)
    if as_json:
        emit({"labels": len(done.written), "waiting": waiting, "unsettled": unsettled})
    else:
        say(
            f"{len(done.written):,} labels written; {waiting:,} tasks wait for votes, "
            f"{unsettled:,} for another look. Next: trueup pair"
        )


@click.command()
@json_option
@click.pass_context
def annotators(ctx: click.Context, as_json: bool) -> None:
    """What each annotator is worth, and how far they agree beyond chance."""
    from trueup import label

    project = open_project(ctx)
    found = label.weigh(project.store, project.config.label)
    alpha = found.alpha()
    if as_json:
        emit(
            {
                "annotators": [_line(one) for one in found.annotators],
                "krippendorff_alpha": _interval(alpha),
            }
        )
        return
    table(
        ["annotator", "votes", "agrees with settled", "gold questions", "reliability", ""],
        [
            [
                one.name,
                f"{one.num_votes:,}",
                _shown(one.agreement),
                _shown(one.gold.accuracy),
                "-" if one.reliability is None else f"{one.reliability:.2f}",
                "left out" if one.left_out else "",
            ]
            for one in found.annotators
        ],
    )
    say(f"Krippendorff's alpha  {_shown(alpha)}")
    say("Next: trueup tasks settle")


def _line(one: "Annotator") -> dict[str, object]:
    return {
        "name": one.name,
        "votes": one.num_votes,
        "agreement": _interval(one.agreement),
        "gold_asked": one.gold.num_asked,
        "gold_right": one.gold.num_right,
        "gold_accuracy": _interval(one.gold.accuracy),
        "reliability": one.reliability,
        "left_out": one.left_out,
    }


def _interval(one: Interval | None) -> dict[str, float] | None:
    return one and one._asdict()


def _shown(one: Interval | None) -> str:
    return "-" if one is None else f"{one[0]:.2f} ({one[1]:.2f}-{one[2]:.2f})"


def _tell(taken: "Taken", what: str, as_json: bool) -> None:
    if as_json:
        emit(taken._asdict())
        return
    skipped = ", ".join(f"{n} {why}" for why, n in taken.skipped.items())
    say(
        f"{taken.rows:,} rows: {taken.new:,} new {what}, {taken.known:,} known"
        + (f", skipped: {skipped}" if skipped else "")
    )
    for problem in taken.problems:
        click.echo(f"  {problem}", err=True)
    say("Next: trueup tasks list")
