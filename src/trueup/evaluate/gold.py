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
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise GoldSetError(
            f"The gold set {path} cannot be read",
            got=str(error),
            expected="a JSONL file",
            next="set evaluate.gold in trueup.toml",
        ) from error
    items: dict[str, GoldItem] = {}
    asked: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
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
        if item.prompt in asked:
            raise GoldSetError(
                f"{path}, line {number} repeats a question, which would count its answer twice",
                got=item.prompt[:80],
                expected="every question once",
                next="delete one of the lines",
            )
        asked.add(item.prompt)
        items[item.id] = item
    if not items:
        raise GoldSetError(
            f"The gold set {path} is empty",
            expected="at least one item",
            next="add items, or name another file in evaluate.gold",
        )
    return list(items.values())
