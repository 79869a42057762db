"""`GET /metrics`: the counters of capture as a page that Prometheus reads."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from trueup.capture import Recorder

__all__ = ["MetricsRoute"]

TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsRoute:
    """The page."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def get(self, _: Request) -> Response:
        """Costs no more than `/health`."""
        return Response(await asyncio.to_thread(_page, self._recorder), media_type=TYPE)


def _page(recorder: Recorder) -> str:
    counts, lines = recorder.counters, []

    def metric(name: str, kind: str, meaning: str, *samples: str) -> None:
        lines.append(f"# HELP trueup_capture_{name} {meaning}")
        lines.append(f"# TYPE trueup_capture_{name} {kind}")
        lines.extend(f"trueup_capture_{name}{sample}" for sample in samples)

    metric("sent_total", "counter", "Interactions handed to capture.", f" {counts['sent']}")
    metric(
        "interactions_total",
        "counter",
        "What became of them. With the waiting ones they add up to sent_total.",
        *(
            f'{{outcome="{outcome}",reason="{reason}"}} {number}'
            for (outcome, reason), number in recorder.reasons.items()
        ),
    )
    metric("waiting", "gauge", "Interactions not yet on disk.", f" {counts['waiting']}")
    metric(
        "recalled_total", "counter", "Of the captured: by a complaint.", f" {counts['recalled']}"
    )
    metric("retries_total", "counter", "Commits tried again.", f" {counts['retries']}")
    metric(
        "lost_in_crashes",
        "gauge",
        "Interactions that processes on this store took in and lost when they were killed.",
        f" {counts['lost_in_crashes']}",
    )
    return "\n".join(lines) + "\n"
