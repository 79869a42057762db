"""Public benchmarks as gold items, told by their fields.

    question, answer with `#### n`                 GSM8K      Cobbe et al. 2021, arXiv:2110.14168
    task_id, prompt, entry_point, test             HumanEval  Chen et al. 2021, arXiv:2107.03374
    prompt, instruction_id_list, kwargs            IFEval     Zhou et al. 2023, arXiv:2311.07911
    question, choices or options, answer           multiple choice (MMLU, ARC and their kin)
    id, prompt, checker                            trueup's own

All are asked without examples, as a chat: figures compare with other zero-shot chat runs and not
with those of few-shot completion.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trueup.errors import GoldSetError
from trueup.evaluate import checkers
from trueup.evaluate.gold import GoldItem, unique
from trueup.records import content_hash
from trueup.suite import read_rows

__all__ = ["FORMATS", "Format", "GoldSet", "read_set", "sampled"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class GoldSet(NamedTuple):
    """A file of items, all of one format."""

    name: str
    format: str
    items: Sequence[GoldItem]
    total: int
    """Items of the file; `items` may be a sample of them."""


class Format(NamedTuple):
    name: str
    fits: Callable[[dict[str, Any]], bool]
    """Of the first row, by its fields."""
    item: Callable[[dict[str, Any]], GoldItem]


def read_set(path: Path) -> GoldSet:
    """The items of a benchmark or of a gold set of one's own; `.gz` files too.

    Raises:
        GoldSetError: the file cannot be read, its format is none of FORMATS, or a line is
            malformed.
        ModuleNotFoundError: an instruction on languages needs the extra `ifeval`.
    """
    found: list[Format] = []
    rows = read_rows(
        path,
        lambda raw: _item(raw, path, found),
        file="gold set",
        row=f"row of {path.name}",
        form="the same fields as in the first line",
        setting="evaluate.gold",
        error=GoldSetError,
    )
    items = unique(path, rows)
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return GoldSet(name, found[0].name, items, len(items))


def sampled(gold: GoldSet, limit: int | None) -> GoldSet:
    """At most `limit` items, in the file's order: the same ones on every call, whatever the file's
    order, and a larger sample holds the smaller."""
    if limit is None or limit >= len(gold.items):
        return gold
    drawn = sorted(gold.items, key=lambda item: content_hash(["sample", item.id, item.prompt]))
    chosen = {item.id for item in drawn[:limit]}
    return gold._replace(items=[item for item in gold.items if item.id in chosen])


def _item(raw: Any, path: Path, found: list[Format]) -> GoldItem:
    """A row as an item; the first row decides the format of all."""
    if not found:
        found.append(_format_of(raw, path))
    try:
        item = found[0].item(raw)
    except (KeyError, IndexError, TypeError, StopIteration) as problem:
        raise AttributeError(problem) from problem  # read_rows names the line
    checkers.validate(item.checker)
    return item


def _format_of(raw: Any, path: Path) -> Format:
    fields = set(raw) if isinstance(raw, dict) else set()
    for one in FORMATS:
        if fields and one.fits(raw):
            return one
    raise GoldSetError(
        f"{path} has no format that is known",
        got=sorted(fields) or raw,
        expected="; ".join(f"{f.name}: {', '.join(NEEDS[f.name])}" for f in FORMATS),
        next='write its rows as {"id": …, "prompt": …, "checker": {"type": …}}',
    )


# --- one function a format ------------------------------------------------------------------------


def own(raw: dict[str, Any]) -> GoldItem:
    return GoldItem.model_validate(raw)


def gsm8k(raw: dict[str, Any]) -> GoldItem:
    """The last number of the answer counts. Slices: how many steps the solution takes."""
    steps, _, answer = raw["answer"].rpartition("####")
    size = max(1, len([line for line in steps.splitlines() if line.strip()]))
    return GoldItem(
        id=str(raw.get("id") or f"gsm8k-{content_hash(raw['question'])[:8]}"),
        slice="1-2 steps" if size <= 2 else "3-4 steps" if size <= 4 else "5 steps or more",
        prompt=f"{raw['question']}\n\nSolve it step by step. End with the answer as a number on "
        "a line of its own.",
        checker={"type": "numeric", "answer": _number(answer)},
    )


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "").strip())
    except ValueError as problem:
        raise TypeError(problem) from problem


def humaneval(raw: dict[str, Any]) -> GoldItem:
    """The function is asked for in a code block; its imports and helpers are there already."""
    return GoldItem(
        id=str(raw["task_id"]),
        prompt="Complete this Python function. Answer with the whole function in one code block."
        f"\n\n```python\n{raw['prompt'].strip()}\n```",
        checker={
            "type": "unit_test",
            "entry_point": raw["entry_point"],
            "given": raw["prompt"],
            "test": raw["test"],
        },
    )


def ifeval(raw: dict[str, Any]) -> GoldItem:
    """Asked as it stands. Slices: how many instructions; each kind is counted on its own, too."""
    count = len(raw["instruction_id_list"])
    return GoldItem(
        id=str(raw.get("key") or f"ifeval-{content_hash(raw['prompt'])[:8]}"),
        slice="1 instruction" if count == 1 else f"{count} instructions",
        prompt=raw["prompt"],
        checker={
            "type": "ifeval",
            "instruction_id_list": raw["instruction_id_list"],
            "kwargs": raw["kwargs"],
        },
    )


def multiple_choice(raw: dict[str, Any]) -> GoldItem:
    """Lettered options. The answer is an index from 0, a letter or label, or an option's text."""
    options = raw["choices"] if "choices" in raw else raw["options"]
    labels = None
    if isinstance(options, dict):  # ARC: {"text": […], "label": […]}
        options, labels = options["text"], [str(one) for one in options["label"]]
    texts = [str(one) for one in options]
    right = _right(next(raw[name] for name in ANSWERS if name in raw), texts, labels)
    lines = [f"{LETTERS[i]}) {text}" for i, text in enumerate(texts)]
    return GoldItem(
        id=str(raw.get("id") or f"choice-{content_hash([raw['question'], texts])[:8]}"),
        slice=str(raw.get("subject") or raw.get("category") or "all"),
        prompt="\n".join([raw["question"], *lines, "", "Answer with the letter alone."]),
        checker={
            "type": "choice",
            "choices": list(LETTERS[: len(texts)]),
            "answer": LETTERS[right],
        },
    )


