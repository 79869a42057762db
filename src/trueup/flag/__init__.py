"""Stage two: which interactions are worth a label."""

from trueup.flag.config import FlagConfig, SelectConfig
from trueup.flag.run import FLAGGER, Examined, Parts, run

__all__ = ["FLAGGER", "Examined", "FlagConfig", "Parts", "SelectConfig", "run"]
