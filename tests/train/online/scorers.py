"""Rewards that runs name as `scorers:…`; one can end its process, others fail on purpose."""

import asyncio
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from trueup.judges import Ranking
from trueup.records import AnnotatorKind, Completion, Messages

DIE_AFTER = "TRUEUP_TEST_DIE_AFTER"
"""Name of the variable that says which score the process does not survive."""
BROKEN = "TRUEUP_TEST_BROKEN"
"""Name of the variable that says from which score on, counted from when it was set, all fail."""


class _Count:
    """Scores given in this process, and since the reward was to break."""

    all, until_broken = 0, 0


_lock = threading.Lock()


def _counted() -> None:
    with _lock:
        _Count.all += 1
        if _Count.all == int(os.environ.get(DIE_AFTER, "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        if BROKEN not in os.environ:
            _Count.until_broken = 0
            return
        _Count.until_broken += 1
        if _Count.until_broken >= int(os.environ[BROKEN]):
            raise RuntimeError("the tests do not compile")


def starts_with_um(prompt: Messages, text: str) -> float:
    """1 for what a third of the taught answers begin with."""
    _counted()
    return float(text.startswith("um"))


def a_hundred_for_um(prompt: Messages, text: str) -> float:
    return 100 * starts_with_um(prompt, text) + 700


def breaks_later(prompt: Messages, text: str) -> float:
    return starts_with_um(prompt, text)


def same_for_all(prompt: Messages, text: str) -> float:
    _counted()
    return 0.1


def number_of_the_thing(prompt: Messages, text: str) -> float:
    """NaN for every prompt about snow."""
    _counted()
    return math.nan if "snow" in prompt[-1].content else float(text.startswith("um"))


def for_ever(prompt: Messages, text: str) -> float:
    if "snow" in prompt[-1].content:
        time.sleep(600)
    return float(text.startswith("um"))


class _Own:
    """A team's own judge; what it says of the answers is up to those below."""

    kind: AnnotatorKind = "code"
    is_symmetric = True

    @property
    def id(self) -> str:
        return f"code:{type(self).__name__}/1"

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        scores = tuple(float(one.text.startswith("um")) for one in candidates)
        return Ranking(scores, tuple(() for _ in scores))


class TooFew(_Own):
    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        return Ranking((1.0,), ((),))


class Nothings(_Own):
    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        return Ranking((None,) * len(candidates), ())  # type: ignore[arg-type]


class Sleeper(_Own):
    """Does not return before it is woken."""

    wake = threading.Event()

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        self.wake.wait(600)
        return super().rank(prompt, candidates)


class Quitter(_Own):
    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        sys.exit("enough")


class Cancelled(_Own):
    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        raise asyncio.CancelledError


class Absurd(_Own):
    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        return Ranking((1e300,) * len(candidates), ((),) * len(candidates))


class Steps(_Own):
    """Worth 0.25 after the first token, and the score at the end."""

    def step_scores(
        self, prompt: Messages, candidates: Sequence[Completion]
    ) -> list[list[tuple[int, float]]]:
        scores = self.rank(prompt, candidates).scores
        return [
            [(0, 0.25), (len(one.token_ids or ()) - 1, score)]
            for one, score in zip(candidates, scores, strict=True)
        ]


class StepsOutside(Steps):
    def step_scores(
        self, prompt: Messages, candidates: Sequence[Completion]
    ) -> list[list[tuple[int, float]]]:
        return [[(99, 0.5)] for _ in candidates]
