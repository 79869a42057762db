"""Writes the two pages that repeat the code: `config.md` from the settings, `cli.md` from the help.

    python docs/generate.py        (or: make docs)

The pages are functions of the code alone, so the same code gives the same bytes, and
`tests/test_docs.py` fails while a page on disk differs from what the code says.
"""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trueup.cli.main import cli
from trueup.project import Config

__all__ = ["PAGES", "cli_page", "commands", "config_page", "settings"]

HELP_WIDTH = 100
NOTICE = "<!-- Written by docs/generate.py. Do not edit: change {source}, then run `make docs`. -->"


# --- the settings -------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One key of `trueup.toml`, by its full name."""

    name: str
    info: FieldInfo


def settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[Setting]:
    """Every setting, sections opened up, in the order of the loop: `model.base`, …"""
    for name, info in model.model_fields.items():
        section = _section(info)
        if section:
            yield from settings(section, f"{prefix}{name}.")
        else:
            yield Setting(prefix + name, info)


def config_page() -> str:
    """`config.md`: a table a section."""
    parts = [
        NOTICE.format(source="the docstrings in src/trueup/*/config.py"),
        "# Settings",
        "A project is a folder with a `trueup.toml`. Every setting has a default, so an empty file "
        "is a valid one; a key that does not exist is an error that names the nearest one that "
        "does. `--set section.key=value` before the command overrides a setting once; "
        "`trueup status --json` shows the settings in force.",
    ]
    seen: dict[type[BaseModel], str] = {}
    for path, section in _sections(Config):
        parts.append(f"## `[{path}]`")
        if section in seen:
            parts.append(f"The same settings as [`[{seen[section]}]`](#{_anchor(seen[section])}).")
            parts.append(_table(path, section))
            continue
        seen[section] = path
        parts.append(_text(section.__doc__))
        parts.append(_table(path, section))
    return "\n\n".join(parts) + "\n"


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, info in model.model_fields.items():
        section = _section(info)
        if section:
            yield prefix + name, section
            yield from _sections(section, f"{prefix}{name}.")
        elif rows := _rows_of(info):
            yield f"[{prefix}{name}]", rows


def _table(path: str, section: type[BaseModel]) -> str:
    rows = ["| Setting | Type | Default | Range | Meaning |", "|---|---|---|---|---|"]
    for name, info in section.model_fields.items():
        if _section(info):
            continue
        cells = (
            f"`{path.strip('[]')}.{name}`",
            _type(info.annotation),
            _default(info),
            _range(info),
            _text(info.description),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _section(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _rows_of(info: FieldInfo) -> type[BaseModel] | None:
    """What a list of tables is made of, `[[serve.keys]]`."""
    first = next(iter(get_args(info.annotation)), None)
    if get_origin(info.annotation) is not tuple or not isinstance(first, type):
        return None
    return first if issubclass(first, BaseModel) else None


def _type(annotation: Any) -> str:
    """The type as TOML has it."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [_type(one) for one in get_args(annotation) if one is not type(None)]
        return " or ".join(kinds)
    if get_origin(annotation) is Literal:
        return " or ".join(f'`"{one}"`' for one in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_type(get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return "table of numbers"
    return {bool: "boolean", int: "integer", float: "number", str: "text"}[annotation]


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    return "unset" if info.default is None else f"`{_toml(info.default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e-3 else str(value)


SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _range(info: FieldInfo) -> str:
    """What pydantic holds the value to, or nothing."""
    limits = [
        f"{sign} {getattr(rule, name):g}"
        for rule in info.metadata
        for name, sign in SIGNS.items()
        if getattr(rule, name, None) is not None
    ]
    fewest = next((n for rule in info.metadata if (n := getattr(rule, "min_length", None))), None)
    return ", ".join(limits) or ("not empty" if fewest else "")


def _text(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def _anchor(path: str) -> str:
    return path.replace(".", "").strip("[]")


# --- the commands -------------------------------------------------------------------------------


def commands(
    command: click.Command = cli, name: str = "trueup", parent: click.Context | None = None
) -> Iterator[click.Context]:
    """A context for every command and subcommand, in the order of the loop; `command_path` is what
    one types."""
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=HELP_WIDTH,
        **command.context_settings,
    )
    yield context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None, f"{child} is listed and not there"
            yield from commands(found, child, context)


def cli_page() -> str:
    """`cli.md`: every command's own help."""
    parts = [
        NOTICE.format(source="the docstrings in src/trueup/cli/"),
        "# Commands",
        "Options of `trueup` itself stand before the command, as in "
        "`trueup --project my-assistant run`. Results go to stdout, progress bars and errors to "
        "stderr; `--json` prints the result as JSON. Exit codes: 0 done (a turn that waits for "
        "more pairs is done, too), 1 your or the data's fault, 2 usage, 3 a gate said no, 130 "
        "stopped by Ctrl-C.",
    ]
    for context in commands():
        depth = "#" * (context.command_path.count(" ") + 2)
        parts.append(f"{depth} `{context.command_path}`")
        parts.append(f"```text\n{_help(context)}\n```")
    return "\n\n".join(parts) + "\n"


def _help(context: click.Context) -> str:
    lines = context.command.get_help(context).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


PAGES = {"config.md": config_page, "cli.md": cli_page}


def main() -> None:
    """Write the pages beside this file."""
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
