"""`trueup suite`: held-out prompts from traffic."""

import json
from collections import Counter
from pathlib import Path

import click

from trueup.cli.output import bars, emit, json_option, say, table, write_file
from trueup.cli.project import open_project
from trueup.errors import ConfigError
from trueup.privacy import trail
from trueup.project import Project
from trueup.records import Interaction, Messages, PreferencePair
from trueup.suite import SuitePrompt

__all__ = ["suite"]


@click.command()
@click.option(
    "--size", type=click.IntRange(min=4), default=200, show_default=True, help="Prompts in all."
)
@click.option(
    "--topics", type=click.IntRange(min=0), default=0, help="[default: one for every 16 prompts]"
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where they are written. [default: the file that ab.prompts names]",
)
@click.option("--seed", default=0, show_default=True, help="Another draw.")
@click.option(
    "--diverse",
    is_flag=True,
    help="Take the most different prompts of each topic, not a random lot.",
)
@json_option
@click.pass_context
def suite(
    ctx: click.Context,
    size: int,
    topics: int,
    out: Path | None,
    seed: int,
    diverse: bool,
    as_json: bool,
) -> None:
    """Draw the held-out prompts from captured traffic, topic by topic.

    What was trained on, or is in the gold set, is left out. What is drawn is never trained on from
    now on. A file that is there is not overwritten.
    """
    from trueup.ab.draw import draw_suite

    project = open_project(ctx)
    target = out or project.folder / project.config.ab.prompts
    if target.exists():
        raise ConfigError(
            f"{target} is there already",
            expected="a file to make",
            next="name another with --out, or move it away: earlier reports speak of it",
        )
    traffic = _traffic(project)
    with bars(hidden=as_json):
        drawn = draw_suite(
            traffic, project.embedder, size=size, topics=topics, seed=seed, is_diverse=diverse
        )
    write_file(target, "".join(_line(at, one) for at, one in enumerate(drawn, start=1)))
    told = {"what": "suite", "records": len(drawn), "to": str(target)}
    trail.note(project.store, "export", told)
    counts = Counter(one.stratum for one in drawn)
    if as_json:
        emit({"file": str(target), "prompts": len(drawn), "topics": dict(counts)})
        return
    table(["topic", "prompts"], [[name, f"{n:,}"] for name, n in counts.most_common()])
    say(f"{len(drawn):,} prompts of {len(set(traffic)):,} in {target}")
    say("Next: trueup run")


def _traffic(project: Project) -> list[Messages]:
    """Prompts of the traffic, as often as they came, that were not trained on and are not gold."""
    from trueup.loop import held_out

    learned = {one.prompt for one in project.store.each(PreferencePair)}
    away = held_out(project, required=False)
    return [
        one.prompt
        for one in project.store.each(Interaction)
        if one.is_plain and one.prompt not in learned and not away.contains(one.prompt)
    ]


def _line(number: int, prompt: SuitePrompt) -> str:
    told = prompt.model_dump(mode="json", include={"messages", "stratum"})
    return json.dumps({"id": f"suite-{number:04}", **told}, ensure_ascii=False) + "\n"
