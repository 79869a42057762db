"""Held-out prompts: what a candidate is tried on and never trained on.

One JSON object a line: `messages`, and for the facts scorer `facts` (each a list of accepted
spellings) and `answerable`. A line may say `split`; only `heldout` lines are read from a file that
has both sides.
"""

import json
from pathlib import Path

from pydantic import Field, ValidationError

from trueup.errors import DataError
from trueup.records import Messages, Value

__all__ = ["SuitePrompt", "read_suite"]


class SuitePrompt(Value):
    """One held-out prompt, and what a right answer contains."""

    id: str = ""
    messages: Messages = Field(min_length=1)
    facts: tuple[tuple[str, ...], ...] = ()
    answerable: bool = True


def read_suite(path: Path, *, split: str = "heldout") -> list[SuitePrompt]:
    """The prompts of a file, in its order.

    Raises:
        DataError: the file is missing, a line is malformed, or no line is of the split.
    """
    try:
        # not splitlines: JSON may hold U+2028, which is no line end in JSONL
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The held-out prompts {path} cannot be read",
            got=str(error),
            expected="a JSONL file",
            next="set ab.prompts in trueup.toml",
        ) from error
    prompts: dict[Messages, SuitePrompt] = {}
    for number, line in enumerate(lines, start=1):
        prompt = _prompt(path, number, line, split) if line.strip() else None
        if prompt is None:
            continue
        if prompt.messages in prompts:
            raise DataError(
                f"{path}, line {number} repeats a prompt, which would count its evidence twice",
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
            next="mark some lines, or name another file in ab.prompts",
        )
    return list(prompts.values())


def _prompt(path: Path, number: int, line: str, split: str) -> SuitePrompt | None:
    """A line's prompt; None where it is of another split."""
    try:
        raw = json.loads(line)
        if raw.get("split", split) != split:
            return None
        known = {key: raw[key] for key in SuitePrompt.model_fields if key in raw}
        return SuitePrompt.model_validate(known)
    except (json.JSONDecodeError, AttributeError, ValidationError) as error:
        raise DataError(
            f"{path}, line {number} is not a prompt",
            got=line[:80],
            expected='{"messages": [{"role": …, "content": …}], "facts": [[…]]}',
            next="mend that line",
        ) from error
