"""Stage nine: the champion changes, or does not, on the record."""

from trueup.promote.config import PromoteConfig
from trueup.promote.run import reports_for, rollback, run

__all__ = ["PromoteConfig", "reports_for", "rollback", "run"]
