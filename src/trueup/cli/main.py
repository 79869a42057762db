"""The terminal door: parse, call the library function of the same name, print.

Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 the user's or the data's fault,
2 usage, 3 a gate said no, 130 stopped by Ctrl-C.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import click

from trueup import __version__
from trueup.errors import MissingDependency, TrueupError
from trueup.judges.usage import Usage, counted

__all__ = ["cli", "main"]

COMMANDS = {
    "init": "project",
    "model": "model",
    "serve": "doors",
    "key": "key",
    "import": "doors",
    "embed": "vectors",
    "search": "vectors",
    "duplicates": "vectors",
    "topics": "vectors",
    "flag": "flag",
    "label": "stages",
    "review": "review",
    "tasks": "tasks",
    "annotators": "tasks",
    "label-studio": "label_studio",
    "pair": "stages",
    "shift": "shift",
    "train": "stages",
    "rounds": "rounds",
    "best-of-n": "rounds",
    "guard": "gates",
    "evaluate": "gates",
    "ceiling": "ceiling",
    "suite": "suite",
    "ab": "gates",
    "promote": "gates",
    "rollback": "gates",
    "approve": "evidence",
    "ledger": "evidence",
    "plan": "evidence",
    "run": "turn",
    "report": "turn",
    "status": "project",
    "erase": "privacy",
    "audit-trail": "privacy",
    "judge": "judge",
    "drill": "drill",
    "quickstart": "quickstart",
}
"""Every command and the module it lives in, in the order of the loop. Modules load when used."""

EXTRAS = {
    **dict.fromkeys(("starlette", "uvicorn"), "gateway"),
    **dict.fromkeys(("fastapi", "python_multipart"), "review"),
    **dict.fromkeys(
        ("torch", "transformers", "peft", "safetensors", "gguf", "huggingface_hub"), "train"
    ),
    **dict.fromkeys(("lancedb", "lance", "pyarrow"), "vectors"),
    **dict.fromkeys(("pgvector", "psycopg"), "postgres"),
    "py3langid": "ifeval",
    "lm_eval": "lm-eval",
}
"""Packages that come with an extra, by import name."""


class LoopOrder(click.Group):
    """Commands in loop order, each module imported only when its command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = COMMANDS.get(cmd_name)
        if home is None:
            return None
        name = {"import": "import_"}.get(cmd_name, cmd_name.replace("-", "_"))
        return getattr(importlib.import_module(f"trueup.cli.{home}"), name)


@click.group(
    cls=LoopOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--project",
    "-p",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default="here",
    help="Folder with trueup.toml.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override a setting once; repeatable.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks of expected errors.")
@click.version_option(__version__)
@click.pass_context
def cli(ctx: click.Context, project: Path, overrides: tuple[str, ...], debug: bool) -> None:
    """Keep a deployed language model aligned.

    capture -> flag -> label -> pair -> train -> guard -> evaluate -> ab -> promote. 'trueup run'
    makes one turn of it all; every stage is also a command of its own. Exit codes: 0 done, 1 your
    or the data's fault, 2 usage, 3 a gate said no.
    """
    ctx.obj = {"folder": project, "overrides": overrides, "debug": debug}


def main(args: list[str] | None = None) -> None:
    """Run the terminal program; the only place that turns errors into exit codes."""
    words = sys.argv[1:] if args is None else args
    usage = Usage()
    try:
        with counted() as usage:
            result: Any = cli.main(args=words, prog_name="trueup", standalone_mode=False)
    except click.exceptions.Exit as stop:
        result = stop.exit_code
    except click.ClickException as error:
        error.show()
        result = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nStopped. What was written is kept; run the same command to go on.", err=True)
        result = 130
    except TrueupError as error:
        if "--debug" in words:
            raise
        _tell(error)
        result = 1
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None or "--debug" in words:
            raise
        _tell(missing(f"'{error.name}' is not installed", extra))
        result = 1
    if usage.num_requests or usage.num_cached:
        click.echo(usage.text(), err=True)
    sys.exit(result if isinstance(result, int) else 0)


def missing(what: str, extra: str) -> MissingDependency:
    """The error for a part whose extra is not installed."""
    return MissingDependency(
        what, expected=f"the extra '{extra}'", next=f"pip install 'trueup[{extra}]'"
    )


def _tell(error: TrueupError) -> None:
    """Two lines: what was wrong, and what to do next."""
    message = str(error)
    what, _, hint = message.partition(" Next: ")
    click.secho(f"error: {what}", err=True, fg="red")
    if hint:
        click.echo(f"  next: {hint}", err=True)
