"""Stage six: has the candidate hacked, collapsed or run away?"""

from trueup.guard.config import GuardConfig
from trueup.guard.run import run

__all__ = ["GuardConfig", "run"]
