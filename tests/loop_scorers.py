"""Scorers of the test project, named in its settings as `loop_scorers:NAME`."""

import asyncio
import sys
import time
from collections.abc import Sequence

from trueup.judges.base import Ranking
from trueup.records import Completion, Messages


def plain(_: Messages, answer: str) -> float:
    """Labels: no filler, few words."""
    return 1.0 - 0.3 * answer.count("um") - 0.2 * len(answer.split())


def swapped(prompt: Messages, answer: str) -> float:
    """Labels with every preference turned round."""
    return -plain(prompt, answer)


def padded(_: Messages, answer: str) -> float:
    """Labels by a judge that loves length."""
    return len(answer) / 10


def brief(_: Messages, answer: str) -> float:
    """Promotes: one word, then two, then nothing."""
    return {1: 1.0, 2: 0.5}.get(len(answer.split()), 0.0)


def broken(_: Messages, answer: str) -> float:
    """A judge that falls over."""
    raise RuntimeError("out of order")


def nan(_: Messages, answer: str) -> float:
    """A judge that has no number."""
    return float("nan")


def quits(_: Messages, answer: str) -> float:
    """A judge that takes its process for its own."""
    sys.exit("enough")


def cancelled(_: Messages, answer: str) -> float:
    """A judge whose event loop was closed under it."""
    raise asyncio.CancelledError


def hangs(_: Messages, answer: str) -> float:
    """A judge that never comes back, as far as anybody who waits is concerned."""
    time.sleep(20)
    return 0.0


def no_sky(prompt: Messages, answer: str) -> float:
    """It cannot judge what is asked of the sky."""
    if "sky" in prompt[-1].content:
        raise RuntimeError("no sky")
    return plain(prompt, answer)


class TooFew:
    """A judge that loses an answer."""

    id, kind, is_symmetric = "code:too-few", "code", True

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        return Ranking((1.0,) * (len(candidates) - 1), ())


too_few = TooFew()
