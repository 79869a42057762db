"""Public data sets and old logs become records: `trueup import FILE`.

What a row means is decided in `shapes`; this module reads the file a row at a time, counts, and
writes. Bad rows are data: each is skipped, counted by reason, and the first few are quoted with
their line. Only too many of them is an error, and only after the good ones are safe.

The promise: every row is either a record or a counted skip, and a file imported twice, or again
after an interruption, is in the store once.
"""

import gzip
import io
import json
import os
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic_core import from_json

from trueup.capture.plain import PlainRows
from trueup.capture.shapes import SHAPES, Origin, Skip, to_record
from trueup.errors import ConfigError, DataError, StorageError
from trueup.privacy import Scrub, Scrubber
from trueup.progress import task
from trueup.records import AnnotatorKind, Interaction, Label, Record
from trueup.store import Store, row_of

__all__ = ["ImportResult", "import_file"]

R = TypeVar("R", bound=Record)

BATCH_ROWS = 1_000
MAX_PROBLEMS = 10
QUOTE_CHARS = 60
CHUNK_CHARS = 1 << 20
MAX_ROW_CHARS = 1 << 26  # a file without line ends must not fill the memory
DECODER = json.JSONDecoder()
BOM = b"\xef\xbb\xbf"
GZIP_MAGIC = b"\x1f\x8b"
WRITTEN = "rows already written are kept and will not be doubled"


class ImportResult(NamedTuple):
    """What became of a file: `rows` is `interactions` + `labels` + everything skipped."""

    file: str
    rows: int
    interactions: int
    labels: int
    unpaired: int
    """Labels with one candidate: no pair can come of them."""
    new: int
    """Records that were not in the store before."""
    skipped: dict[str, int]
    """Rows by the reason they gave no record, the most frequent first."""
    problems: tuple[str, ...]
    """The first ten skipped rows, `line N: reason (got …)`; `row N` where the file is a list."""


def import_file(
    store: Store,
    path: Path | str,
    *,
    annotator_kind: AnnotatorKind = "human",
    shape: str | None = None,
    max_skip_rate: float = 0.1,
    scrub: Scrub | None = None,
    on_progress: Callable[[ImportResult], object] | None = None,
) -> ImportResult:
    """Read a data set or a log into the store.

    Reads:   JSON lines or one JSON list, UTF-8, plain or gzipped; each row by the first shape of
             `shapes.SHAPES` that fits, or by `shape` alone.
    Writes:  an Interaction for a single answer, a Label for a preference or a boolean `label`;
             1,000 rows a transaction. `on_progress` is called after each with the counts so far.
             What `scrub` takes out is not written; a row that it raises for is skipped.
    Skips:   malformed lines; rows that are no object, of no known shape, without a final
             assistant turn, with an empty prompt or answer, two equal answers, prompts that
             differ, unknown roles, or content that is not text. Counted in
             `ImportResult.skipped`. Blank lines are no rows.
    Keeps:   the file's name as `source` on every record, and as the annotator on labels; on
             interactions also whose they are, from the columns `user` (or `user_id`, or
             `safety_identifier`) and `tenant`. A file under a new name is another source, and
             its rows are new records.
    Again:   a second run over the same file writes nothing; equal rows are one record.
    Killed:  finished batches stay, the one under way leaves nothing. Run it again for the rest.
             A power cut may take finished batches, too, until the import has returned.
    Stops:   ConfigError for an unknown `shape` or `annotator_kind`. DataError if the file is
             missing, a folder, without rows, not UTF-8, damaged, or, when all that can be used
             is written, if more than `max_skip_rate` of the rows were skipped. StorageError if
             the disk is full.
    Cost:    no model calls; linear in rows, and `make bench-import` says how many a second. Rows
             of plain texts go three times as quick as the others. Memory holds one batch.
    Next:    flag.run for interactions, pair.run for labels
    """
    path = Path(path)
    _require_known(shape, annotator_kind)
    origin, meter = Origin(_printable_name(path), annotator_kind), _Meter(path)
    tally = _Tally(origin, shape, scrub)
    with task(f"import {origin.file}"[:18], meter.total) as advance, store.loading() as load:
        for batch in _batches(_rows(path, meter)):
            tally.new += load(tally.rows_of(batch))
            advance(meter.moved())
            if on_progress:
                on_progress(tally.result(origin.file))
    result = tally.result(origin.file)
    _require_enough(result, max_skip_rate)
    return result


