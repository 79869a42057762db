"""Distribution shift: are the answers in a data set still such as the model would write, and are
this week's prompts still last week's?

Training on answers that the policy would not write teaches it less and moves it further (Tang et
al. 2024, arXiv:2405.08448). Mean log-prob does not show it: a foreign, stronger writer can be as
likely as the model's own samples, token for token. Importance weights and a classifier do.
"""

from trueup.shift.config import ShiftConfig
from trueup.shift.measure import PairShift, Shift, advice, measure, warning
from trueup.shift.prompts import PromptDrift, WeekDrift, prompt_drift, weekly_drift

__all__ = [
    "PairShift",
    "PromptDrift",
    "Shift",
    "ShiftConfig",
    "WeekDrift",
    "advice",
    "measure",
    "prompt_drift",
    "warning",
    "weekly_drift",
]
