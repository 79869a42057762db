"""`trueup review`: the page on which people compare answers, and who may log in there."""

import contextlib
import os

import click

from trueup.cli.output import emit, json_option, say, table
from trueup.cli.project import open_project
from trueup.errors import ConfigError

__all__ = ["review"]

ROLES = ("annotator", "lead", "admin")
PASSWORD = "TRUEUP_REVIEW_PASSWORD"


@click.group(invoke_without_command=True)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one. [default: review.port]"
)
@json_option
@click.pass_context
def review(ctx: click.Context, port: int | None, as_json: bool) -> None:
    """Serve the review page, on which people compare answers, until Ctrl-C."""
    if ctx.invoked_subcommand:
        return
    from trueup.review.people import People
    from trueup.review.serve import listen, serve

    project = open_project(ctx)
    config = project.config.review
    if port is not None:
        config = config.model_copy(update={"port": port})
    listening = listen(project.store, config)
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{listening.getsockname()[1]}"
    if as_json:
        emit({"url": url})
    else:
        say(f"Review at {url} (Ctrl-C stops)")
        if not People(project.store).all():
            say("Nobody can log in yet. Next: trueup review user add NAME --role admin")
    with contextlib.suppress(KeyboardInterrupt):
        serve(project.store, config, listening, label=project.config.label, scrub=project.scrub)


@review.group()
def user() -> None:
    """Who may log in."""


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="annotator", show_default=True)
@json_option
@click.pass_context
def add(ctx: click.Context, name: str, role: str, as_json: bool) -> None:
    """Let NAME in. The password comes from TRUEUP_REVIEW_PASSWORD, or is asked for."""
    from trueup.review.people import People, as_role

    people = People(open_project(ctx).store)
    person = people.add(name, _password(), as_role(role))
    emit(person._asdict()) if as_json else say(f"{name} may log in as {role}.")


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), help="The new role.")
@click.option("--password", "new_password", is_flag=True, help="Give a new password.")
@click.option("--active/--locked", "is_active", default=None, help="Let in again, or lock out.")
@json_option
@click.pass_context
def change(
    ctx: click.Context,
    name: str,
    role: str | None,
    new_password: bool,
    is_active: bool | None,
    as_json: bool,
) -> None:
    """Change the role or password of NAME, or lock them out; their votes stay."""
    from trueup.review.people import People, as_role

    if role is None and not new_password and is_active is None:
        raise ConfigError("Nothing to change", expected="--role, --password, --locked or --active")
    person = People(open_project(ctx).store).change(
        name,
        role=as_role(role) if role else None,
        password=_password() if new_password else None,
        is_active=is_active,
    )
    emit(person._asdict()) if as_json else say(f"{name} is changed, and has to log in again.")


@user.command("list")
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """Everybody who may log in, or once might."""
    from trueup.review.people import People

    people = People(open_project(ctx).store).all()
    if as_json:
        emit([one._asdict() for one in people])
        return
    rows = [
        [one.name, one.role if one.is_active else "locked out", one.created_at[:10]]
        for one in people
    ]
    table(["name", "role", "since"], rows)


def _password() -> str:
    given = os.environ.get(PASSWORD)
    return given or click.prompt("Password", hide_input=True, confirmation_prompt=True)
