"""`trueup label-studio`: tasks to a Label Studio server, votes back."""

import ipaddress

import click

from trueup.cli.output import emit, json_option, say
from trueup.cli.project import open_project
from trueup.errors import ConfigError

__all__ = ["label_studio"]


@click.group()
def label_studio() -> None:
    """Let people label in Label Studio; its token comes from LABEL_STUDIO_API_KEY."""


@label_studio.command()
@json_option
@click.pass_context
def push(ctx: click.Context, as_json: bool) -> None:
    """Put waiting tasks and gold questions into the project; each once."""
    from trueup.label import label_studio as connector

    project = open_project(ctx)
    config = project.config.label
    done = connector.push(project.store, config, connector.connect(config))
    if as_json:
        emit(done._asdict())
        return
    say(f"{done.new:,} tasks sent, {done.known:,} were there")
    say(f"Label at {config.label_studio.url}/projects/{done.project}/data")
    say("Next: trueup label-studio pull")


@label_studio.command()
@json_option
@click.pass_context
def pull(ctx: click.Context, as_json: bool) -> None:
    """Turn annotations into votes; an edited one is a new vote, a deleted one withdraws its."""
    from trueup.label import label_studio as connector

    project = open_project(ctx)
    config = project.config.label
    done = connector.pull(project.store, connector.connect(config), scrub=project.scrub)
    if as_json:
        emit(done._asdict())
        return
    skipped = ", ".join(f"{n} {why}" for why, n in done.skipped.items())
    say(
        f"{done.seen:,} annotations: {done.new:,} new votes, {done.known:,} known, "
        f"{done.withdrawn:,} withdrawn" + (f", skipped: {skipped}" if skipped else "")
    )
    say("Next: trueup tasks settle")


@label_studio.command()
@json_option
@click.pass_context
def erase(ctx: click.Context, as_json: bool) -> None:
    """Delete the tasks there whose records 'trueup erase' has taken, annotations and all."""
    from trueup.label import label_studio as connector

    project = open_project(ctx)
    num = connector.erase(project.store, connector.connect(project.config.label))
    emit({"deleted": num}) if as_json else say(f"{num:,} erased tasks deleted there")


@label_studio.command("serve-webhook")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8610, show_default=True)
@click.option("--url", help="Where the server reaches this. [default: http://HOST:PORT]")
@click.option("--public", is_flag=True, help="Allow a host beyond loopback.")
@json_option
@click.pass_context
def serve_webhook(
    ctx: click.Context, host: str, port: int, url: str | None, public: bool, as_json: bool
) -> None:
    """Take annotations as they are made. The secret comes from LABEL_STUDIO_WEBHOOK_SECRET."""
    from trueup.label import label_studio as connector
    from trueup.label.webhook import secret_of, serve

    project = open_project(ctx)
    config = project.config.label
    secret = secret_of(config.label_studio)
    if not _is_loopback(host) and not public:
        raise ConfigError(
            "This would listen beyond this machine",
            got=host,
            expected="a loopback address",
            next="put a proxy with TLS in front, or say --public",
        )
    server = connector.connect(config)
    number = server.project()

    def ready(address: str) -> None:
        server.register(number, f"{(url or address).rstrip('/')}/label-studio", secret)
        if as_json:
            emit({"project": number, "address": address})
        else:
            say(f"Taking annotations of project {number} at {address}. Ctrl-C stops.")

    scrub = project.scrub
    serve(project.store, server, number, secret, host=host, port=port, ready=ready, scrub=scrub)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
