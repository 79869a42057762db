"""A page from its data: everything escaped, nothing loaded, whole or absent.

Whatever a model or a user wrote is escaped, shown with its control characters made visible, and
cut where it is long; a page loads nothing and runs nothing. Beside it stand the same figures as
JSON.
"""

import json
import math
import os
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from trueup.errors import ConfigError, StorageError
from trueup.web import plots, rows

__all__ = ["excerpt", "plain", "write_page"]

SHOWN_CHARS = 600  # of a text, before it folds
MOST_CHARS = 4000  # of a text, unfolded; the rest is counted, not shown

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They reorder what stands around them, so that a page can say the opposite of its text."""


def write_page(
    page: Path,
    template: str,
    data: Mapping[str, Any],
    otherwise: str,
    again: str = "the same command",
) -> Path:
    """Fill a template and write it, and its data as JSON beside it.

    Each file is whole or absent, also after kill -9; the same data give the same bytes.

    Args:
        data: plain values, see `plain`.
        otherwise: what to say where it cannot be written, with `{page}`.
        again: what writes it then.

    Returns:
        Where the page is.

    Raises:
        ConfigError: the page's name is the one of its JSON.
        StorageError: it cannot be written there.
    """
    twin = page.with_suffix(".json")
    if twin == page:
        raise ConfigError(
            "The page would overwrite its own JSON twin", got=str(page), expected="a name in .html"
        )
    html = _template(template).render(data, twin=twin.name).lstrip()
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(twin, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        _write_whole(page, html)
    except OSError as error:
        raise StorageError(
            otherwise.format(page=page),
            got=error.strerror,
            expected="a writable folder with free space",
            next=f"free some space, then {again}",
        ) from error
    return page


def excerpt(text: object) -> dict[str, Any]:
    """The start of a text, what follows it when unfolded, and its whole length."""
    text = str(text or "")
    start = len(text) if len(text) <= 1.25 * SHOWN_CHARS else _break(text, SHOWN_CHARS)
    return {"text": text[:start], "more": text[start:MOST_CHARS], "chars": len(text)}


def _break(text: str, limit: int) -> int:
    """A place at or shortly before `limit` that does not cut a word, if there is one."""
    space = max(text.rfind(mark, limit - 60, limit) for mark in " \n")
    return limit if space < 0 else space + 1


def plain(value: Any) -> Any:
    """JSON values only: text made visible, tuples as lists, numbers that are none as None."""
    if isinstance(value, str):
        return _visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_visible(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(one) for one in value]
    return value


def _visible(text: str) -> str:
    """Control characters as pictures, and what reorders text by its number."""
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_picture, text))


def _picture(char: str) -> str:
    if char in "\n\t":
        return char
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))
    # Cs: half a surrogate pair, which no file can hold
    if char in BIDI or unicodedata.category(char) in ("Cc", "Cs"):
        return f"⟨U+{ord(char):04X}⟩"
    return char


def _write_whole(path: Path, text: str) -> None:
    """A file of its own beside the target, then a rename: readers see the old page or the new."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)  # mkstemp makes it private; a report is for the team
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trueup.web"),
        autoescape=True,  # for every file, whatever its ending
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["draw"] = plots
    environment.filters |= {name: getattr(rows, name) for name in rows.__all__}
    environment.filters["figure"] = plots.figure
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return environment.get_template(name)
