"""What an index of vectors can do, whoever keeps it.

It holds ids, vectors and the columns one filters by, and no text: that stays in the records, so
an index can be dropped and made again at any time. There is one for each embedder and each choice
of text, since their vectors do not compare.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import numpy as np

from trueup.errors import ConfigError
from trueup.records import Interaction, content_hash
from trueup.store.tables import column_value

__all__ = [
    "EVERYTHING",
    "Filter",
    "Hit",
    "Index",
    "Row",
    "check_size",
    "lists_for",
    "lists_read",
    "microseconds",
    "table_name",
]

ROWS_A_LIST = 400
LISTS_READ = 25
"""Where no filter leaves rows out: 0.97 of the ten nearest among 100,000 vectors of MiniLM."""


class Row(NamedTuple):
    """One interaction in the index."""

    id: str
    created_us: int
    """Microseconds since 1970, UTC."""
    source: str
    user: str | None
    tenant: str | None
    model: str
    raised: bool
    """True where any flagger raised it."""

    @classmethod
    def of(cls, one: Interaction, *, raised: bool) -> "Row":
        """The columns of an interaction."""
        texts = map(column_value, (one.source, one.user, one.tenant, one.model))
        return cls(one.id, microseconds(one.created_at), *texts, raised=raised)


class Hit(NamedTuple):
    """A neighbour, and the cosine between it and what was asked for."""

    id: str
    similarity: float


class Filter(NamedTuple):
    """Which rows count; None is all."""

    user: str | None = None
    tenant: str | None = None
    model: str | None = None
    source: str | None = None
    raised: bool | None = None
    since: str | None = None
    """ISO 8601; UTC where it names no zone. `until` is excluded."""
    until: str | None = None
    users: tuple[str, ...] | None = None
    """Any of these: a person's pseudonyms, one a tenant."""

    @property
    def equals(self) -> dict[str, str | bool]:
        """Columns that must have one value."""
        names = ("user", "tenant", "model", "source")
        named = {name: column_value(getattr(self, name)) for name in names} | {
            "raised": self.raised
        }
        return {name: value for name, value in named.items() if value is not None}


EVERYTHING = Filter()


class Index(Protocol):
    """Vectors by id. Safe to open from several processes; one writes at a time."""

    name: str

    def count(self, where: Filter = EVERYTHING) -> int:
        """How many rows there are."""
        ...

    def ids(self, where: Filter = EVERYTHING) -> set[str]:
        """Whose vectors are here."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Keep other writers out for the block. Opened twice by one thread it is held once."""
        ...

    def add(self, rows: Sequence[Row], vectors_ND: np.ndarray) -> None:
        """Add rows whose ids are not here yet; on disk when it returns."""
        ...

    def mark_raised(self, ids: Iterable[str]) -> None:
        """Note that a flagger raised these."""
        ...

    def search(
        self, vector_D: np.ndarray, k: int, where: Filter = EVERYTHING, *, exact: bool = False
    ) -> list[Hit]:
        """The k nearest by cosine, nearest first. A vector of zeros is near to nothing.

        Args:
            exact: look at every row that the filter lets through, however many.
        """
        ...

    def read(self, where: Filter = EVERYTHING) -> tuple[list[Row], np.ndarray]:
        """Rows and their vectors (N, D), oldest first."""
        ...

    def delete(self, ids: Iterable[str]) -> int:
        """Remove rows, so that their vectors are no longer on the disk; returns how many."""
        ...

    def tend(self, *, now: bool = False) -> bool:
        """Compact, remove old versions, and build or extend the approximate index where it is due;
        `now` does it in any case. Returns whether anything was done."""
        ...

    def drop(self) -> None:
        """Remove it all; it can be made again from the records."""
        ...

    def close(self) -> None:
        """Give back what is open."""
        ...


def check_size(table: str, has: int, given: int) -> None:
    """
    Raises:
        ConfigError: vectors of another size than the table's.
    """
    if given != has:
        raise ConfigError(
            f"The embedder's vectors have another size than those in the index {table}",
            got=f"{given} numbers",
            expected=f"{has}: an embedder that keeps its name keeps its vectors",
            next="trueup embed --rebuild, or give the new model a name of its own",
        )


def table_name(embedder_id: str, text: str) -> str:
    """The table of an embedder and a choice of text."""
    return f"{text}_{content_hash([embedder_id, text])[:12]}"


def lists_for(rows: int) -> int:
    """Lists of an inverted file over so many rows."""
    return max(1, rows // ROWS_A_LIST)


def lists_read(rows: int, left: int) -> int:
    """Lists to read where a filter leaves `left` of the rows: twice as many for a quarter."""
    return min(lists_for(rows), round(LISTS_READ * (rows / max(1, left)) ** 0.5))


def microseconds(moment: str) -> int:
    """An ISO 8601 time in microseconds since 1970; without a zone it is UTC."""
    at = datetime.fromisoformat(moment)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return round(at.timestamp() * 1e6)
