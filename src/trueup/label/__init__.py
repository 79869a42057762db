"""Stage three: which of several answers is better, and who says so."""

from trueup.label.config import PEOPLE, LabelConfig
from trueup.label.run import run
from trueup.label.settle import Settled, settle
from trueup.label.weigh import Weighed, weigh

__all__ = ["PEOPLE", "LabelConfig", "Settled", "Weighed", "run", "settle", "weigh"]
