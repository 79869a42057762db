"""`trueup key`: an API key for the gateway. The secret is shown once and kept nowhere."""

import json

import click

from trueup.cli.output import emit, json_option, say
from trueup.gateway.config import SCOPES

__all__ = ["key"]


@click.command()
@click.argument("name")
@click.option("--tenant", help="Written into every interaction that comes with the key.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What it may do; repeatable. [default: chat, embeddings, feedback]",
)
@json_option
def key(name: str, tenant: str | None, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make an API key called NAME for the gateway: the secret, and its lines for trueup.toml.

    The secret is shown once and kept nowhere; the settings hold its SHA-256 alone.
    """
    from trueup.gateway.keys import digest, new_secret

    secret = new_secret()
    table = {
        "name": name,
        **({"tenant": tenant} if tenant else {}),
        "scopes": list(scopes or ("chat", "embeddings", "feedback")),
        "sha256": digest(secret),
    }
    if as_json:
        emit({"secret": secret, "settings": table})
        return
    click.echo("[[serve.keys]]")
    for setting, value in table.items():  # JSON's strings and lists are TOML's
        click.echo(f"{setting} = {json.dumps(value, ensure_ascii=False)}")
    say(f"The key, shown this once: {secret}")
    say("Next: put the lines above into trueup.toml, and give the key to whoever it is for")
