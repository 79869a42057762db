"""Stage six: has the candidate hacked, collapsed or run away?"""

from trueup.guard.config import GuardConfig
from trueup.guard.refusals import read_refusal_prompts
from trueup.guard.run import Beside, run, settings

__all__ = ["Beside", "GuardConfig", "read_refusal_prompts", "run", "settings"]
