"""Are this week's prompts still last week's?

A candidate is measured on held-out prompts that were written once; where traffic moves on, it is
measured on yesterday's.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from trueup.models.embedder import Embedder
from trueup.records import Interaction, Messages, Value
from trueup.shift.config import ShiftConfig
from trueup.shift.two_sample import classifier_test, mmd

__all__ = ["PromptDrift", "prompt_drift"]

MOST = 300  # prompts a window


class PromptDrift(Value):
    """The newest prompts against those before them."""

    num_newest: int
    num_before: int
    auc: float
    auc_low: float
    auc_high: float
    mmd_p_value: float


def prompt_drift(
    interactions: Iterable[Interaction], embedder: Embedder, config: ShiftConfig
) -> PromptDrift | None:
    """Hold the prompts of the newest `window_days` against those of as many days before.

    Returns:
        None where either window has fewer than ten different prompts.
    """
    newest, before = _windows(interactions, timedelta(days=config.window_days))
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
