"""Gold items: questions with answers a program can check."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trueup.errors import GoldSetError
from trueup.evaluate import checkers
from trueup.records import Message, Messages, Value
from trueup.suite import read_rows

__all__ = ["GoldItem", "read_gold", "unique"]


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
    rows = read_rows(
        path,
        _checked,
        file="gold set",
        row="gold item",
        form='{"id": …, "prompt": …, "checker": {"type": …}}',
        setting="evaluate.gold",
        error=GoldSetError,
    )
    return unique(path, rows)


def _checked(raw: Any) -> GoldItem:
    item = GoldItem.model_validate(raw)
    checkers.validate(item.checker)
    return item


def unique(path: Path, rows: Iterable[tuple[str, GoldItem]]) -> list[GoldItem]:
    """The items, each question once.

    Raises:
        GoldSetError: an id or a question stands twice, or there is none at all.
    """
    items: dict[str, GoldItem] = {}
    asked: set[str] = set()
    for where, item in rows:
        if item.id in items:
            raise GoldSetError(
                f"{where} repeats an id",
                got=item.id,
                expected="unique ids",
                next="rename one of them",
            )
        if item.prompt in asked:
            raise GoldSetError(
                f"{where} repeats a question, which would count its answer twice",
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
