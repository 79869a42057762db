"""Stage nine: the champion changes, or does not, on the record."""

from trueup.promote.approve import approve
from trueup.promote.config import PromoteConfig
from trueup.promote.cumulative import Anchor, Standing, chain, standings
from trueup.promote.run import reports_for, rollback, run

__all__ = [
    "Anchor",
    "PromoteConfig",
    "Standing",
    "approve",
    "chain",
    "reports_for",
    "rollback",
    "run",
    "standings",
]