# --- counting ---------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Running counts of an import."""

    origin: Origin
    shape: str | None = None
    scrub: Scrub | None = None
    num_rows: int = 0
    new: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._plain = PlainRows(self.origin)
        self._leaves = self.scrub.leaves if isinstance(self.scrub, Scrubber) else None

    def rows_of(self, batch: "list[_Row]") -> dict[type[Record], list[tuple[Any, ...]]]:
        """What a batch puts into each table; what gives no record is counted."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        found: dict[type[Record], list[tuple[Any, ...]]] = {Interaction: [], Label: []}
        interactions = found[Interaction]
        is_plain = self.shape is None and (self.scrub is None or self._leaves is not None)
        self.num_rows += len(batch)
        for row in batch:
            if is_plain and type(row.value) is dict:
                plain = self._plain.row(row.value, now, self._leaves)
                if plain:
                    interactions.append(plain)
                    continue
            try:
                record = self._clean(to_record(row.checked(), self.origin, self.shape))
            except Skip as skip:
                self._skip(row.where, skip)
            else:
                self._count(record)
                found[type(record)].append(row_of(record))
        self.counts["interactions"] += len(interactions)
        return found

    def _clean(self, record: Interaction | Label) -> Interaction | Label:
        """The record without what must not be written: nothing of what fails that is kept."""
        if self.scrub is None:
            return record
        try:
            return _identified(self.scrub(record))
        except StorageError:  # of the key to a pseudonym: no fault of the row's
            raise
        except Exception as error:
            raise Skip("could not be scrubbed", type(error).__name__) from None

    def result(self, file: str) -> ImportResult:
        return ImportResult(
            file=file,
            rows=self.num_rows,
            interactions=self.counts["interactions"],
            labels=self.counts["labels"],
            unpaired=self.counts["unpaired"],
            new=self.new,
            skipped=dict(self.skipped.most_common()),
            problems=tuple(self.problems),
        )

    def _count(self, record: Interaction | Label) -> None:
        if isinstance(record, Label):
            self.counts["labels"] += 1
            self.counts["unpaired"] += len(record.candidates) == 1

    def _skip(self, where: str, skip: Skip) -> None:
        self.skipped[skip.reason] += 1
        if len(self.problems) < MAX_PROBLEMS:
            got = "" if skip.got is None else f" (got {_quoted(skip.got)})"
            self.problems.append(f"{where}: {skip.reason}{got}")


def _identified(record: R) -> R:
    """Under the id of what it says now: the old one is a hash of what was taken out."""
    return record.model_copy(update={"id": record.expected_id()})


def _quoted(value: object) -> str:
    short = reprlib.Repr()  # the built-in repr recurses, and a hostile row may be nested deeply
    short.maxstring = QUOTE_CHARS
    return short.repr(value)


# --- refusing ---------------------------------------------------------------------------------


def _require_known(shape: str | None, annotator_kind: str) -> None:
    names, kinds = sorted(one.name for one in SHAPES), get_args(AnnotatorKind)
    if shape is not None and shape not in names:
        raise ConfigError(
            "There is no such shape of rows",
            got=shape,
            expected="one of " + ", ".join(names),
            next="leave the shape out to have it recognized",
        )
    if annotator_kind not in kinds:
        raise ConfigError(
            "There is no such kind of annotator",
            got=annotator_kind,
            expected="one of " + ", ".join(kinds),
            next="name who judged the rows of the file",
        )


def _require_enough(result: ImportResult, max_skip_rate: float) -> None:
    skipped = sum(result.skipped.values())
    if result.rows == 0:
        raise DataError(
            f"{result.file} has no rows",
            got="an empty file",
            expected="one JSON object a line",
            next="check how the file was made",
        )
    if skipped / result.rows > max_skip_rate:
        reasons = ", ".join(f"{reason} {count}" for reason, count in result.skipped.items())
        raise DataError(
            f"{skipped} of {result.rows} rows of {result.file} could not be used ({reasons}); "
            f"the other {result.rows - skipped} were kept",
            got=result.problems[0],
            expected=f"a skipped share of at most {max_skip_rate:g}",
            next="mend the file and import it again, which adds only what is missing, or raise "
            "the limit with max_skip_rate",
        )


# --- reading ----------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A decoded row and its place in the file; `Skip` in place of what is not JSON."""

    where: str
    value: Any

    def checked(self) -> Any:
        if isinstance(self.value, Skip):
            raise self.value
        return self.value


