"""`trueup flag`: score new traffic, and see what the scores are worth."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trueup.cli.output import bars, emit, json_option, say, table
from trueup.cli.project import open_project
from trueup.flag.config import FlagConfig
from trueup.models.config import EmbedderConfig

if TYPE_CHECKING:
    from trueup.flag.trial import Comparison, Span, Trial

__all__ = ["flag"]

SMALL = ("smollm2-135m-instruct-q4", "smollm2-135m-instruct")
"""Models whose perplexity is asked where no other is named: the first that is here."""


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
    share, labelled, drawn = stage.weak_share(project.store)
    if as_json:
        more: dict[str, object] = {"notes": dict(flags.notes)} if flags.notes else {}
        if drawn:
            told = share._asdict() if share else None
            more["weak_share"] = {"share": told, "labelled": labelled, "drawn": drawn}
        emit({"examined": len(flags), "raised": raised, **more})
        return
    if drawn:
        told = f"{share.estimate:.1%} [{share.low:.1%}, {share.high:.1%}]" if share else "unknown"
        say(f"Weak answers in all traffic: {told}, by {labelled:,} labels of {drawn:,} drawn")
    for why, count in flags.notes.items():
        say(f"{count:,} {why}")
    say(f"{len(flags):,} interactions examined, {raised:,} flagged. Next: trueup label")


@flag.command("eval")
@click.option(
    "--data",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Answers of which somebody said whether they are weak, JSONL.",
)
@click.option(
    "--label-key",
    default="hallucination",
    show_default=True,
    help="The field that says so: yes or no, true or false, 1 or 0.",
)
@click.option("--folds", type=click.IntRange(2, 20), default=5, show_default=True)
@click.option("--limit", type=click.IntRange(min=20), help="Only the first N rows.")
@click.option("--seed", default=0, show_default=True, help="Other folds, other resamples.")
@click.option("--model", help="Whose perplexity is asked. [default: a small one that is here]")
@click.option("--no-model", is_flag=True, help="Ask none; perplexity and its signals are left out.")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page, too.")
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    data: Path,
    label_key: str,
    folds: int,
    limit: int | None,
    seed: int,
    model: str | None,
    no_model: bool,
    page: Path | None,
    as_json: bool,
) -> None:
    """Measure every flagger on labelled answers, by cross-validation; needs no project.

    AUROC and AUPRC with 95 % intervals, beside the baselines length, perplexity and random; and the
    learned flagger against the best single one, paired, whichever way it comes out.
    """
    from trueup.flag.features import vectors
    from trueup.flag.labelled import read_labelled
    from trueup.flag.rating import ANSWER_TOKENS, rate
    from trueup.flag.remembered import Remembered
    from trueup.flag.trial import cross_validate
    from trueup.models.catalog import folder_of, home
    from trueup.models.embedder import resolve_embedder

    rows = read_labelled(data, label_key=label_key, limit=limit)
    answers = [row.interaction for row in rows]
    in_project = (ctx.obj["folder"] / "trueup.toml").is_file()
    settings = open_project(ctx).config if in_project else None
    embedder = resolve_embedder(
        settings.embedder if settings else EmbedderConfig(), relative_to=ctx.obj["folder"]
    )
    remembered = Remembered(home() / "flag.sqlite")
    named = None if no_model else model or _installed()
    with bars(hidden=as_json and not sys.stderr.isatty()):
        placed = vectors(answers, embedder, remembered)
        ratings = [None] * len(rows)
        if named:
            from trueup.models.backbone import Backbone

            backbone = Backbone.load(folder_of(named), dtype="fastest")
            ratings = rate(answers, backbone, remembered)
        found = cross_validate(
            rows,
            settings.flag if settings else FlagConfig(),
            ratings=ratings,
            vectors_ND=placed,
            model=f"{named}, first {ANSWER_TOKENS} tokens of an answer" if named else "",
            embedder=embedder.id,
            num_folds=folds,
            seed=seed,
        )
    if page:
        from trueup.web import write_trial

        write_trial(page, found, source=data.name)
    if as_json:
        told = found.model_dump(mode="json", exclude={"flaggers": {"__all__": {"curve"}}})
        emit(told)
        return
    _show(found, asked_none=no_model)
    if page:
        say(f"Page: {page}")


@flag.command()
@json_option
@click.pass_context
def train(ctx: click.Context, as_json: bool) -> None:
    """Learn the project's own flagger from its labels and thumbs.

    It is calibrated, kept as JSON under a name made of its contents, and used by 'trueup flag' from
    then on, unless it is worse than the one in use.
    """
    from trueup import flag as stage

    project = open_project(ctx)
    with project.store.exclusive(), bars(hidden=as_json):
        done = stage.train(project.store, project.config.flag, project.embedder)
    made = done.learned
    if as_json:
        emit(
            {
                "weak": done.weak,
                "fine": done.fine,
                "flagger": made.id if made else None,
                "recipe": made.recipe if made else None,
                "figures": made.figures if made else {},
                "used": done.is_used,
                "reason": done.reason,
                "auprc_difference": done.difference and done.difference._asdict(),
            }
        )
        return
    if made is None:
        say(f"Nothing learned: {done.reason}. Next: trueup label")
        return
    told = made.figures
    say(f"{made.id}: {made.recipe}, from {done.weak:,} weak and {done.fine:,} fine answers")
    base = done.weak / (done.weak + done.fine)
    say(f"Out of fold: AUPRC {told['auprc']:.3f}, {base:.3f} by chance")
    say(
        f"Brier {told['brier_before']:.4f} before calibration, {told['brier_after']:.4f} after; "
        f"ECE {told['ece_before']:.3f}, {told['ece_after']:.3f}"
    )
    if done.difference:
        gap = done.difference
        say(f"AUPRC less the last one's: {gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]")
    say("In use. Next: trueup flag" if done.is_used else f"Not used: {done.reason}")


def _installed() -> str | None:
    """The first small model that was pulled before."""
    from trueup.errors import ModelError
    from trueup.models.catalog import folder_of

    for name in SMALL:
        try:
            folder_of(name)
            return name
        except ModelError:
            continue
    return None


def _show(found: "Trial", *, asked_none: bool) -> None:
    ordered = sorted(found.flaggers, key=lambda one: (one.kind != "baseline", -one.auroc.estimate))
    table(
        ["flagger", "AUROC", "95 %", "AUPRC", "95 %"],
        [
            [
                one.name,
                f"{one.auroc.estimate:.3f}",
                _range(one.auroc),
                f"{one.auprc.estimate:.3f}",
                _range(one.auprc),
            ]
            for one in ordered
        ],
    )
    say(
        f"{found.rows:,} answers to {found.prompts:,} prompts, {found.weak:,} weak: "
        f"AUPRC by chance {found.base_rate:.3f}"
    )
    say(
        f"{found.folds} folds, {found.resamples:,} resamples of prompts. Learned: {_recipes(found)}"
    )
    gap = found.comparison
    say(f"Learned less best single ({', '.join(sorted(set(gap.chosen)))}):")
    say(f"  AUROC {_signed(gap.auroc)}, AUPRC {_signed(gap.auprc)}. {_verdict(gap)}")
    calibrated = found.calibration
    say(
        f"Chances: Brier {calibrated.brier_before:.4f} before calibration, "
        f"{calibrated.brier_after:.4f} after ({calibrated.brier_of_base_rate:.4f} by base rate); "
        f"ECE {calibrated.ece_before:.3f}, {calibrated.ece_after:.3f}"
    )
    for why in dict.fromkeys(found.left_out.values()):
        say(f"Left out, {why}:")
        say("  " + ", ".join(name for name, reason in found.left_out.items() if reason == why))
    if found.model:
        say(f"Log-probs: {found.model}")
    elif asked_none:
        say("Log-probs: none asked (--no-model), so no perplexity")
    else:
        say(f"Log-probs: no model here, so no perplexity. Next: trueup model pull {SMALL[0]}")


def _recipes(found: "Trial") -> str:
    return "; ".join(sorted(set(found.recipes)))


def _range(span: "Span") -> str:
    return f"{span.low:.3f} to {span.high:.3f}"


def _signed(span: "Span") -> str:
    return f"{span.estimate:+.3f} [{span.low:+.3f}, {span.high:+.3f}]"


def _verdict(gap: "Comparison") -> str:
    """What the interval of the difference allows to be said."""
    if gap.auprc.low > 0:
        return "Better."
    return "Worse." if gap.auprc.high < 0 else "No difference shown."
