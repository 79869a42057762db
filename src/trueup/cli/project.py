"""`trueup init` and `trueup status`, and how every command opens its project."""

import sys
from pathlib import Path

import click

from trueup.cli.output import emit, json_option, say, table
from trueup.errors import ConfigError
from trueup.project import Project
from trueup.records import (
    Checkpoint,
    Dataset,
    Feedback,
    Flag,
    Interaction,
    Label,
    PreferencePair,
    Release,
    ReviewTask,
)

__all__ = ["init", "open_project", "status"]

STARTER = """# The smallest project: a model, held-out prompts, a gold set.
# 'trueup status' shows every setting in force; docs/config.md explains them.

[model]
base = "smollm2-135m-instruct"   # catalogue name, local folder, or hub repository

[ab]
prompts = "heldout.jsonl"        # {"messages": [...], "facts": [["4 hours", "four hours"]]}

[evaluate]
gold = "gold.jsonl"              # {"id": …, "prompt": …, "checker": {"type": …}}
"""


def open_project(ctx: click.Context) -> Project:
    """The project the command line names; its own judges can be imported from its folder."""
    folder = str(ctx.obj["folder"].resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    return Project(ctx.obj["folder"], ctx.obj["overrides"])


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@json_option
def init(folder: Path, as_json: bool) -> None:
    """Start a project: write a trueup.toml to fill in."""
    target = folder / "trueup.toml"
    if target.exists():
        raise ConfigError(
            f"{target} is there already", expected="a folder without one", next="edit it instead"
        )
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(STARTER)
    if as_json:
        emit({"project": str(folder.resolve()), "config": str(target)})
    else:
        say(f"Wrote {target}. Next: fill it in, then 'trueup model pull' and 'trueup serve'.")


@click.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Where the loop stands: records, champion, releases, settings in force."""
    project = open_project(ctx)
    store = project.store
    kinds = (Interaction, Feedback, Flag, Label, PreferencePair, Dataset, Checkpoint)
    counts = {kind.tag: store.count(kind) for kind in kinds}
    counts["flags raised"] = store.count(Flag, raised=True)
    counts |= _tasks(project)
    champion, releases = store.champion(), store.all(Release)
    if as_json:
        emit(
            {
                "project": str(project.folder),
                "counts": counts,
                "champion": champion,
                "releases": releases,
                "config": project.config,
            }
        )
        return
    table(["records", "count"], [[name, f"{n:,}"] for name, n in counts.items()])
    say("")
    say(f"champion  {champion.weights if champion else 'the base model (nothing released yet)'}")
    for release in releases[-5:]:
        say(f"  {release.created_at[:16]}  {release.action:<9} {release.weights}  {_why(release)}")
    say("Next: trueup run")


def _tasks(project: Project) -> dict[str, int]:
    """Tasks by what they wait for, where people were asked anything."""
    if not project.store.count(ReviewTask):
        return {}
    from trueup import label

    found = label.weigh(project.store, project.config.label)
    return {"tasks waiting": len(found.waiting), "tasks unsettled": len(found.unsettled)}


def _why(release: Release) -> str:
    """The reason on record; of an approval, whose it is."""
    return f"by {release.approved_by}  {release.reason}" if release.approved_by else release.reason
