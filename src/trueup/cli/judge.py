"""`trueup judge`: is a judge fit to label, and one of known faults to try a loop with."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trueup.cli.output import bars, emit, exit_code, json_option, say, table, verdict_text
from trueup.errors import ConfigError

if TYPE_CHECKING:
    from trueup.records import AuditCheck, JudgeAudit

__all__ = ["judge"]

RATE = click.FloatRange(0, 1)


@click.group()
def judge() -> None:
    """Audit a judge, or serve one of known faults."""


@judge.command()
@click.option(
    "--accuracy", type=RATE, default=0.9, show_default=True, help="How often a verdict is true."
)
@click.option(
    "--position-bias",
    type=RATE,
    default=0.0,
    show_default=True,
    help="How often it says A whatever stands there.",
)
@click.option(
    "--key", default="house-style", show_default=True, help="The judge that knows the truth."
)
@click.option("--seed", default=0, show_default=True, help="Other verdicts at the same rates.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8500,
    show_default=True,
    help="Port; 0 takes a free one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the base URL as one line of JSON.")
def serve(
    accuracy: float, position_bias: float, key: str, seed: int, host: str, port: int, as_json: bool
) -> None:
    """Serve a scripted judge, OpenAI-compatible, until Ctrl-C."""
    from trueup.judges import scripted

    def announce(base_url: str) -> None:
        if as_json:  # one line, so that a program can wait for it
            click.echo(json.dumps({"base_url": base_url}))
            return
        say(
            f"A scripted judge at {base_url}: accuracy {accuracy:g}, position bias "
            f"{position_bias:g}, truth by {key} (Ctrl-C stops)"
        )
        say(f"Next: trueup --set label.judge=llm --set label.endpoint.base_url={base_url} label")

    config = scripted.ScriptedJudge(accuracy, position_bias, key, seed=seed)
    scripted.serve(config, host, port, on_start=announce)


FILE = click.Path(dir_okay=False, path_type=Path)


@judge.command()
@click.option("--human", type=FILE, help="Rows that people judged, JSONL.")
@click.option("--verdicts", type=FILE, help="A judge's verdicts on them; nobody is asked.")
@click.option("--judge", "name", help="Who is asked. [default: label.judge in trueup.toml]")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="The first N rows. [default: all of a file of verdicts, 200 where a judge is asked]",
)
@click.option("--own-model", default="", help="The judge's own model, as the rows name it.")
@click.option("--fresh", is_flag=True, help="Ask again what is known from before.")
@json_option
@click.pass_context
def audit(
    ctx: click.Context,
    human: Path | None,
    verdicts: Path | None,
    name: str | None,
    limit: int | None,
    own_model: str,
    fresh: bool,
    as_json: bool,
) -> None:
    """Is a judge fit to label? Exit code 3 if not.

    With --human and --verdicts it compares two files. Without --verdicts it asks the judge: 60
    built-in questions and the rows of --human, each in both orders, and writes the audit down.
    """
    page = None
    if verdicts:
        found = _of_files(ctx, human, verdicts, limit, own_model)
    else:
        found = _asked(ctx, human, name, limit or 200, own_model, fresh, as_json)
        page = _page(ctx, found)
    emit(_data(found) | {"report": page}) if as_json else _show(found, page)
    ctx.exit(exit_code(found.verdict))


def _of_files(
    ctx: click.Context, human: Path | None, verdicts: Path, limit: int | None, own_model: str
) -> "JudgeAudit":
    from trueup.cli.project import open_project
    from trueup.judges import audit as audits
    from trueup.judges.config import AuditConfig
    from trueup.judges.people import read_people, read_verdicts

    if human is None:
        raise ConfigError(
            "A judge's verdicts are compared with people's",
            got="--verdicts without --human",
            expected="both files",
            next="name the rows that people judged with --human",
        )
    # two files can be compared anywhere; in a project its own lines hold
    in_project = (ctx.obj["folder"] / "trueup.toml").is_file()
    config = open_project(ctx).config.label.audit if in_project else AuditConfig()
    rows = read_people(human)[:limit]
    said = read_verdicts(verdicts, rows)
    return audits.audit_file(
        rows, said, config, source=f"file:{verdicts.name}", own_model=own_model
    )


def _asked(
    ctx: click.Context,
    human: Path | None,
    name: str | None,
    limit: int,
    own_model: str,
    fresh: bool,
    as_json: bool,
) -> "JudgeAudit":
    from trueup.cli.project import open_project
    from trueup.judges import audit as audits
    from trueup.judges import resolve
    from trueup.judges.people import read_people

    project = open_project(ctx)
    settings, store = project.config.label, project.store
    memory = None if fresh else store
    judge = resolve(name or settings.judge, endpoint=settings.endpoint, memory=memory)
    rows = read_people(human)[:limit] if human else []
    source = f"file:{human.name}" if human else audits.BUILT_IN
    with bars(hidden=as_json):
        return audits.run(store, judge, settings.audit, rows, source=source, own_model=own_model)


def _data(found: "JudgeAudit") -> dict[str, object]:
    return {
        **found.model_dump(mode="json", exclude={"details", "config"}),
        **found.details,
        "config": found.config,
    }


def _page(ctx: click.Context, found: "JudgeAudit") -> str:
    """The audit's page in the project's store."""
    from trueup.cli.project import open_project
    from trueup.web import write_audit

    return str(write_audit(open_project(ctx).store, found))


def _show(found: "JudgeAudit", page: str | None) -> None:
    people, judged = found.details.get("human_human"), found.details.get("judge_human")
    if people and judged:
        rows = [
            [f"annotators {a} and {b}", _number(one["agreement"]), _number(one["kappa"])]
            for one in people["pairs"]
            for a, b in [one["annotators"]]
        ]
        means = [people["mean_agreement"], people["mean_kappa"]]
        rows.append(["people, mean", *("unknown" if m is None else f"{m:.3f}" for m in means)])
        sides = judged["without_ties"]
        rows.append(
            ["judge and most people", _number(judged["agreement"]), _number(judged["kappa"])]
        )
        rows.append(["the same, ties aside", _number(sides["agreement"]), _number(sides["kappa"])])
        table(["agreement", "rate", "kappa"], rows)
        say("")
    table(["check", "figure", "95 %", "line", "outcome"], [_row(one) for one in found.checks])
    say(f"{found.judge}  {verdict_text(found.verdict)}")
    if page:
        say(f"Report: {page}")
    passed = "Next: trueup label" if found.verdict.passed else "Next: name another in label.judge"
    say(passed)


def _row(check: "AuditCheck") -> list[str]:
    limits = "" if check.low is None else f"[{check.low:.3f}, {check.high:.3f}]"
    figure = "" if check.figure is None else f"{check.figure:.3f}"
    return [check.name, figure, limits, f"{check.threshold:.2f}", check.status]


def _number(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "unknown"
    return f"{interval['estimate']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
