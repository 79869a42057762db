"""`trueup erase` and `trueup audit-trail`: people's data, taken away on request, and the proof."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import click

from trueup.cli.output import emit, json_option, say, table
from trueup.cli.project import open_project
from trueup.errors import DataError
from trueup.privacy import erase as erasing
from trueup.privacy import trail

__all__ = ["audit_trail", "erase"]


class Age(click.ParamType):
    """`90d`, `12h` or a number of days, as days."""

    name = "age"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([dhw]?)", str(value))
        if not found or not float(found[1]):
            self.fail(f"{value!r} is no age: write 90d, 12h or 8w", param, ctx)
        return float(found[1]) * {"": 1, "d": 1, "h": 1 / 24, "w": 7}[found[2]]


@click.command()
@click.option("--user", metavar="ID", help="The user's id, as requests carry it.")
@click.option("--tenant", metavar="NAME", help="Only this tenant's traffic.  [default: all]")
@click.option("--older-than", type=Age(), metavar="AGE", help="Traffic by age: 90d, 12h, 8w.")
@click.option("--resume", is_flag=True, help="Only finish what was stopped half-way.")
@click.option("--dry-run", is_flag=True, help="Say what would go; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def erase(
    ctx: click.Context,
    user: str | None,
    tenant: str | None,
    older_than: float | None,
    resume: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove a user's traffic, or old traffic, with all that was made of it, bytes and all.

    Lineage keeps the ids. Models that were trained on it are listed: what weights have learned,
    only other weights forget.
    """
    if sum((user is not None, older_than is not None, resume)) != 1:
        raise click.UsageError("name one of --user, --older-than and --resume")
    if tenant is not None and user is None:
        raise click.UsageError("--tenant goes with --user")
    if resume and dry_run:
        raise click.UsageError("--resume finishes what was begun; it cannot be tried")
    project = open_project(ctx)
    with nullcontext() if dry_run else project.store.exclusive():
        if resume:
            num = erasing.resume(project.store, project.forget)
            emit({"finished": num}) if as_json else say(f"{num} erasures finished")
            return

        def run(dry: bool) -> erasing.Erasure:
            if user is not None:
                return erasing.erase_user(
                    project.store, user, tenant=tenant, dry_run=dry, forget=project.forget
                )
            assert older_than is not None
            return erasing.erase_older(
                project.store, older_than, dry_run=dry, forget=project.forget
            )

        _confirmed(run, dry_run=dry_run, yes=yes, as_json=as_json)
        done = run(dry_run)
    _tell(done, dry_run=dry_run, as_json=as_json)


def _confirmed(
    run: Callable[[bool], erasing.Erasure], *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Ask a person who sits there; a program has to say --yes.

    Raises:
        click.Abort: the person said no.
    """
    if dry_run or yes:
        return
    if as_json:
        raise click.UsageError("--json without --dry-run needs --yes: there is nobody to ask")
    would = run(True).removed
    if would:
        what = ", ".join(f"{n:,} {kind}" for kind, n in would.items())
        click.confirm(f"Erase {what}? This cannot be undone", abort=True, err=True)


def _tell(done: erasing.Erasure, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        emit({"dry_run": dry_run, **done._asdict()})
        return
    if not done.removed:
        say("Nothing was found. Next: check the id, as requests carry it")
        return
    table(["would go" if dry_run else "gone", "records"], _rows(done.removed))
    if done.redacted:
        table(["stays, quotes removed", "records"], _rows(done.redacted))
    for name, ids in (
        ("data set that stays without it", done.datasets),
        ("model trained on it", done.checkpoints),
        ("release that served one", done.releases),
    ):
        for one in ids:
            say(f"{name}  {one}")
    if done.checkpoints:
        say("What weights have learned stays in them: train again without it, and promote that.")
    say("Next: trueup audit-trail" if not dry_run else "Next: the same without --dry-run")


def _rows(counts: dict[str, int]) -> list[list[str]]:
    return [[kind, f"{number:,}"] for kind, number in counts.items()]


@click.command("audit-trail")
@json_option
@click.pass_context
def audit_trail(ctx: click.Context, as_json: bool) -> None:
    """Who erased or exported what or changed whose role, and whether the list is whole."""
    project = open_project(ctx)
    lines, broken = trail.entries(project.store), trail.first_broken(project.store)
    if as_json:
        emit(
            {"whole": broken is None, "broken_at": broken, "entries": [e._asdict() for e in lines]}
        )
    else:
        for one in lines:
            details = one.details.items()
            told = ", ".join(
                f"{name} {value}" for name, value in details if value or value is False
            )
            say(f"{one.number:>4}  {one.at[:19]}  {one.who}  {one.action}  {told}")
        if lines and broken is None:
            say(f"Whole. The last hash is {lines[-1].hash}: note it elsewhere, to see a cut end")
        elif not lines:
            say("Nothing was erased or exported yet")
    if broken is not None:
        raise DataError(
            "The audit trail is not what was written",
            got=f"line {broken} missing or changed",
            expected="every line, in order, as it was written",
            next="compare it with a backup of the store",
        )
