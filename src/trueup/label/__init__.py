"""Stage three: which of several answers is better, and who says so."""

from trueup.label.config import LabelConfig
from trueup.label.run import run

__all__ = ["LabelConfig", "run"]
