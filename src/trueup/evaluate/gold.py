"""Gold items: questions with answers a program can check."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trueup.errors import GoldSetError
from trueup.evaluate import checkers
from trueup.records import Message, Messages, Value

__all__ = ["GoldItem", "read_gold"]


class GoldItem(Value):
    """One question, the slice it belongs to, and how its answer is checked."""

    id: str
    slice: str = "all"
    prompt: str
    checker: dict[str, Any]
    pass_rate: float | None = None
    """How often the first champion passed when sampled; what the set was chosen by."""

    @property
    def messages(self) -> Messages:
        return (Message(role="user", content=self.prompt),)


def read_gold(path: Path) -> Sequence[GoldItem]:
    """The items of a gold file.

    Raises:
        GoldSetError: the file is missing, a line is malformed, a checker is not known, or an id
            stands twice.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise GoldSetError(
            f"The gold set {path} cannot be read",
            got=error.strerror,
            expected="a JSONL file",
            next="set evaluate.gold in trueup.toml",
        ) from error
    items: dict[str, GoldItem] = {}
    for number, line in enumerate(lines, start=1):
        try:
            item = GoldItem.model_validate(json.loads(line))
        except (json.JSONDecodeError, ValidationError) as error:
            raise GoldSetError(
                f"{path}, line {number} is not a gold item",
                got=line[:80],
                expected='{"id": …, "prompt": …, "checker": {"type": …}}',
                next="mend that line",
            ) from error
        checkers.validate(item.checker)
        if item.id in items:
            raise GoldSetError(
                f"{path}, line {number} repeats an id",
                got=item.id,
                expected="unique ids",
                next="rename one of them",
            )
        items[item.id] = item
    return list(items.values())
