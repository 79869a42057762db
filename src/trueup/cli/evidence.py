"""What promotions rest on: the ledger of tests, approvals by people, and labels still wanted."""

from typing import Any

import click

from trueup import ab, promote, stats
from trueup.cli.output import emit, json_option, say, table
from trueup.cli.project import open_project
from trueup.errors import DataError, RecordNotFound
from trueup.project import Project
from trueup.records import ABReport, Release

__all__ = ["approve", "ledger", "plan"]


@click.command()
@click.option("--by", required=True, help="Who approves, for the record.")
@click.option("--release", "release_id", metavar="ID", help="[default: the one that serves]")
@click.option("--note", default="", help="Why, for the record.")
@json_option
@click.pass_context
def approve(ctx: click.Context, by: str, release_id: str | None, note: str, as_json: bool) -> None:
    """Sign a release: later candidates are held against it, too."""
    project = open_project(ctx)
    with project.store.exclusive():
        signed = promote.approve(project.store, by, release_id=release_id, note=note)
    if as_json:
        emit(signed)
    else:
        say(f"{signed.weights} is approved by {signed.approved_by}. Next: trueup status")


@click.command()
@json_option
@click.pass_context
def ledger(ctx: click.Context, as_json: bool) -> None:
    """Every A/B test in order, what each had to show, and how releases stand beside the first."""
    project = open_project(ctx)
    rows = ab.ledger_rows(project.store)
    strengths = _strengths(project)
    if as_json:
        emit(
            {
                "fdr": project.config.ab.fdr,
                "rule": project.config.ab.ledger,
                "tests": [row._asdict() for row in rows],
                "releases": strengths,
            }
        )
        return
    if not rows:
        say("No A/B test has spoken yet. Next: trueup run")
        return
    table(
        ["test", "when", "candidate", "e-value", "needed", "verdict", "budget left"],
        [
            [
                f"{row.place}",
                row.created_at[:10],
                (row.candidate or "unknown")[-10:],
                _number(row.evidence),
                _number(row.needed) + _mark(row),
                "promoted" if row.is_promoted else row.status,
                f"{row.budget_left:.0%}",
            ]
            for row in rows
        ],
    )
    if any(map(_mark, rows)):
        say("* the records of today call for another level than the gate had")
    if strengths:
        say("")
        table(
            ["release", "win rate against the first", "95 % interval"],
            [
                [
                    weights[-10:],
                    f"{one['win_rate']['estimate']:.1%}",
                    f"[{one['win_rate']['low']:.1%}, {one['win_rate']['high']:.1%}]",
                ]
                for weights, one in strengths.items()
            ],
        )
    say("Next: trueup report")


def _mark(row: ab.LedgerRow) -> str:
    """A star where a replay does not give the level that the gate had."""
    return "*" if row.is_replayed is False else ""


def _strengths(project: Project) -> dict[str, Any]:
    """Each released set of weights beside the first, by all contests of the newest scorer."""
    releases = project.store.all(Release)
    newest = project.store.last(ABReport)
    if not releases or newest is None:
        return {}
    found = promote.chain(project.store, newest.scorer, releases[0].weights)
    served = dict.fromkeys(r.weights for r in releases)
    return {
        weights: {name: getattr(found[weights], name)._asdict() for name in ("logit", "win_rate")}
        for weights in served
        if weights in found
    }


@click.command()
@click.option(
    "--within",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.03,
    show_default=True,
    help="Half the width of the 95 % interval that is wanted; 0.03 is 3 points.",
)
@click.option("--report", "report_id", metavar="ID", help="An A/B report. [default: the newest]")
@click.option(
    "--agreement",
    type=click.FloatRange(0.5, 1),
    help="How often the scorer agrees with people, where there are too few labels to tell.",
)
@json_option
@click.pass_context
def plan(
    ctx: click.Context, within: float, report_id: str | None, agreement: float | None, as_json: bool
) -> None:
    """How many more human labels would pin down the win rate by people's measure."""
    project = open_project(ctx)
    store = project.store
    report = store.get(ABReport, report_id) if report_id else store.last(ABReport)
    if report is None:
        raise RecordNotFound(
            "There is no A/B report yet", expected="a contest to label", next="trueup ab"
        )
    view = ab.human_view(store, report)
    found = stats.plan_labels(
        within,
        num_human=view.num_human,
        num_judge=view.num_scorer,
        human_sd=_spread(view),
        correlation=_correlation(view, agreement),
    )
    if as_json:
        emit({"report": report.id, "within": within, "plan": found._asdict(), **_told(view)})
        return
    rate = view.win_rate
    if rate:
        say(
            f"By people's measure the candidate wins {rate.mean.estimate:.1%} "
            f"[{rate.mean.low:.1%}, {rate.mean.high:.1%}]: {view.num_human:,} human labels, worth "
            f"{rate.multiplier:.2f} times as many with the scorer's {view.num_scorer:,}"
        )
    say(
        f"{found.more:,} more human labels bring the interval to ±{found.half_width:.1%} "
        f"({found.more_without_judge:,} without the scorer)"
    )
    if found.num_new:
        say(f"{found.num_new:,} of them on answers to prompts that the suite has not yet: add some")
    say("Next: label answers of the report, drawn at random, and 'trueup import' them")


FEWEST = 20
"""Labels from which a correlation is worth more than a guess."""


def _spread(view: ab.HumanView) -> float:
    """People's standard deviation; the most that a win rate can have while it is unknown."""
    known = view.num_human >= FEWEST and view.human_sd
    return view.human_sd if known and view.human_sd else 0.5


def _correlation(view: ab.HumanView, agreement: float | None) -> float:
    """Measured, or 2 a - 1 of an assumed agreement a.

    Raises:
        DataError: too few labels to measure it, and nothing assumed.
    """
    if agreement is not None:
        return 2 * agreement - 1
    if view.num_human < FEWEST or view.correlation is None:
        raise DataError(
            "Too few human labels of this contest to tell how far the scorer agrees with people",
            got=view.num_human,
            expected=f"at least {FEWEST}, not all alike",
            next="assume a rate with --agreement 0.8",
        )
    return max(view.correlation, 0.0)


def _told(view: ab.HumanView) -> dict[str, Any]:
    rate = view.win_rate
    return {
        "num_human": view.num_human,
        "num_scorer": view.num_scorer,
        "correlation": view.correlation,
        "win_rate": rate and rate.mean._asdict(),
        "multiplier": rate and rate.multiplier,
    }


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