def _right(answer: Any, texts: list[str], labels: list[str] | None) -> int:
    """The index of the right option.

    Raises:
        TypeError: the answer names none, or more than one.
    """
    if type(answer) is int and 0 <= answer < len(texts) and labels is None:
        return answer
    readings = (labels or [], texts, [] if labels else list(LETTERS[: len(texts)]))
    found = {i for names in readings for i, name in enumerate(names) if name == str(answer)}
    if len(found) != 1:
        raise TypeError(f"{answer!r} is {'more than one' if found else 'no'} option")
    return found.pop()


ANSWERS = ("answer", "answerKey", "label")
NEEDS = {
    "trueup": ("id", "prompt", "checker"),
    "ifeval": ("prompt", "instruction_id_list", "kwargs"),
    "humaneval": ("task_id", "prompt", "entry_point", "test"),
    "gsm8k": ("question", "answer with '####'"),
    "multiple choice": ("question", "choices or options", "answer"),
}

FORMATS = (
    Format("trueup", lambda raw: {"prompt", "checker"} <= set(raw), own),
    Format("ifeval", lambda raw: {"prompt", "instruction_id_list"} <= set(raw), ifeval),
    Format("humaneval", lambda raw: {"prompt", "entry_point", "test"} <= set(raw), humaneval),
    Format("gsm8k", lambda raw: "question" in raw and "####" in str(raw.get("answer", "")), gsm8k),
    Format(
        "multiple choice",
        lambda raw: (
            "question" in raw
            and bool({"choices", "options"} & set(raw))
            and bool(set(ANSWERS) & set(raw))
        ),
        multiple_choice,
    ),
)
