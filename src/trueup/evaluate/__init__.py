"""Stage seven: what must not be forgotten."""

from trueup.evaluate.ceiling import Ceiling, ceiling
from trueup.evaluate.config import EvaluateConfig
from trueup.evaluate.gold import GoldItem, read_gold
from trueup.evaluate.run import run, settings

__all__ = ["Ceiling", "EvaluateConfig", "GoldItem", "ceiling", "read_gold", "run", "settings"]
