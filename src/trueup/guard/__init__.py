"""Stage six: has the candidate hacked, collapsed or run away?"""

from trueup.guard.config import GuardConfig
from trueup.guard.run import run, settings

__all__ = ["GuardConfig", "run", "settings"]
