"""Which traffic is kept: rules first, then a draw that always falls the same way."""

import hashlib
from fnmatch import fnmatchcase
from typing import Literal

from trueup.capture.config import CaptureConfig, CaptureRule
from trueup.records import Interaction

__all__ = ["Left", "fits", "why_left_out"]

Left = Literal["rate", "rule"]


def why_left_out(config: CaptureConfig, first: Interaction, route: str = "") -> Left | None:
    """Why the interactions of a request are not kept, or None where they are.

    Args:
        first: the first of them: they stand or fall together.
    """
    if _fits(config.never, first, route):
        return "rule"
    if config.rate == 1 or _fits(config.always, first, route):
        return None
    if config.always_errors and first.error:
        return None
    return None if _draw(config, first) < config.rate else "rate"


def fits(value: str, pattern: str) -> bool:
    """True where a pattern of `*` and `?` fits; every other letter stands for itself, `[` too."""
    return fnmatchcase(value, pattern.replace("[", "[[]"))


def _fits(rule: CaptureRule, one: Interaction, route: str) -> bool:
    asked = (
        (rule.tenants, one.tenant),
        (rule.users, one.user),
        (rule.models, one.model),
        (rule.routes, route),
    )
    return any(
        value and any(fits(value, pattern) for pattern in patterns)
        for patterns, value in asked
        if patterns
    )


def _draw(config: CaptureConfig, one: Interaction) -> float:
    """A number in [0, 1) that depends on nothing but the salt and whose request it is."""
    key = one.request_id or one.id
    if config.by == "user" and one.user:
        key = f"{one.tenant or ''}\0{one.user}"  # two tenants may both have a user 7
    elif config.by == "tenant" and one.tenant:
        key = one.tenant
    digest = hashlib.sha256((config.salt + key).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64
