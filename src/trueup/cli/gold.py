"""`trueup evaluate --gold` and `--lm-eval`: a model on any gold set, benchmark or task."""

from pathlib import Path

import click

from trueup import loop
from trueup.cli.output import bars, emit, say, table
from trueup.cli.project import open_project
from trueup.evaluate import GoldSet, Measured, Standing, gold_judge, measure, read_set, sampled
from trueup.models.stored import StoredModel, ensure_champion
from trueup.project import Project
from trueup.records import Checkpoint, TrainingRun
from trueup.stats import Interval

__all__ = ["measure_gold", "measure_tasks", "model_named"]

SHOWN = 5


def measure_gold(
    ctx: click.Context, files: tuple[Path, ...], limit: int | None, model: str | None, as_json: bool
) -> None:
    """Measure on each file, one after the other; print each, and write its page, as it is done."""
    from trueup.web import gold_data, write_gold

    project = open_project(ctx)
    sets = [sampled(read_set(file), limit) for file in files]  # all are read before any is asked
    told = []
    for gold in sets:
        with project.store.exclusive(), bars(hidden=as_json):
            found = _measured(project, gold, model)
        if not as_json:
            _show(found)
        page = write_gold(project.store, found)
        told.append(gold_data(found) | {"report": str(page)})
        if not as_json:
            say(f"Report: {page}")
    if as_json:
        emit({"sets": told})


def measure_tasks(
    ctx: click.Context, tasks: list[str], limit: int | None, model: str | None, as_json: bool
) -> None:
    """Tasks of lm-evaluation-harness on one model."""
    from trueup.evaluate.lm_eval_tasks import run_tasks

    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        name, one, _ = model_named(project, model)
        scores = run_tasks(one, tasks, limit=limit)
    if as_json:
        data = [{**score._asdict(), "score": score.score._asdict()} for score in scores]
        emit({"model": name, "weights": one.weights, "tasks": data})
        return
    table(
        [f"{name} {one.weights[:16]}", "metric", "items", "score", "95 %"],
        [
            [
                score.task,
                score.metric,
                str(score.items),
                f"{score.score.estimate:.4g}",
                f"[{score.score.low:.4g}, {score.score.high:.4g}]",
            ]
            for score in scores
        ],
    )


def _measured(project: Project, gold: GoldSet, model: str | None) -> Measured:
    name, one, checkpoint = model_named(project, model)
    taught = loop.taught_by(project.store, checkpoint) if checkpoint else []
    return measure(
        project.store,
        gold,
        one,
        project.champion(),
        max_tokens=project.config.evaluate.max_tokens,
        name=name,
        judge=gold_judge(project.store, project.config.evaluate, gold.items, taught),
    )


def model_named(project: Project, name: str | None) -> tuple[str, StoredModel, Checkpoint | None]:
    """The model of that name; by default the newest candidate, and where there is none the
    champion."""
    ensure_champion(project.store, project.backbone)
    if name == "champion":
        return "champion", project.champion(), None
    if name == "base":
        return "base", project.base(), None
    checkpoint = project.store.get(Checkpoint, name) if name else _newest(project)
    if checkpoint is None:
        return "champion", project.champion(), None
    return "candidate", project.candidate(checkpoint), checkpoint


def _newest(project: Project) -> Checkpoint | None:
    """The newest checkpoint that answers; a reward model does not."""
    for one in reversed(project.store.all(Checkpoint)):
        if project.store.get(TrainingRun, one.run_id).method != "reward":
            return one
    return None


def _show(found: Measured) -> None:
    gold = found.gold
    sample = f"{len(gold.items)} of {gold.total}" if len(gold.items) < gold.total else gold.total
    say(f"{gold.name} ({gold.format}, {sample} items)")
    for one in found.standings:
        table([f"{one.model} {one.weights[:16]}", "items", "accuracy", "95 %"], _rows(one))
        unknown = len(gold.items) - one.checked
        if unknown:
            say(f"{unknown} items could not be checked here and are not counted.")
        if one.cut:
            say(f"{one.cut} answers were cut off by evaluate.max_tokens.")
    if found.paired:
        _show_paired(found)


def _rows(one: Standing) -> list[list[str]]:
    whole = [["all", str(one.checked), *_pair(one.accuracy)]]
    slices = [[f"  {name}", str(n), *_pair(share)] for name, (n, share) in one.slices.items()]
    figures = [[name, "", *_pair(share)] for name, share in one.figures.items()]
    groups = [[f"  {name}", str(n), *_pair(s)] for name, (n, s) in one.instructions.items()]
    return [*whole, *slices, *figures, *groups]


def _pair(share: Interval | None) -> list[str]:
    if share is None:
        return ["unknown", ""]
    return [f"{share.estimate:.1%}", f"[{share.low:.1%}, {share.high:.1%}]"]


def _show_paired(found: Measured) -> None:
    assert found.paired is not None
    name = found.standings[0].model
    changes = [found.paired.whole, *found.paired.slices]
    table(
        [f"{name} minus champion", "difference", "95 %", "lost", "won", "p"],
        [
            [
                one.name if place == 0 else f"  {one.name}",
                f"{one.difference.estimate:+.1%}",
                f"[{one.difference.low:+.1%}, {one.difference.high:+.1%}]",
                str(one.lost),
                str(one.won),
                f"{one.p_value:.3g}",
            ]
            for place, one in enumerate(changes)
        ],
    )
    for one in found.paired.falling:
        say(f"Warning: the slice '{one.name}' falls (p {one.p_fall:.2g}, corrected by Holm).")
    if found.lost:
        more = f" and {len(found.lost) - SHOWN} more" if len(found.lost) > SHOWN else ""
        say(f"Lost: {', '.join(found.lost[:SHOWN])}{more}")
