"""Stage five: a data set and a champion become a candidate."""

from trueup.train.config import DPOConfig
from trueup.train.run import run

__all__ = ["DPOConfig", "run"]
