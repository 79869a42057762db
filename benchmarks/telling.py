"""Tables as text for the terminal and as Markdown for the docs."""

import textwrap
from collections.abc import Sequence

__all__ = ["listed", "markdown_table", "some", "text_table"]

Rows = Sequence[Sequence[str]]


def text_table(header: Sequence[str], rows: Rows) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    )


def markdown_table(header: Sequence[str], rows: Rows) -> str:
    """As `text_table`, the first column as code."""
    aligned = ["---", *["---:"] * (len(header) - 1)]
    marked = [[f"`{row[0]}`", *row[1:]] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, aligned, *marked])


def listed(notes: Sequence[str], width: int) -> str:
    """One paragraph a note, hanging."""
    filled = (textwrap.fill(n, width, initial_indent="- ", subsequent_indent="  ") for n in notes)
    return "\n".join(filled)


def some(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
