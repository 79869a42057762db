"""Tasks and votes as plain files: questions come in, comparisons go out, votes come back.

A file is blind, like the page: the two answers stand in an order drawn for each task, and gold
questions are not told from others. A vote is `1`, `2`, `tie` or `both bad`, as they stand there.
Spreadsheets take a cell that begins with one of `= + - @` for a formula, and a model may write one:
in CSV such a cell is given an apostrophe in front, which is taken off again from what is read.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from trueup.errors import DataError
from trueup.label.tasks import tasks_of
from trueup.label.votes import Choice, VoteBook, choice_of, choice_of_scores, is_swapped, mirrored
from trueup.privacy import Scrub
from trueup.records import Completion, Message, Messages, ReviewTask
from trueup.store import Store

__all__ = ["Taken", "add_tasks", "export_tasks", "export_votes", "import_votes", "read_text"]

FORMULA = "=+-@\t\r\n＝＋－＠"
VIEWER = "file"
COLUMNS = ("task_id", "prompt", "answer_1", "answer_2", "vote", "annotator", "comment")
SAID: dict[str, Choice] = {"1": "first", "2": "second", "tie": "tie", "both bad": "both bad"}
SHOWN = {choice: said for said, choice in SAID.items()}
GOLD = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5), "both bad": (0.0, 0.0)}
MAX_PROBLEMS = 10
MAX_BYTES = 1 << 28
MESSAGES = TypeAdapter(Messages)

Format = Literal["csv", "jsonl"]


class Taken(NamedTuple):
    """What became of a file: `rows` is `new` + `known` + everything skipped."""

    rows: int
    new: int
    known: int
    """Rows that say what is in the store already."""
    skipped: dict[str, int]
    """Rows by the reason they gave nothing, the most frequent first."""
    problems: tuple[str, ...]
    """The first ten skipped rows, `row N: reason`."""


class _Bad(Exception):
    """Why a row gives nothing."""


# --- tasks in -------------------------------------------------------------------------------------


def add_tasks(
    store: Store, text: str, *, name: str, gold: bool = False, scrub: Scrub | None = None
) -> Taken:
    """Questions of a file become review tasks.

    Reads:   JSON lines with `prompt` (text or messages) and `candidates` (two answers); for gold
             questions `gold`, too: `first`, `second`, `tie` or `both bad`. Or `chosen` and
             `rejected` in place of both, which stand in an order drawn by their text.
    Writes:  one ReviewTask a row, all in one transaction.
    Skips:   rows that are no such thing, counted by reason.
    Again:   writes nothing: a question is in the store once.
    """
    tally, tasks = _Tally(), dict[str, ReviewTask]()
    for row in tally.rows(_lines(text)):
        with tally.row():
            task = _task(row, f"file:{name}", gold)
            task = scrub(task) if scrub else task
            tasks[task.id] = task
            tally.good += 1
    new = store.add_all(tasks.values())
    return tally.taken(new)


def _task(row: Any, source: str, is_gold: bool) -> ReviewTask:
    if not isinstance(row, dict):
        raise _Bad("no object")
    prompt = _messages(row.get("prompt"))
    if "chosen" in row or "rejected" in row:
        if not is_gold:
            raise _Bad("has its answer: a gold question")
        answers, scores = _drawn(_answer(row.get("chosen")), _answer(row.get("rejected")))
    else:
        both = row.get("candidates")
        if not isinstance(both, list) or len(both) != 2:
            raise _Bad("no two candidates")
        answers, scores = (_answer(both[0]), _answer(both[1])), _known(row.get("gold"))
        if is_gold != (scores is not None):
            raise _Bad("no gold answer" if is_gold else "has its answer: a gold question")
    if answers[0].strip() == answers[1].strip():
        raise _Bad("two equal answers")
    return ReviewTask(
        prompt=prompt,
        candidates=tuple(Completion(text=one) for one in answers),
        source=source,
        gold=scores,
    )


def _messages(prompt: Any) -> Messages:
    if isinstance(prompt, str) and prompt.strip():
        return (Message(role="user", content=_whole(prompt)),)
    try:
        found = MESSAGES.validate_python(prompt)
    except ValidationError:
        raise _Bad("no prompt") from None
    if not found:
        raise _Bad("no prompt")
    for one in found:
        _whole(one.role + one.content)
    return found


def _answer(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise _Bad("an answer is missing")
    return _whole(text)


def _whole(text: str) -> str:
    """JSON can say half of a surrogate pair; no store or file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Bad("half a character") from None
    return text


