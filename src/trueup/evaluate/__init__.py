"""Stage seven: what must not be forgotten."""

from trueup.evaluate.config import EvaluateConfig
from trueup.evaluate.gold import GoldItem, read_gold
from trueup.evaluate.run import run, settings

__all__ = ["EvaluateConfig", "GoldItem", "read_gold", "run", "settings"]
