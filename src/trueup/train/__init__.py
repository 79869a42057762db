"""Stage five: a data set and a champion become a candidate."""

from trueup.train.config import TrainConfig
from trueup.train.run import run

__all__ = ["TrainConfig", "run"]
