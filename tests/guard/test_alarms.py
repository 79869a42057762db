"""When a figure crosses a line, and what the gate then says."""

import math

import pytest

from trueup.guard.alarms import Line, Status, alarm, verdict
from trueup.stats import Interval

LONG, LOW = Line(1.15, 1.3), Line(0.75, 0.35, "below")


@pytest.mark.parametrize(
    ("interval", "line", "even", "status"),
    [
        (Interval(1.1, 1.05, 1.15), LONG, 1, "inside"),
        (Interval(1.2, 1.1, 1.3), LONG, 1, "amber"),
        (Interval(1.2, 0.9, 1.5), LONG, 1, "inside"),  # not shown to have moved
        (Interval(1.4, 1.2, 1.6), LONG, 1, "red"),
        (Interval(1.4, 0.99, 1.9), LONG, 1, "inside"),
        (Interval(0.7, 0.6, 0.8), LOW, 1, "amber"),
        (Interval(0.3, 0.2, 0.4), LOW, 1, "red"),
        (Interval(0.3, 0.1, 1.1), LOW, 1, "inside"),
        (Interval(31.0, 2.0, 60.0), Line(10, 30), None, "red"),
        (None, LONG, 1, "unknown"),
    ],
)
def test_beyond_a_line_and_beyond_doubt(
    interval: Interval | None, line: Line, even: float | None, status: Status
) -> None:
    assert alarm("length", interval, line, "{:.2f} times", even=even).status == status


def test_a_share_that_did_not_grow_is_inside() -> None:
    share, line = Interval(0.4, 0.3, 0.5), Line(0.05, 0.2)
    grown = alarm("same", share, line, "{:.0%}", moved=Interval(0.3, 0.2, 0.4))
    stood = alarm("same", share, line, "{:.0%}", moved=Interval(0.0, -0.1, 0.1))
    assert (grown.status, stood.status) == ("red", "inside")


def test_amber_passes_with_a_warning_and_red_or_unknown_refuses() -> None:
    amber = alarm("length", Interval(1.2, 1.1, 1.3), LONG, "{:.2f} times the champion's", even=1)
    red = alarm("kl", Interval(31.0, 29.0, 33.0), Line(10, 30), "{:.0f} nats")
    calm = alarm("entropy", Interval(0.9, 0.8, 1.0), LOW, "{:.2f}", even=1)
    lost = alarm("entropy", None, LOW, "{:.2f}", even=1)

    said = verdict([amber, calm], {})
    assert said.passed
    assert said.reason == (
        "within every red line; amber: length: 1.20 times the champion's, over 1.15"
    )
    assert verdict([calm], {}).reason == "within every line"
    said = verdict([amber, red], {})
    assert said.status == "refused" and said.reason.startswith("kl: 31 nats, over 30; amber:")
    said = verdict([calm, lost], {})
    assert said.status == "refused" and "unknown" in said.reason
    assert verdict([], {}).status == "refused"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_unknown_and_refuses(bad: float) -> None:
    line = Line(1.0, 2.0)
    one = alarm("kl", Interval(bad, bad, bad), line, "{:.1f} nats", even=None)
    assert one.status == "unknown"
    moved = alarm("opening", Interval(0.5, 0.4, 0.6), line, "{:.0%}", moved=Interval(0.1, bad, 0.2))
    assert moved.status == "unknown"
    assert not verdict([one], {}).passed
