"""Stage four: labels become preference pairs, pairs become a frozen data set."""

from trueup.pair.config import PairConfig
from trueup.pair.decontaminate import HeldOut
from trueup.pair.run import Paired, freeze, new_pairs, run, unpaired

__all__ = ["HeldOut", "PairConfig", "Paired", "freeze", "new_pairs", "run", "unpaired"]
