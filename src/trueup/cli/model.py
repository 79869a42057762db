"""`trueup model pull`: fetch a base model once."""

import click

from trueup.cli.output import emit, json_option, say

__all__ = ["model"]


@click.group()
def model() -> None:
    """Base models: fetch one, or list what can be fetched by name."""


@model.command("pull")
@click.argument("name")
@json_option
def pull_(name: str, as_json: bool) -> None:
    """Fetch NAME (catalogue name or hub repository) and keep it as safetensors."""
    from trueup.models import pull
    from trueup.models.backbone import base_weights

    folder = pull(name)
    weights = base_weights(folder)
    if as_json:
        emit({"name": name, "folder": str(folder), "weights": weights})
    else:
        say(f"{name} is in {folder} ({weights}). Next: set model.base in trueup.toml")


@model.command("list")
@json_option
def list_(as_json: bool) -> None:
    """The catalogue, and what is here already."""
    from trueup.models import CATALOG, home

    here = (
        {p.name for p in (home() / "models").glob("*")} if (home() / "models").is_dir() else set()
    )
    rows = [{"name": name, "pulled": name in here} for name in CATALOG]
    if as_json:
        emit(rows)
    else:
        for row in rows:
            say(f"{'*' if row['pulled'] else ' '} {row['name']}")
        say("(* is here already.) Next: trueup model pull NAME")
