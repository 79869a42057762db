"""Privacy: what is hidden before it is written, and what is erased so that no byte is left."""

from trueup.privacy.config import PrivacyConfig
from trueup.privacy.scrub import scrubber

__all__ = ["PrivacyConfig", "scrubber"]
