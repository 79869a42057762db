"""Held-out prompts: what a candidate is tried on and never trained on.

One JSON object a line: `messages`, and for the facts scorer `facts` (each a list of accepted
spellings) and `answerable`. A line may name its `stratum`. It may say `split`; only `heldout` lines
are read from a file that has both sides.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from trueup.errors import DataError
from trueup.records import Messages, Value

__all__ = ["SuitePrompt", "read_rows", "read_suite"]

T = TypeVar("T")


class SuitePrompt(Value):
    """One held-out prompt, and what a right answer contains."""

    id: str = ""
    messages: Messages = Field(min_length=1)
    facts: tuple[tuple[str, ...], ...] = ()
    answerable: bool = True
    stratum: str = ""
    """The topic it was drawn from, where the suite was filled topic by topic."""


def read_suite(
    path: Path, *, split: str = "heldout", setting: str = "ab.prompts"
) -> list[SuitePrompt]:
    """The prompts of a file, in its order.

    Args:
        setting: what names the file in trueup.toml, for messages.

    Raises:
        DataError: the file is missing, a line is malformed, or no line is of the split.
    """
    prompts: dict[Messages, SuitePrompt] = {}
    for where, prompt in read_rows(
        path,
        lambda raw: _prompt(raw, split),
        file="held-out prompts" if split == "heldout" else "prompts",
        row="prompt",
        form='{"messages": [{"role": …, "content": …}], "facts": [[…]]}',
        setting=setting,
    ):
        if prompt.messages in prompts:
            raise DataError(
                f"{where} repeats a prompt, which would count its evidence twice",
                got=prompt.messages[-1].content[:80],
                expected="every prompt once",
                next="delete one of the lines",
            )
        prompts[prompt.messages] = prompt
    if not prompts:
        raise DataError(
            f"{path} holds no prompt of the split",
            got=split,
            expected="at least one",
            next=f"mark some lines, or name another file in {setting}",
        )
    return list(prompts.values())


def _prompt(raw: Any, split: str) -> SuitePrompt | None:
    """A line's prompt; None where it is of another split."""
    if raw.get("split", split) != split:
        return None
    known = {key: raw[key] for key in SuitePrompt.model_fields if key in raw}
    return SuitePrompt.model_validate(known)


def read_rows(
    path: Path,
    parse: Callable[[Any], T | None],
    *,
    file: str,
    row: str,
    form: str,
    setting: str,
    error: type[DataError] = DataError,
) -> Iterator[tuple[str, T]]:
    """What `parse` makes of each line of a JSONL file, and where that stands (`FILE, line 3`).
    A file that ends in `.gz` is unpacked.

    Args:
        file: what the file is, for messages; `row` is one line of it, `form` how a line looks.
        setting: what names the file in trueup.toml.

    Raises:
        DataError, or `error`: the file cannot be read, or a line is malformed.
    """
    try:
        # not splitlines: JSON may hold U+2028, which is no line end in JSONL
        lines = _text_of(path).split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as problem:
        raise error(
            f"The {file} {path} cannot be read",
            got=str(problem),
            expected="a JSONL file",
            next=f"set {setting} in trueup.toml",
        ) from problem
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            parsed = parse(json.loads(line))
        except (json.JSONDecodeError, AttributeError, ValidationError, RecursionError) as problem:
            raise error(
                f"{where} is not a {row}", got=line[:80], expected=form, next="mend that line"
            ) from problem
        if parsed is not None:
            yield where, parsed


def _text_of(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
