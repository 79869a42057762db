"""Privacy: what is hidden before it is written, and what is erased so that no byte is left."""

from trueup.privacy.config import PrivacyConfig
from trueup.privacy.erase import Erasure, Forget, erase_older, erase_user, resume, retain
from trueup.privacy.scrub import Scrub, Scrubber, scrub_text

__all__ = [
    "Erasure",
    "Forget",
    "PrivacyConfig",
    "Scrub",
    "Scrubber",
    "erase_older",
    "erase_user",
    "resume",
    "retain",
    "scrub_text",
]
