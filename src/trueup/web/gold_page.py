"""The page of `trueup evaluate --gold`: how well does a model do on a set, and what did it fail?"""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.records import content_hash
from trueup.store import Store
from trueup.web.page import excerpt, plain, write_page

if TYPE_CHECKING:
    from trueup.evaluate import Measured, Standing

__all__ = ["gold_data", "write_gold"]

MOST_FAILED = 50


def write_gold(store: Store, found: "Measured") -> Path:
    """Write the page of a measurement, and its figures as JSON, to `reports/` in the store's
    folder. It is named by the set and its figures: the same ones write the same page.

    Raises:
        StorageError: it cannot be written there.
    """
    told = plain(gold_data(found))
    name = re.sub(r"[^\w.-]+", "-", found.gold.name)[:60]
    return write_page(
        store.folder / "reports" / f"gold_{name}_{content_hash(told)}.html",
        "gold.html",
        told | {"failed": _failed(told), "not_checked": _not_checked(told)},
        "The page {page} could not be written; the answers are kept in the store",
    )


def gold_data(found: "Measured") -> dict[str, Any]:
    """Every figure and every item as JSON values; the page shows its texts made visible."""
    gold, paired = found.gold, found.paired
    return {
        "set": gold.name,
        "format": gold.format,
        "items": len(gold.items),
        "of": gold.total,
        "models": [_standing(one) for one in found.standings],
        "paired": paired
        and {
            **paired.whole.as_json(),
            "slices": [one.as_json() for one in paired.slices],
            "falling": [one.name for one in paired.falling],
            "worst": paired.worst and paired.worst.name,
            "lost_ids": found.lost,
        },
        "rows": found.rows,
    }


def _standing(one: "Standing") -> dict[str, Any]:
    return {
        "model": one.model,
        "weights": one.weights,
        "checked": one.checked,
        "cut": one.cut,
        "accuracy": one.accuracy and one.accuracy._asdict(),
        **{name: share._asdict() for name, share in one.figures.items()},
        "figures": list(one.figures),
        "slices": {
            name: {"items": n, **share._asdict()} for name, (n, share) in one.slices.items()
        },
        "instructions": {
            name: {"instructions": n, **share._asdict()}
            for name, (n, share) in one.instructions.items()
        },
    }


def _failed(told: dict[str, Any]) -> dict[str, Any]:
    """Items that the model fails, those first that the champion passes."""
    failed = [row for row in told["rows"] if row["passed"] is False]
    failed.sort(key=lambda row: row.get("champion_passed") is not True)
    return {
        "count": len(failed),
        "shown": [_item(row) for row in failed[:MOST_FAILED]],
        "other_ids": [row["id"] for row in failed[MOST_FAILED:]],
    }


def _item(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: row[name] for name in ("id", "slice", "reason", "cut")},
        "prompt": excerpt(row["prompt"]),
        "answer": excerpt(row["answer"]),
        "is_lost": row.get("champion_passed") is True,
    }


def _not_checked(told: dict[str, Any]) -> dict[str, int]:
    """How many items could be neither right nor wrong here, by the reason."""
    return dict(Counter(row["reason"] for row in told["rows"] if row["passed"] is None))
