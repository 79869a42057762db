"""The page of `trueup flag eval`: who puts weak answers first, and how many does it find?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueup.web.page import plain, write_page

if TYPE_CHECKING:
    from trueup.flag.trial import FlaggerScore, Trial

__all__ = ["trial_data", "write_trial"]


def write_trial(page: Path, found: "Trial", *, source: str) -> Path:
    """Write the page of a trial, and its figures as JSON beside it.

    Raises:
        StorageError: it cannot be written there.
    """
    data = trial_data(found, source=source)
    return write_page(page, "flag.html", data, "The page {page} could not be written")


def trial_data(found: "Trial", *, source: str) -> dict[str, Any]:
    """Every figure of the page, as plain JSON values.

    `found` of a flagger is the share of weak answers among the 1, 2, … 100 % that it puts first.
    """
    ordered = sorted(found.flaggers, key=lambda one: (one.kind == "baseline", -one.auroc.estimate))
    told = found.model_dump(mode="json", exclude={"flaggers"})
    return plain(
        {
            **told,
            "source": source,
            "flaggers": [
                one.model_dump(mode="json", exclude={"curve"})
                | {"found": _found(one, found.base_rate)}
                for one in ordered
            ],
        }
    )


def _found(one: "FlaggerScore", base_rate: float) -> list[float]:
    """Recall when so many per cent of the answers are looked at, the worst first."""
    recall, precision = np.array(one.curve.recall), np.array(one.curve.precision)
    looked_at = recall * base_rate / np.where(precision > 0, precision, 1.0)
    places = np.concatenate([[0.0], looked_at, [1.0]])
    reached = np.concatenate([[0.0], recall, [1.0]])
    order = np.argsort(places, kind="stable")
    return np.interp(np.arange(1, 101) / 100, places[order], reached[order]).round(4).tolist()
