"""The stages from flags to a checkpoint, each a command."""

import click

from trueup.cli.output import bars, emit, json_option, say
from trueup.cli.project import open_project
from trueup.errors import DataError
from trueup.project import Project
from trueup.records import Dataset, Label, PreferencePair

__all__ = ["flag", "label", "pair", "train"]


@click.command()
@json_option
@click.pass_context
def flag(ctx: click.Context, as_json: bool) -> None:
    """Score new interactions and raise flags on the weak ones."""
    from trueup import flag as stage

    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        flags = stage.run(project.store, project.config.flag)
    raised = sum(f.raised for f in flags)
    if as_json:
        emit({"examined": len(flags), "raised": raised})
    else:
        say(f"{len(flags):,} interactions examined, {raised:,} flagged. Next: trueup label")


@click.command()
@json_option
@click.pass_context
def label(ctx: click.Context, as_json: bool) -> None:
    """Draw rivals to each flagged answer and rank them with the configured judge."""
    from trueup import label as stage

    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        labels = stage.run(project.store, project.config.label, project.champion())
    if as_json:
        emit({"labels": len(labels), "annotators": sorted({one.annotator for one in labels})})
    else:
        say(f"{len(labels):,} labels written. Next: trueup pair")


@click.command()
@json_option
@click.pass_context
def pair(ctx: click.Context, as_json: bool) -> None:
    """Turn labels into preference pairs; says how many wait to be trained on."""
    from trueup import pair as stage
    from trueup.loop import held_out

    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        skipped = stage.run(project.store, project.config.pair, held_out(project))
        waiting = len(stage.new_pairs(project.store))
    if as_json:
        emit({"new_pairs": waiting, "skipped": dict(skipped)})
    else:
        left_out = ", ".join(f"{n} {why}" for why, n in skipped.items())
        say(
            f"{waiting:,} pairs wait for training"
            + (f" (labels without a pair: {left_out})" if left_out else "")
        )
        say("Next: trueup run")


@click.command()
@click.option(
    "--dataset",
    "source",
    metavar="FILE|ID",
    help="A file of pairs, or a data set id. [default: all new pairs]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Train on the first N pairs of it.")
@json_option
@click.pass_context
def train(ctx: click.Context, source: str | None, limit: int | None, as_json: bool) -> None:
    """Train a candidate from the champion. It serves only after 'trueup promote'."""
    from trueup import train as stage

    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        dataset = _dataset(project, source, limit)
        checkpoint = stage.run(project.store, project.config.train, dataset, project.champion())
    first, last = checkpoint.metrics["first"], checkpoint.metrics["last"]
    if as_json:
        emit({"dataset": dataset, "checkpoint": checkpoint})
        return
    say(
        f"{checkpoint.metrics['num_pairs']} pairs, loss {first['loss']:.4f} -> {last['loss']:.4f}, "
        f"chosen log-prob {last['chosen_logps_change']:+.1f} nats"
    )
    say(f"{checkpoint.id} in {project.store.folder / checkpoint.path}")
    say("Next: trueup guard, evaluate, ab, promote (or 'trueup run' for all of them)")


def _dataset(project: Project, source: str | None, limit: int | None) -> Dataset:
    """The data set the command line names; a file is imported and frozen first."""
    from pathlib import Path

    from trueup import pair as stage
    from trueup.capture.importer import import_file
    from trueup.loop import held_out

    store = project.store
    if source and source.startswith("dataset_"):
        dataset = store.get(Dataset, source)
        pairs = store.get_all(PreferencePair, dataset.pair_ids)
        return (
            dataset
            if limit is None
            else stage.freeze(store, pairs[:limit], source=dataset.source + f"[:{limit}]")
        )
    name = "command line"
    if source:
        name = f"file:{import_file(store, Path(source)).file}"
    skipped = stage.run(store, project.config.pair, held_out(project, required=False))
    pairs = _pairs_of(project, name) if source else stage.new_pairs(store)
    if not pairs:
        raise DataError(
            "There is no pair to train on",
            got=source or "no new pairs",
            expected="rows with a chosen and a rejected answer",
            next="trueup import, label or pair first",
        )
    return stage.freeze(
        store, pairs[:limit], source=name if limit is None else f"{name}[:{limit}]", skipped=skipped
    )


def _pairs_of(project: Project, source: str) -> list[PreferencePair]:
    """The pairs that come from one imported file, in the file's order."""
    labels = {one.id for one in project.store.each(Label, source=source)}
    return [p for p in project.store.each(PreferencePair) if labels.issuperset(p.label_ids)]
