"""The page of a drill: would the gates notice, and what did they stop in vain?"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup import stats
from trueup.web.page import plain, write_page

if TYPE_CHECKING:
    from trueup.drill.run import Drill, Row

__all__ = ["drill_data", "write_drill"]


def write_drill(done: "Drill", folder: Path, *, project: str = "") -> Path:
    """Write `drill.html`, and its figures as `drill.json`, over those of an earlier drill.

    Args:
        project: whose model the faults were planted in; by default the toy language's.

    Raises:
        StorageError: it cannot be written there.
    """
    return write_page(
        folder / "drill.html",
        "drill.html",
        drill_data(done, project=project),
        "The page {page} could not be written; a drill without --own has kept its outcomes",
    )


def drill_data(done: "Drill", *, project: str = "") -> dict[str, Any]:
    """Every figure of the page, as plain JSON values. Arguments as in `write_drill`."""
    from trueup.drill.faults import FAULTS
    from trueup.drill.run import LEAST_RATE

    says = {one.name: one.says for one in FAULTS}
    return plain(
        {
            "project": project,
            "passed": not (done.missed or done.false_alarms),
            "least_rate": LEAST_RATE,
            "faults": [_row(row) | {"says": says[row.fault]} for row in done.rows()],
            "controls": [_control(row) for row in done.controls()],
            "controls_left_out": done.left_out,
            "false_alarm_bound": done.bound,
            "missed": [f"{row.fault}, {row.strength:g} {row.unit}" for row in done.missed],
            "not_caught": list(_not_caught(done)),
            "false_alarms": [asdict(one) for one in done.false_alarms],
            "outcomes": [asdict(one) for one in done.outcomes],
        }
    )


def _row(row: "Row") -> dict[str, Any]:
    return row._asdict() | {"rate": row.rate and row.rate._asdict()}


def _control(row: "Row") -> dict[str, Any]:
    stopped = stats.wilson(row.num_stopped, row.num_trials)
    return _row(row) | {"stopped_rate": stopped and stopped._asdict()}


def _not_caught(done: "Drill") -> Iterator[dict[str, Any]]:
    """Planted faults that no gate stopped, or only one that need not have."""
    from trueup.drill.faults import FAULTS

    by_name = {one.name: one for one in FAULTS}
    for one in done.outcomes:
        fault = by_name.get(one.fault)
        if fault and one.stopped_by not in fault.gates:
            yield asdict(one) | {"unit": fault.unit}
