"""How commands print: JSON for programs, short tables for people, bars on stderr."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from trueup import progress
from trueup.errors import StorageError
from trueup.records import Verdict

__all__ = [
    "EXIT_REFUSED",
    "bars",
    "emit",
    "exit_code",
    "json_option",
    "say",
    "table",
    "verdict_text",
    "write_file",
]

EXIT_REFUSED = 3
_errors = Console(stderr=True)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."
)


def emit(data: Any) -> None:
    """JSON on stdout."""
    click.echo(json.dumps(_plain(data), indent=2, ensure_ascii=False))


def write_file(path: Path, text: str) -> None:
    """What the command was asked to write, its line ends as they are.

    Raises:
        StorageError: it cannot be written there.
    """
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise StorageError(
            f"{path} could not be written",
            got=error.strerror or str(error),
            expected="a file in a writable folder with free space",
            next="name another with --out",
        ) from error


def say(text: str) -> None:
    """A line for people, on stdout."""
    click.echo(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A table that fits 80 columns; the first column is text, the others are figures."""
    drawn = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for place, name in enumerate(columns):
        drawn.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        # Text, not markup: a model may have written "[red]"
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def verdict_text(verdict: Verdict) -> str:
    """`REFUSED by guard: …`"""
    joint = "at" if verdict.status == "pending" else "by"
    return f"{verdict.status.upper()} {joint} {verdict.gate}: {verdict.reason}"


def exit_code(verdict: Verdict) -> int:
    """3 where a gate said no; pending is not an error."""
    return EXIT_REFUSED if verdict.status == "refused" else 0


@contextmanager
def bars(*, hidden: bool = False) -> Iterator[None]:
    """Show every task of the block as a progress bar on stderr."""
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_errors, disable=hidden) as drawn:

        @contextmanager
        def listener(name: str, total: int) -> Iterator[progress.Advance]:
            one = drawn.add_task(name, total=total, visible=total > 0)
            yield lambda steps: drawn.advance(one, steps)
            drawn.update(one, completed=total)

        with progress.listen(listener):
            yield


def _plain(data: Any) -> Any:
    if isinstance(data, BaseModel):
        return data.model_dump(mode="json")
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return data
