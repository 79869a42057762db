"""What is hidden before it is written, and how long the rest is kept."""

from typing import Literal

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["PrivacyConfig"]


class PrivacyConfig(StageConfig):
    """Personal data: scrubbed from texts, pseudonyms for users, kept for a time."""

    scrubber: Literal["patterns", "presidio", "off"] = "patterns"
    """What finds personal data in the texts of traffic and imports. `patterns`: e-mail addresses,
    telephone, card and account numbers, US social security numbers, IP addresses, keys and tokens,
    passwords in URLs. `presidio`: those, and the names and places that Microsoft Presidio finds
    (extra `presidio`, and a language model of spaCy)."""

    presidio_model: str = "en_core_web_lg"
    """The spaCy model of `presidio`: a package that is installed on this machine, or a folder."""

    pseudonyms: bool = True
    """Keep a keyed hash in place of a user's id. The key is random, one a tenant; `trueup erase`
    still takes the id itself."""

    retain_days: float | None = Field(default=None, gt=0)
    """Traffic older than this is erased, with all that was made of it, when a turn starts. Unset
    keeps it."""