def _drawn(chosen: str, rejected: str) -> tuple[tuple[str, str], tuple[float, float]]:
    """The two in an order that a hash of them draws: the right answer must not always be first."""
    coin = hashlib.sha256(f"{chosen}\n{rejected}".encode("utf-8", "surrogatepass")).digest()[0]
    if coin < 128:
        return (chosen, rejected), (1.0, 0.0)
    return (rejected, chosen), (0.0, 1.0)


def _known(gold: Any) -> tuple[float, float] | None:
    if gold is None:
        return None
    if isinstance(gold, str) and gold in GOLD:
        return GOLD[gold]
    if isinstance(gold, list) and len(gold) == 2:
        numbers = [one for one in gold if isinstance(one, int | float) and abs(one) < 1e9]
        if len(numbers) == 2 and choice_of_scores(tuple(map(float, numbers))):
            return float(gold[0]), float(gold[1])
    raise _Bad("unknown gold answer")


# --- tasks and votes out --------------------------------------------------------------------------


def export_tasks(tasks: Iterable[ReviewTask], form: Format, *, annotator: str = "") -> str:
    """Tasks to be voted on outside, a row each, with an empty `vote`."""
    return _written([_shown(one) | {"annotator": annotator} for one in tasks], form)


def export_votes(store: Store, form: Format) -> str:
    """Every vote that counts as one row of the same columns, which `import_votes` reads."""
    votes, rows = VoteBook(store).standing(), []
    for task in tasks_of(store):
        for annotator, one in sorted(votes.get(task.id, {}).items()):
            choice = _turned(choice_of(one) or "tie", task)
            shown = _shown(task) | {"annotator": annotator, "comment": one.comment}
            rows.append(shown | {"vote": SHOWN[choice]})
    return _written(rows, form)


def _shown(task: ReviewTask) -> dict[str, str]:
    answers = [one.text for one in task.candidates]
    if is_swapped(task.id, VIEWER):
        answers.reverse()
    prompt = "\n\n".join(f"{one.role}: {one.content}" for one in task.prompt)
    if len(task.prompt) == 1 and task.prompt[0].role == "user":
        prompt = task.prompt[0].content
    return dict.fromkeys(list[str](COLUMNS), "") | {
        "task_id": task.id,
        "prompt": prompt,
        "answer_1": answers[0],
        "answer_2": answers[1],
    }


def _turned(choice: Choice, task: ReviewTask) -> Choice:
    return mirrored(choice) if is_swapped(task.id, VIEWER) else choice


def _written(rows: list[dict[str, str]], form: Format) -> str:
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    drawn = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(
        drawn, COLUMNS, lineterminator="\r\n", quoting=csv.QUOTE_ALL
    )
    writer.writeheader()
    writer.writerows({name: _guarded(cell) for name, cell in row.items()} for row in rows)
    return drawn.getvalue()


def _guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.lstrip(" '")[:1] in FORMULA and cell.lstrip(" '") else cell


def _bare(cell: str) -> str:
    """What `_guarded` was given."""
    return cell[1:] if cell.startswith("'") and _guarded(cell[1:]) == cell else cell


# --- votes in -------------------------------------------------------------------------------------


