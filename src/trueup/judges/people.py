"""Files of people's verdicts on two answers, and of a judge's verdicts on the same rows.

Two layouts are read, told apart by their keys. The plain one, a JSON object a line:

    {"id": "1", "prompt": "…", "answers": ["…", "…"], "people": [1, 2, 0], "models": ["a", "b"]}
    {"id": "1", "verdict": 1}

and PandaLM's: `idx`, `instruction`, `input`, `response1`, `response2`, `annotator1` … in the one
file, `idx` and a column that ends in `result` in the other. A verdict is 0 (or `tie`), 1 or 2;
anything else a judge's file says is an unreadable verdict, which is counted and not guessed at.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trueup.errors import DataError
from trueup.judges.base import Side
from trueup.records import Message, Messages
from trueup.stats import majority

__all__ = ["JudgedByPeople", "read_people", "read_verdicts"]


class JudgedByPeople(NamedTuple):
    """Two answers to a prompt, and what each annotator said of them; None where one did not."""

    id: str
    prompt: Messages
    answers: tuple[str, str]
    people: tuple[Side | None, ...]
    models: tuple[str, str] | None = None
    """Who wrote the answers, where that is known."""

    @property
    def majority(self) -> Side | None:
        """What most of them said; None for a draw of votes."""
        return majority(self.people)


def read_people(path: Path) -> list[JudgedByPeople]:
    """The rows of a file of people's verdicts.

    Raises:
        DataError: it cannot be read, or a row of it is not of either layout; names the line.
    """
    rows = [_people(row, f"{path.name}, line {line}") for line, row in _lines(path)]
    if not rows:
        raise DataError(f"{path.name} holds no rows", expected=_PEOPLE, next="name another file")
    again = [name for name, times in Counter(one.id for one in rows).items() if times > 1]
    if again:
        raise DataError(
            f"{path.name} holds rows of the same id",
            got=f"{len(again)} ids more than once, the first {again[0]!r}",
            expected="a row an id: verdicts are found by it",
            next="give each row an id of its own",
        )
    widest = max(len(one.people) for one in rows)
    # a column is an annotator: rows with fewer have gaps at the end
    return [one._replace(people=one.people + (None,) * (widest - len(one.people))) for one in rows]


def read_verdicts(path: Path, people: Sequence[JudgedByPeople]) -> list[Side | None]:
    """A judge's verdict on each of these rows, None where its file has none that can be read.

    Raises:
        DataError: the file cannot be read, has no verdicts, or none on these rows.
    """
    found: dict[str, Side | None] = {}
    for line, row in _lines(path):
        name = next((key for key in row if key == "verdict" or key.endswith("result")), None)
        if name is None or not {"id", "idx"} & set(row):
            raise DataError(
                f"{path.name}, line {line}: a row without a verdict",
                got=str(row)[:80],
                expected='{"id": …, "verdict": 0, 1 or 2}, or "idx" and a column "…result"',
                next="mend that line",
            )
        found[_id(row)] = _side(row[name])
    if not found.keys() & {one.id for one in people}:
        raise DataError(
            f"{path.name} has verdicts on none of the rows",
            got=f"ids like {next(iter(found), None)!r}",
            expected=f"ids like {people[0].id!r}",
            next="name the file of verdicts on these very rows",
        )
    return [found.get(one.id) for one in people]


_PEOPLE = (
    '{"id", "prompt", "answers": [two], "people": [0, 1 or 2 each]}, or PandaLM\'s "response1", '
    '"response2", "annotator1" …'
)


def _people(row: dict[str, Any], where: str) -> JudgedByPeople:
    try:
        one = _pandalm(row) if "response1" in row else _plain(row)
        texts = [*one.answers, *(m.content for m in one.prompt)]
        if len(one.answers) != 2 or not all(isinstance(text, str) for text in texts):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{where}: no two answers that people judged",
            got=str(row)[:80],
            expected=_PEOPLE,
            next="mend that line",
        ) from None
    return one


def _plain(row: dict[str, Any]) -> JudgedByPeople:
    asked = row["prompt"]
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    models = row.get("models")
    return JudgedByPeople(
        _id(row),
        tuple(Message.model_validate(m) for m in asked),
        tuple(row["answers"]),
        tuple(None if one is None else _known_side(one) for one in row["people"]),
        (str(models[0]), str(models[1])) if models else None,
    )


def _pandalm(row: dict[str, Any]) -> JudgedByPeople:
    asked = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    names = sorted((key for key in row if re.fullmatch(r"annotator\d+", key)), key=_number)
    return JudgedByPeople(
        _id(row),
        (Message(role="user", content=asked),),
        (_spelled(row["response1"]), _spelled(row["response2"])),
        tuple(None if row[name] is None else _known_side(row[name]) for name in names),
    )


def _spelled(answer: Any) -> Any:
    """PandaLM's file has answers like `true` that some program took for truth values."""
    return str(answer) if isinstance(answer, bool | int | float) else answer


def _number(name: str) -> int:
    return int(name.removeprefix("annotator"))


def _id(row: dict[str, Any]) -> str:
    return str(row["id"] if "id" in row else row["idx"])


def _known_side(said: object) -> Side:
    side = _side(said)
    if side is None:
        raise ValueError(said)
    return side


def _side(said: object) -> Side | None:
    if isinstance(said, float) and said.is_integer():  # a column with gaps, written by a data frame
        said = int(said)
    return {"0": 0, "tie": 0, "1": 1, "2": 2}.get(str(said).strip().lower())


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read", got=str(error), expected="a JSONL file", next="check the name"
        ) from None
    for line, one in enumerate(text.split("\n"), start=1):
        if not one.strip():
            continue
        try:
            row = json.loads(one)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(
                f"{path.name}, line {line}: not a JSON object",
                got=one[:80],
                expected="one object a line",
                next="mend that line",
            )
        yield line, row
