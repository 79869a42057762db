"""Answers of which somebody said whether they are weak: a file of them, as interactions."""

from pathlib import Path
from typing import Any, NamedTuple

from trueup.errors import DataError
from trueup.records import Completion, Interaction, Message, Messages
from trueup.suite import read_rows

__all__ = ["Labelled", "read_labelled"]

ASKED = ("user_query", "prompt", "question", "query", "instruction")
ANSWERED = ("chatgpt_response", "response", "answer", "completion", "output")
GIVEN = ("context", "knowledge")
_TRUTH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class Labelled(NamedTuple):
    """An answer, and whether it is weak."""

    interaction: Interaction
    is_weak: bool


def read_labelled(path: Path, *, label_key: str, limit: int | None = None) -> list[Labelled]:
    """The rows of a JSONL file.

    Of each row the prompt, the answer, a context and the label are read, and nothing else: what
    only a labelled row can have, such as where its errors stand, cannot become a feature.

    Args:
        label_key: the field that says whether an answer is weak: yes or no, true or false, 1 or 0.

    Raises:
        DataError: the file cannot be read, a row lacks a part, or a side has no rows.
    """
    rows = read_rows(
        path,
        lambda raw: _row(raw, label_key, path),
        file="labelled answers",
        row=f"labelled answer: it needs a prompt, an answer and '{label_key}'",
        form=f'{{"user_query": …, "chatgpt_response": …, "{label_key}": "yes" or "no"}}',
        setting="--data on the command line, not a setting",
    )
    found = [row for _, row in rows][:limit]
    num_weak = sum(row.is_weak for row in found)
    if min(num_weak, len(found) - num_weak) < 10:
        raise DataError(
            f"{path} has too few rows of a side to learn from and to measure on",
            got=f"{num_weak} weak and {len(found) - num_weak} fine answers",
            expected="ten of each at least",
            next="name a larger file, another --label-key, or a larger --limit",
        )
    return found


def _row(raw: dict[str, Any], label_key: str, path: Path) -> Labelled:
    answer = next((raw[key] for key in ANSWERED if isinstance(raw.get(key), str)), None)
    truth = _TRUTH.get(str(raw.get(label_key)).strip().lower())
    prompt = _prompt(raw)
    if answer is None or truth is None or not prompt:
        raise AttributeError("a part is missing")  # read_rows names the line and the form
    interaction = Interaction(
        prompt=prompt, completion=Completion(text=answer), source=f"file:{path.name}"
    )
    return Labelled(interaction, truth)


def _prompt(raw: dict[str, Any]) -> Messages:
    if isinstance(raw.get("messages"), list):
        return tuple(Message.model_validate(one) for one in raw["messages"])
    asked = next((raw[key] for key in ASKED if isinstance(raw.get(key), str)), None)
    if asked is None:
        return ()
    given = next((raw[key] for key in GIVEN if isinstance(raw.get(key), str)), "")
    content = f"Context: {given}\n\nQuestion: {asked}" if given else asked
    return (Message(role="user", content=content),)