def import_votes(
    store: Store,
    text: str,
    *,
    name: str,
    form: Format,
    annotator: str = "",
    scrub: Scrub | None = None,
) -> Taken:
    """Read back the votes of an exported file.

    Reads:   `task_id`, `vote`, `annotator` and `comment`; other columns are left alone.
    Writes:  one vote a row, all in one transaction. A row that says something new for a vote that
             the same file gave before changes that vote; of two rows of one annotator on one task
             the last counts.
    Skips:   rows without a vote or an annotator, with a vote that is none, or of tasks that are not
             in the store; counted by reason.
    Again:   writes nothing.

    Args:
        annotator: whose the votes are where a row does not say.
    """
    tally, book = _Tally(), VoteBook(store, scrub=scrub)
    tasks = {one.id: one for one in tasks_of(store)}
    last: dict[tuple[str, str], tuple[Choice, str]] = {}
    for row in tally.rows(_cells(text) if form == "csv" else _lines(text)):
        with tally.row():
            task_id, said, who, comment = _fields(row, annotator, form)
            if task_id not in tasks:
                raise _Bad("unknown task")
            last[task_id, who] = _turned(said, tasks[task_id]), comment
            tally.good += 1
    cast = [
        book.cast(tasks[task_id], choice, who, source=f"file:{name}", comment=comment)
        for (task_id, who), (choice, comment) in last.items()
    ]
    return tally.taken(store.add_all(one for one in cast if one))


def _fields(row: Any, annotator: str, form: Format) -> tuple[str, Choice, str, str]:
    if not isinstance(row, dict):
        raise _Bad("no object")
    cells = [row.get(name) or "" for name in ("task_id", "vote", "annotator", "comment")]
    if not all(isinstance(one, str | int | float) for one in cells):
        raise _Bad("not text")
    task_id, said, who, comment = (_bare(str(one)) if form == "csv" else str(one) for one in cells)
    _whole(who + comment)
    # a column with gaps comes back from many a program as 1.0
    said, who = " ".join(said.lower().split()).removesuffix(".0"), who.strip() or annotator
    if not said:
        raise _Bad("no vote")
    if said not in SAID:
        raise _Bad("unknown vote")
    if not who:
        raise _Bad("no annotator")
    return task_id.strip(), SAID[said], who, comment


# --- reading --------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of a file, every complaint about it as a DataError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(
                f"{path} is too large for one file of votes",
                got=f"{path.stat().st_size:,} bytes",
                expected=f"at most {MAX_BYTES:,}",
                next="split it",
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read",
            got=getattr(error, "strerror", None) or str(error),
            expected="a .csv or .jsonl file in UTF-8",
            next="check the path, or save it as UTF-8",
        ) from error


def _lines(text: str) -> Iterator[Any]:
    for line in text.split("\n"):  # splitlines would break at U+2028, which JSON may hold
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield _Bad("not JSON")


def _cells(text: str) -> Iterator[Any]:
    csv.field_size_limit(MAX_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if missing := {"task_id", "vote"} - set(reader.fieldnames or ()):
        raise DataError(
            "The file has not the columns of an export",
            got=", ".join(reader.fieldnames or ()) or "nothing",
            expected="the columns " + " and ".join(sorted(missing)),
            next="begin with 'trueup tasks export --csv', and leave its first line as it is",
        )
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield _Bad("not CSV")


class _Tally:
    """Counts rows, and those that give nothing by reason; it is the `with` around each row."""

    def __init__(self) -> None:
        self.num = self.good = 0
        self.skipped, self.problems = Counter[str](), list[str]()

    def rows(self, found: Iterable[Any]) -> Iterator[Any]:
        for row in found:
            self.num += 1
            if isinstance(row, _Bad):
                self._skip(str(row))
            else:
                yield row

    def row(self) -> "_Tally":
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if isinstance(error, _Bad):
            self._skip(str(error))
            return True
        return False

    def taken(self, new: int) -> Taken:
        skipped = dict(self.skipped.most_common())
        return Taken(self.num, new, self.good - new, skipped, tuple(self.problems))

    def _skip(self, reason: str) -> None:
        self.skipped[reason] += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"row {self.num}: {reason}")
