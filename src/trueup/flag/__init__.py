"""Stage two: which interactions are worth a label."""

from trueup.flag.config import FlagConfig
from trueup.flag.run import run

__all__ = ["FlagConfig", "run"]