def _batches(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
    except DataError:  # the file broke off: what came before is good
        if batch:
            yield batch
        raise
    if batch:
        yield batch


class _Meter:
    """How much of a file was read, in kilobytes as they lie on the disk."""

    def __init__(self, path: Path) -> None:
        self.total = path.stat().st_size // 1000 if path.is_file() else 0
        self.file: io.BufferedReader | None = None
        self._before = 0

    def moved(self) -> int:
        """Kilobytes since the last call."""
        is_open = self.file and not self.file.closed
        now = self.file.tell() // 1000 if self.file and is_open else self.total
        moved, self._before = now - self._before, now
        return moved


def _rows(path: Path, meter: _Meter) -> Iterator[_Row]:
    """The rows of a file, one at a time, every complaint about the file as a DataError."""
    try:
        with open(path, "rb") as raw:
            meter.file = raw
            packed = raw.peek(2)[:2] == GZIP_MAGIC
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
            if _is_list(path, stream):
                with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
                    yield from _elements(path, text)
            else:
                yield from _lines(path, stream)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read",
            got=getattr(error, "strerror", None) or str(error),
            expected="a .jsonl or .json file, plain or with .gz",
            next=f"check the path, or fetch the file again; {WRITTEN}",
        ) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path, "its text", error) from error


def _is_list(path: Path, stream: "io.BufferedReader[Any]") -> bool:
    """A `.jsonl` has lines; for other names the first character decides, since many a published
    `.json` holds lines too."""
    named_lines = path.name.lower().removesuffix(".gz").endswith(".jsonl")
    return not named_lines and stream.peek().removeprefix(BOM).lstrip().startswith(b"[")


def _lines(path: Path, stream: "io.BufferedReader[Any]") -> Iterator[_Row]:
    lines = iter(lambda: stream.readline(MAX_ROW_CHARS), b"")
    for number, line in enumerate(lines, start=1):
        if len(line) == MAX_ROW_CHARS:
            raise _endless(path, f"line {number}")
        if line.isspace():
            continue
        try:
            yield _Row(f"line {number}", from_json(line))
            continue
        except ValueError:  # quicker, and stricter: the last word is that of Python's own
            pass
        try:
            text = (line.removeprefix(BOM) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(path, f"line {number}", error) from error
        if text.strip():
            yield _Row(f"line {number}", _decoded(text))


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: brackets nested thousands deep
        return Skip("not JSON", text.strip())


def _elements(path: Path, reader: io.TextIOBase) -> Iterator[_Row]:
    """The elements of a JSON list, a chunk at a time, so that a list may be larger than memory."""
    text, number = reader.read(CHUNK_CHARS).lstrip(), 0
    at = 1  # past the opening bracket
    while True:
        at = _past_gap(text, at)
        if text.startswith("]", at):
            break
        if found := _next_element(text, at):
            element, at = found
            number += 1
            yield _Row(f"row {number}", element)
            continue
        text, at = text[at:], 0
        more = reader.read(max(CHUNK_CHARS, len(text)))  # doubling: a huge element is read once
        if not more:
            raise _broken_list(path, number, text)
        if len(text) > MAX_ROW_CHARS:
            raise _endless(path, f"row {number + 1}")
        text += more
    if (text[at + 1 :] + reader.read(CHUNK_CHARS)).strip():
        raise _broken_list(path, number, text[at:])


def _past_gap(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _next_element(text: str, at: int) -> tuple[Any, int] | None:
    """The element at `at` and where it ends, or None if the text breaks off before its end."""
    try:
        element, end = DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    may_go_on = end == len(text) and not text.endswith("}")  # 12 may be the start of 123
    return None if may_go_on else (element, end)


def _broken_list(path: Path, number: int, rest: str) -> DataError:
    return DataError(
        f"{path} is not a well-formed JSON list after row {number}",
        got=rest[:QUOTE_CHARS],
        expected="[{…}, {…}] to the end of the file",
        next=f"mend or fetch the file; {WRITTEN}",
    )


def _endless(path: Path, where: str) -> DataError:
    return DataError(
        f"{path} has no end to {where}",
        got=f"more than {MAX_ROW_CHARS:,} characters",
        expected="one JSON object a line, or a list of them",
        next=f"mend the file; {WRITTEN}",
    )


def _not_utf8(path: Path, where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path} is not UTF-8 in {where}",
        got=error.object[error.start : error.start + 8],
        expected="UTF-8 text, plain or gzipped",
        next=f"convert it with 'iconv -t utf-8'; {WRITTEN}",
    )


def _printable_name(path: Path) -> str:
    """The file's name; bytes of it that are no UTF-8, which no record could hold, as �."""
    return os.fsencode(path.name).decode(errors="replace")
