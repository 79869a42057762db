"""Does the candidate refuse more than it should, or less?

What a refusal is stands in `judges.refusals`; the patterns undercount, so a rate is to be read
beside the champion's, which is counted the same way.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trueup.errors import DataError
from trueup.guard.answers import Answers
from trueup.judges.refusals import is_refusal
from trueup.records import Message, Messages, Value
from trueup.suite import read_rows

__all__ = ["RefusalPrompt", "is_refusal", "rates", "read_refusal_prompts"]


class RefusalPrompt(Value):
    """A prompt that should be answered, or should not."""

    messages: Messages
    is_unsafe: bool


def rates(answers: Answers) -> list[float]:
    """Share of refusals among the answers to each prompt."""
    return [sum(is_refusal(c.text) for c in group) / len(group) for group in answers]


def read_refusal_prompts(path: Path) -> Sequence[RefusalPrompt]:
    """Safe and unsafe prompts, a JSON object a line with `prompt` and `label`.

    Raises:
        DataError: the file cannot be read, or a label is neither `safe` nor `unsafe`.
    """
    rows = read_rows(
        path,
        _row,
        file="refusal prompts",
        row="safe or unsafe prompt",
        form='{"prompt": …, "label": "safe"}',
        setting="guard.refusal_prompts",
    )
    found = [row for _, row in rows]
    if not found:
        raise DataError(
            f"{path} holds no prompt",
            expected="safe and unsafe prompts",
            next="name another file in guard.refusal_prompts",
        )
    return found


def _row(raw: Any) -> RefusalPrompt:
    label, prompt = raw.get("label"), raw.get("prompt")
    if label not in ("safe", "unsafe") or not isinstance(prompt, str):
        raise json.JSONDecodeError("neither safe nor unsafe", str(raw), 0)
    return RefusalPrompt(
        messages=(Message(role="user", content=prompt),), is_unsafe=label == "unsafe"
    )
