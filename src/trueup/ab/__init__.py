"""Stage eight: head-to-head with the champion."""

from trueup.ab.config import ABConfig
from trueup.ab.human import HumanView, human_view
from trueup.ab.run import check_scorer, run, settings
from trueup.ab.sequence import LedgerRow, ledger_rows

__all__ = [
    "ABConfig",
    "HumanView",
    "LedgerRow",
    "check_scorer",
    "human_view",
    "ledger_rows",
    "run",
    "settings",
]
