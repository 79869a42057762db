"""Stage seven: what must not be forgotten."""

from trueup.evaluate.ceiling import Ceiling, ceiling
from trueup.evaluate.config import EvaluateConfig
from trueup.evaluate.formats import GoldSet, read_set, sampled
from trueup.evaluate.gold import GoldItem, read_gold
from trueup.evaluate.gold_judge import gold_judge
from trueup.evaluate.measure import Measured, Standing, measure
from trueup.evaluate.run import run, settings

__all__ = [
    "Ceiling",
    "EvaluateConfig",
    "GoldItem",
    "GoldSet",
    "Measured",
    "Standing",
    "ceiling",
    "gold_judge",
    "measure",
    "read_gold",
    "read_set",
    "run",
    "sampled",
    "settings",
]
