"""The page of the weeks: is what people ask this week still what they asked the week before?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.records import content_hash
from trueup.store import Store
from trueup.web.page import plain, write_page

if TYPE_CHECKING:
    from trueup.shift import WeekDrift

__all__ = ["weeks_data", "write_weeks"]


def write_weeks(store: Store, weeks: Sequence["WeekDrift"], *, embedder: str) -> Path:
    """Write the page, and its figures as JSON, to `reports/` in the store's folder. It is named by
    its figures: the same ones write the same page.

    Raises:
        StorageError: it cannot be written there.
    """
    data = weeks_data(weeks, embedder=embedder)
    return write_page(
        store.folder / "reports" / f"weeks_{content_hash(data)}.html",
        "weeks.html",
        data,
        "The page {page} could not be written",
    )


def weeks_data(weeks: Sequence["WeekDrift"], *, embedder: str) -> dict[str, Any]:
    """Every figure of the page, as plain JSON values."""
    return plain({"embedder": embedder, "weeks": [one.model_dump(mode="json") for one in weeks]})
