"""Stage two: which interactions are worth a label."""

from trueup.flag.config import FlagConfig, SelectConfig
from trueup.flag.keeping import Trained, retrain, train
from trueup.flag.run import FLAGGER, Examined, Parts, run
from trueup.flag.select import weak_share

__all__ = [
    "FLAGGER",
    "Examined",
    "FlagConfig",
    "Parts",
    "SelectConfig",
    "Trained",
    "retrain",
    "run",
    "train",
    "weak_share",
]
