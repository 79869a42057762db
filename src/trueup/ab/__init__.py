"""Stage eight: head-to-head with the champion."""

from trueup.ab.config import ABConfig
from trueup.ab.run import check_scorer, run, settings

__all__ = ["ABConfig", "check_scorer", "run", "settings"]
