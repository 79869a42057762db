"""Are this week's prompts still last week's?

A candidate is measured on held-out prompts that were written once; where traffic moves on, it is
measured on yesterday's.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from trueup.models.embedder import Embedder
from trueup.records import Interaction, Messages, Value
from trueup.shift.config import ShiftConfig
from trueup.shift.two_sample import classifier_test, mmd

__all__ = ["PromptDrift", "WeekDrift", "prompt_drift", "weekly_drift"]

MOST = 300  # prompts a window


class PromptDrift(Value):
    """The newest prompts against those before them."""

    num_newest: int
    num_before: int
    auc: float
    auc_low: float
    auc_high: float
    mmd_p_value: float


class WeekDrift(Value):
    """A week's prompts against those of the week before."""

    monday: str
    num_interactions: int
    drift: PromptDrift | None
    """None where either week has fewer than ten different prompts."""


def prompt_drift(
    interactions: Iterable[Interaction], embedder: Embedder, config: ShiftConfig
) -> PromptDrift | None:
    """Hold the prompts of the newest `window_days` against those of as many days before.

    Returns:
        None where either window has fewer than ten different prompts.
    """
    return _compare(*_windows(interactions, timedelta(days=config.window_days)), embedder, config)


def weekly_drift(
    interactions: Iterable[Interaction], embedder: Embedder, config: ShiftConfig, *, weeks: int
) -> list[WeekDrift]:
    """The newest weeks of the traffic, oldest first, each held against the week before it. Weeks
    begin on Monday, UTC; those without any traffic are in between."""
    asked: dict[date, list[Messages]] = {}
    for one in interactions:
        day = datetime.fromisoformat(one.created_at).astimezone(UTC).date()
        asked.setdefault(day - timedelta(days=day.weekday()), []).append(one.prompt)
    if not asked:
        return []
    first, last = min(asked), max(asked)
    mondays = [first + timedelta(weeks=n) for n in range((last - first).days // 7 + 1)][-weeks:]
    return [
        WeekDrift(
            monday=str(monday),
            num_interactions=len(asked.get(monday, ())),
            drift=_compare(
                _questions(asked.get(monday, ())),
                _questions(asked.get(monday - timedelta(weeks=1), ())),
                embedder,
                config,
            ),
        )
        for monday in mondays
    ]


def _compare(
    newest: list[str], before: list[str], embedder: Embedder, config: ShiftConfig
) -> PromptDrift | None:
    told = classifier_test(newest, before, embedder, seed=config.seed)
    if told is None:
        return None
    gap = mmd(
        embedder(newest), embedder(before), permutations=config.permutations, seed=config.seed
    )
    assert gap is not None, "there are ten each"
    return PromptDrift(
        num_newest=len(newest),
        num_before=len(before),
        auc=told.auc.estimate,
        auc_low=told.auc.low,
        auc_high=told.auc.high,
        mmd_p_value=gap.p_value,
    )


def _windows(interactions: Iterable[Interaction], window: timedelta) -> tuple[list[str], list[str]]:
    """Different questions of either window, at most 300 of each, in the order of their texts."""
    asked = [(datetime.fromisoformat(one.created_at), one.prompt) for one in interactions]
    if not asked:
        return [], []
    end = max(when for when, _ in asked)
    newest = _questions(prompt for when, prompt in asked if when > end - window)
    before = _questions(prompt for when, prompt in asked if end - 2 * window < when <= end - window)
    return newest, before


def _questions(prompts: Iterable[Messages]) -> list[str]:
    found = {_question(one) for one in prompts}
    return sorted(found)[:: max(1, len(found) // MOST)][:MOST]


def _question(prompt: Messages) -> str:
    return next((m.content for m in reversed(prompt) if m.role == "user"), "")
