"""A figure, the two lines it is held against, and what follows.

    inside    short of the amber line, or not shown to have moved
    amber     beyond the amber line: passes, with a warning
    red       beyond the red line: refuses
    unknown   it could not be computed, though it was asked for: refuses

A figure crosses a line when its estimate is beyond it *and* its 95 % interval leaves no doubt that
it moved at all: with few prompts an estimate is noise, and a gate that refuses at random teaches
people to ignore it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from trueup.records import Verdict
from trueup.stats import Interval

__all__ = ["Alarm", "Line", "Status", "alarm", "verdict"]

Status = Literal["inside", "amber", "red", "unknown"]
Side = Literal["above", "below"]


class Line(NamedTuple):
    """Where a figure becomes amber and where red, and on which side of them it is bad."""

    amber: float
    red: float
    side: Side = "above"

    def is_beyond(self, value: float, line: float) -> bool:
        return value > line if self.side == "above" else value < line


class Alarm(NamedTuple):
    """A figure with its interval and what its lines say of it."""

    name: str
    status: Status
    estimate: float | None
    low: float | None
    high: float | None
    line: Line | None
    """None for a rule that is more than one line."""
    says: str
    """The figure in words, for a reason."""
    candidate: float | None = None
    champion: float | None = None

    def reason(self) -> str:
        """`length: 1.62 times the champion's, over 1.3`"""
        if self.status == "unknown":
            return f"{self.name}: unknown"
        if self.line is None:
            return f"{self.name}: {self.says}"
        over = "over" if self.line.side == "above" else "under"
        crossed = self.line.red if self.status == "red" else self.line.amber
        return f"{self.name}: {self.says}, {over} {crossed:g}"

    def data(self) -> dict[str, Any]:
        """As a report keeps it."""
        plain = {k: v for k, v in self._asdict().items() if k != "line"}
        return plain | (self.line._asdict() if self.line else {})


def alarm(
    name: str,
    interval: Interval | None,
    line: Line,
    says: str,
    *,
    even: float | None = 0.0,
    moved: Interval | None = None,
    candidate: float | None = None,
    champion: float | None = None,
) -> Alarm:
    """Hold a figure against its line.

    Args:
        says: words around the estimate: `{:.2f} times the champion's`.
        even: the figure of a candidate that did not move: 1 for a ratio, 0 for a difference; None
            where any value is a movement.
        moved: for a level, such as a share, its change against the champion, which must lie on
            the bad side of `even`; by default the figure's own interval must.
    """
    known = [interval, moved] if moved else [interval]
    if interval is None or not all(math.isfinite(end) for one in known if one for end in one):
        return Alarm(name, "unknown", None, None, None, line, says, candidate, champion)
    evidence = moved or interval
    near = evidence.low if line.side == "above" else evidence.high
    has_moved = even is None or line.is_beyond(near, even)
    status: Status = "inside"
    if has_moved and line.is_beyond(interval.estimate, line.red):
        status = "red"
    elif has_moved and line.is_beyond(interval.estimate, line.amber):
        status = "amber"
    return Alarm(name, status, *interval, line, says.format(interval.estimate), candidate, champion)


def verdict(alarms: Sequence[Alarm], figures: dict[str, float | None]) -> Verdict:
    """Refused where one is red or unknown; else passed, with the amber ones in the reason."""
    red = _reasons(a for a in alarms if a.status in ("red", "unknown"))
    amber = _reasons(a for a in alarms if a.status == "amber")
    if not alarms:
        red = "unknown: nothing was measured"
    calm = "within every line" if not amber else f"within every red line; amber: {amber}"
    return Verdict(
        gate="guard",
        status="refused" if red else "passed",
        reason=f"{red}; amber: {amber}" if red and amber else red or calm,
        figures=figures,
    )


def _reasons(alarms: Iterable[Alarm]) -> str:
    found = list(alarms)
    unknown = [a.name for a in found if a.status == "unknown"]
    said = [a.reason() for a in found if a.status != "unknown"]
    if unknown:
        said.append(
            f"a figure is unknown: too few prompts, or answers without log-probs "
            f"({', '.join(unknown)})"
        )
    return "; ".join(said)
