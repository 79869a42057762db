"""`trueup shift`: are pairs such as the champion writes, and are the prompts still the same?"""

from pathlib import Path

import click

from trueup.cli.output import bars, emit, json_option, say, table
from trueup.cli.project import open_project
from trueup.errors import DataError
from trueup.project import Project
from trueup.records import Dataset, Interaction, PreferencePair
from trueup.shift import PromptDrift, Shift, advice, measure, prompt_drift, warning, weekly_drift

__all__ = ["shift"]


@click.command()
@click.option(
    "--dataset",
    "source",
    metavar="FILE|ID",
    help="A file of pairs, or a data set id. [default: pairs that wait, or the newest data set]",
)
@click.option(
    "--weeks",
    type=click.IntRange(1),
    help="Leave pairs alone; hold each of so many weeks' prompts against those of the week before.",
)
@json_option
@click.pass_context
def shift(ctx: click.Context, source: str | None, weeks: int | None, as_json: bool) -> None:
    """How far pairs are from what the champion writes, and how far the prompts have moved."""
    from trueup.web import write_shift

    project = open_project(ctx)
    if weeks:
        _week_to_week(project, weeks, as_json)
        return
    config = project.config.shift
    with project.store.exclusive(), bars(hidden=as_json):
        pairs, name = _pairs(project, source)
        found = measure(project.store, config, pairs, project.champion(), project.embedder)
        traffic = project.store.each(Interaction)
        moved = prompt_drift(traffic, project.embedder, config)
    warned = warning(found, config)
    page = write_shift(project.store, found, moved, config, pairs=pairs, source=name)
    if as_json:
        emit({"pairs": found, "prompts": moved, "warning": warned, "report": str(page)})
        return
    say(f"{len(pairs):,} pairs of {name}")
    if found is None:
        say("Unknown: it takes 20 pairs with different prompts that the champion can read")
    else:
        _show(found)
    _show_prompts(moved)
    if warned:
        say(f"Warning: {warned}")
        for line in advice(name if name.startswith("dataset_") else ""):
            say(f"  {line}")
    say(f"Report: {page}")
    say("Next: trueup train")


def _week_to_week(project: Project, weeks: int, as_json: bool) -> None:
    from trueup.web.weeks_page import write_weeks

    config = project.config.shift
    with bars(hidden=as_json):
        traffic = project.store.each(Interaction)
        found = weekly_drift(traffic, project.embedder, config, weeks=weeks)
    page = write_weeks(project.store, found, embedder=project.embedder.id)
    if as_json:
        emit({"weeks": found, "report": str(page)})
        return
    table(
        ["week of", "interactions", "AUC", "95% interval", "MMD p-value"],
        [[one.monday, f"{one.num_interactions:,}", *_figures(one.drift)] for one in found],
    )
    say("Each week against the week before; an AUC of 0.5 is no difference")
    say(f"Report: {page}")
    say("Next: trueup topics, to see what grew")


def _figures(moved: PromptDrift | None) -> list[str]:
    if moved is None:
        return ["unknown", "", ""]
    interval = f"[{moved.auc_low:.2f}, {moved.auc_high:.2f}]"
    return [f"{moved.auc:.2f}", interval, f"{moved.mmd_p_value:.3f}"]


def _pairs(project: Project, source: str | None) -> tuple[list[PreferencePair], str]:
    """The pairs asked for, and where they are from. Nothing is frozen: those that wait still do."""
    from trueup import pair as stage
    from trueup.capture.importer import import_file
    from trueup.cli.stages import pairs_of
    from trueup.loop import held_out

    store = project.store
    if source and not source.startswith("dataset_"):
        name = f"file:{import_file(store, Path(source), scrub=project.scrub).file}"
        stage.run(store, project.config.pair, held_out(project, required=False))
        return pairs_of(project, name), name
    dataset = store.get(Dataset, source) if source else None
    waiting = [] if dataset else stage.new_pairs(store)
    dataset = dataset or (None if waiting else store.last(Dataset))
    if dataset is None and not waiting:
        raise DataError(
            "There are no pairs to look at",
            expected="pairs that wait for training, or a data set",
            next="trueup pair, or name a file with --dataset",
        )
    if dataset is None:
        return waiting, "new labels"
    return store.get_all(PreferencePair, dataset.pair_ids), dataset.id


def _show(found: Shift) -> None:
    def number(value: float | None, form: str = ".3f") -> str:
        return "unknown" if value is None else format(value, form)

    auc = number(found.auc, ".2f")
    if found.auc is not None:
        auc += f" [{number(found.auc_low, '.2f')}, {number(found.auc_high, '.2f')}]"
    if found.own_rate == 1:
        auc = "not asked: the champion drew them all"
    rows = [
        ["drawn by the champion itself", format(found.own_rate, ".0%")],
        ["effective share (ESS/n)", number(found.ess)],
        ["  with weights per token", number(found.ess_per_token)],
        ["  with clipped weights", number(found.ess_clipped)],
        ["overlap of the two writers", number(found.overlap)],
        ["told apart from its own (AUC)", auc],
        ["MMD, p-value", "not asked" if found.own_rate == 1 else number(found.mmd_p_value)],
        ["log-prob a token, nats", number(found.mean_logprob, ".2f")],
    ]
    table([f"{found.num_pairs} pairs looked at", "figure"], rows)
    if found.embedder:
        say(f"Embeddings: {found.embedder}. Furthest: {found.furthest[0].pair_id}")


def _show_prompts(moved: PromptDrift | None) -> None:
    if moved is None:
        say("Prompts, this window against the last: unknown, fewer than ten different ones in one")
        return
    say(
        f"Prompts, {moved.num_newest} newest against {moved.num_before} before: "
        f"AUC {moved.auc:.2f} [{moved.auc_low:.2f}, {moved.auc_high:.2f}], "
        f"MMD p-value {moved.mmd_p_value:.3f}"
    )
