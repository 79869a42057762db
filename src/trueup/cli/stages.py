"""The stages from labels to a checkpoint, each a command."""

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import get_args

import click

from trueup.cli.output import bars, emit, json_option, say
from trueup.cli.project import open_project
from trueup.cli.summary import show_online, show_reward
from trueup.config import validate
from trueup.errors import DataError
from trueup.project import Project
from trueup.records import Dataset, Label, PreferencePair
from trueup.train.config import ONLINE, Allowed, Method, TrainConfig

__all__ = ["label", "pair", "train"]


class MethodChoice(click.Choice[str]):
    """A training method, typed with dashes or, as in the settings, with underscores."""

    def __init__(self) -> None:
        super().__init__([name.replace("_", "-") for name in get_args(Method)])

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(value.replace("_", "-"), param, ctx).replace("-", "_")


@click.command()
@json_option
@click.pass_context
def label(ctx: click.Context, as_json: bool) -> None:
    """Draw rivals to each flagged answer; a judge ranks them, or people are asked to."""
    from trueup import label as stage

    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        labels = stage.run(project.store, project.config.label, project.champion())
    if as_json:
        emit({"labels": len(labels), "annotators": sorted({one.annotator for one in labels})})
    else:
        say(f"{len(labels):,} labels written. Next: trueup pair")
        if project.config.label.judge == stage.PEOPLE:
            found = stage.weigh(project.store, project.config.label)
            say(
                f"{len(found.waiting):,} tasks wait for people, {len(found.unsettled):,} for "
                "another look. See trueup tasks"
            )


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
@click.option("--limit", type=click.IntRange(min=1), help="Train on the first N records of it.")
@click.option(
    "--method",
    type=MethodChoice(),
    help="How the policy learns. [default: train.method in trueup.toml]",
)
@click.option(
    "--reward", help="What scores the answers of an online method. [default: train.online.reward]"
)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(get_args(Allowed)),
    help="Let a finding of the linter pass; repeatable.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show the exact tokens that would carry loss, and what would be skipped; train nothing.",
)
@json_option
@click.pass_context
def train(
    ctx: click.Context,
    source: str | None,
    limit: int | None,
    method: str | None,
    reward: str | None,
    allow: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a candidate from the champion. It serves only after 'trueup promote'."""
    from trueup import train as stage
    from trueup.loop import held_out
    from trueup.train.workers import Workers

    project = open_project(ctx)
    workers = Workers()
    is_first = workers.rank == 0
    config = validate(
        TrainConfig,
        project.config.train.model_dump()
        | ({"method": method} if method else {})
        | {"allow": (*project.config.train.allow, *allow)}
        | _online(project.config.train, reward),
        source="command line",
    )
    began = datetime.now(UTC).isoformat(timespec="microseconds")
    lock = project.store.exclusive() if is_first else nullcontext()
    with lock, bars(hidden=as_json or not is_first):
        _check_reward(project, config)
        dataset = workers.alone(lambda: _asked(project, source, limit, config))
        if dry_run:
            show = _show_prompts if config.method in ONLINE else _show_tokens
            workers.alone(lambda: show(project, dataset, config, as_json))
            return
        if is_first and config.method not in ONLINE:
            warn_of_shift(project, dataset, config)
        checkpoint = stage.run(
            project.store,
            config,
            dataset,
            project.champion(),
            is_held_out=held_out(project, required=False).contains,
        )
        workers.end()
    if not is_first:
        return
    if as_json:
        emit({"dataset": dataset, "checkpoint": checkpoint})
        return
    if checkpoint.created_at < began:
        click.echo(
            f"Trained on {checkpoint.created_at[:16]}Z already: the same data, settings and "
            "champion give the same checkpoint. A reward function that changed needs another name.",
            err=True,
        )
    say(f"{checkpoint.id} in {project.store.folder / checkpoint.path}")
    if config.method == "reward":
        show_reward(checkpoint.metrics)
        return
    if config.method in ONLINE:
        show_online(checkpoint.metrics)
        say("Next: trueup guard, evaluate, ab, promote")
        return
    first, last = checkpoint.metrics["first"], checkpoint.metrics["last"]
    moved = last.get("chosen_logps_change")
    say(
        f"{checkpoint.metrics['num_pairs']} records, loss {first['loss']:.4f} -> {last['loss']:.4f}"
        + (f", chosen log-prob {moved:+.1f} nats" if moved is not None else "")
    )
    if checkpoint.metrics["stopped"]:
        say(f"Stopped early: {checkpoint.metrics['stopped']}")
    say("Next: trueup guard, evaluate, ab, promote (or 'trueup run' for all of them)")


def warn_of_shift(project: Project, dataset: Dataset, config: TrainConfig) -> None:
    """Say on stderr where pairs are not such as the champion writes, and what to do about it."""
    from trueup import shift
    from trueup.loop import shift_of

    if config.weighting == "wpo" or not dataset.pair_ids:
        return
    pairs = project.store.get_all(PreferencePair, dataset.pair_ids)
    warned = shift.warning(shift_of(project, pairs), project.config.shift)
    if warned:
        click.echo(f"warning: {warned}", err=True)
        for line in shift.advice(dataset.id):
            click.echo(f"  instead: {line}", err=True)


def _online(config: TrainConfig, reward: str | None) -> dict[str, object]:
    """The settings of online methods, with the reward that the command line names."""
    return {"online": config.online.model_dump() | {"reward": reward}} if reward else {}


def _check_reward(project: Project, config: TrainConfig) -> None:
    """What rewards must not promote: this shows before anything is drawn, where there is a suite
    to promote by."""
    from trueup import ab, loop
    from trueup.judges import resolve

    settings = project.config.ab
    teachers = loop.scored_by(project.store, config)
    if teachers and (project.folder / settings.prompts).is_file():
        scorer = resolve(settings.scorer, endpoint=settings.endpoint, suite=project.suite)
        ab.check_scorer(scorer, teachers)


def _asked(project: Project, source: str | None, limit: int | None, config: TrainConfig) -> Dataset:
    """What to train on: the data set that the same command was killed on, or one made now."""
    from trueup import train as stage

    is_online = config.method in ONLINE
    if source is None and not (is_online and config.online.prompts):
        name = _named("traffic" if is_online else "command line", limit)
        stopped = stage.unfinished(project.store, config, project.champion(), source=name)
        if stopped:
            click.echo(
                f"Going on with the data set of {stopped.created_at[:16]}Z that this was stopped "
                "on; what came in since waits for the next.",
                err=True,
            )
            return stopped
    return (_prompts if is_online else _dataset)(project, source, limit, config)


def _named(source: str, limit: int | None) -> str:
    return source if limit is None else f"{source}[:{limit}]"


def _prompts(
    project: Project, source: str | None, limit: int | None, config: TrainConfig
) -> Dataset:
    """A data set of prompts to answer: of the file or data set that is named, or the traffic's."""
    from trueup import pair as stage
    from trueup.loop import held_out
    from trueup.suite import read_suite

    store, away, named = project.store, held_out(project, required=False), config.online.prompts
    if source is None and not named:
        found = stage.traffic_prompts(store, away)
        picked = list(found.items())[:limit]
        ids = [interaction for _, interaction in picked]
        prompts = [prompt for prompt, _ in picked]
        source = _named("traffic", limit)
        return stage.freeze_prompts(store, prompts, source=source, interaction_ids=ids)
    if source is None:
        rows = read_suite(project.folder / named, split="train", setting="train.online.prompts")
        return stage.freeze_prompts(
            store, [row.messages for row in rows][:limit], source=f"file:{named}"
        )
    dataset = _dataset(project, source, limit, config)
    pairs = store.get_all(PreferencePair, dataset.pair_ids)
    labels = store.get_all(Label, dataset.label_ids)
    prompts = [*dataset.prompts, *(one.prompt for one in (*pairs, *labels))]
    return stage.freeze_prompts(store, prompts[:limit], source=dataset.source)


def _show_tokens(project: Project, dataset: Dataset, config: TrainConfig, as_json: bool) -> None:
    """What the linter sees; refuses what training would refuse."""
    from trueup.cli.lint_text import lint_text
    from trueup.loop import held_out
    from trueup.train.gather import look, records_of

    is_held_out = held_out(project, required=False).contains
    records = records_of(project.store, config, dataset, is_held_out)
    found = look(project.store, config, project.champion(), records)
    emit(found) if as_json else say(lint_text(found))
    found.stop()


def _show_prompts(project: Project, dataset: Dataset, config: TrainConfig, as_json: bool) -> None:
    """What an online run would answer, and how often."""
    from trueup.loop import held_out
    from trueup.train.online.fit import num_steps
    from trueup.train.online.prompts import prompts_of, sides

    is_held_out = held_out(project, required=False).contains
    prompts, skipped = prompts_of(project.store, config, dataset, project.backbone, is_held_out)
    ours, measured_on = sides(prompts, config.eval_share)
    plan = {
        "prompts": len(ours),
        "held_out": len(measured_on),
        "skipped": dict(skipped),
        "batches": num_steps(len(ours), config),
        "prompts_per_batch": min(config.online.prompts_per_step, len(ours)),
        "answers_per_prompt": config.online.num_samples,
    }
    if as_json:
        emit(plan)
        return
    say(
        f"{plan['prompts']} prompts to answer, {plan['held_out']} held out; {plan['batches']} "
        f"batches of {plan['prompts_per_batch']} prompts with {plan['answers_per_prompt']} answers"
    )
    for reason, count in skipped.items():
        say(f"{count} prompts skipped: {reason}")


def _dataset(
    project: Project, source: str | None, limit: int | None, config: TrainConfig
) -> Dataset:
    """The data set the command line names; a file is imported and frozen first."""
    from pathlib import Path

    from trueup import pair as stage
    from trueup.capture.importer import import_file
    from trueup.loop import held_out

    store = project.store
    if source and source.startswith("dataset_"):
        dataset = store.get(Dataset, source)
        if limit is None:
            return dataset
        pairs = store.get_all(PreferencePair, dataset.pair_ids)
        labels = store.get_all(Label, dataset.label_ids)
        return stage.freeze(
            store, pairs[:limit], labels=labels[:limit], source=_named(dataset.source, limit)
        )
    name = "command line"
    if source:
        name = f"file:{import_file(store, Path(source), scrub=project.scrub).file}"
    away = held_out(project, required=False)
    skipped = stage.run(store, project.config.pair, away)
    pairs = pairs_of(project, name) if source else stage.new_pairs(store)
    singles = (
        stage.unpaired(store, away, source=name if source else None)
        if config.method in ("kto", "sft")
        else []
    )
    if not pairs and not singles:
        raise DataError(
            "There is nothing to train on",
            got=source or "no new pairs",
            expected="rows with a chosen and a rejected answer"
            + (", or with one rated answer" if config.method in ("kto", "sft") else ""),
            next="trueup import, label or pair first"
            + ("" if config.method in ("kto", "sft") else "; single ratings need --method kto"),
        )
    return stage.freeze(
        store, pairs[:limit], labels=singles[:limit], source=_named(name, limit), skipped=skipped
    )


def pairs_of(project: Project, source: str) -> list[PreferencePair]:
    """The pairs that come from one imported file, in the file's order."""
    labels = {one.id for one in project.store.each(Label, source=source)}
    return [p for p in project.store.each(PreferencePair) if labels.issuperset(p.label_ids)]
