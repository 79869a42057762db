"""Stage five: a data set and a champion become a candidate."""

from trueup.train.config import ONLINE, TrainConfig
from trueup.train.merge import merge
from trueup.train.online.rewards import reward_judge
from trueup.train.run import run, unfinished

__all__ = ["ONLINE", "TrainConfig", "merge", "reward_judge", "run", "unfinished"]
