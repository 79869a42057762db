"""Judges and scorers: who says which answer is better."""

from trueup.judges.base import Judge, Outcome, Ranking, compare, signature, version_of
from trueup.judges.config import EndpointConfig
from trueup.judges.panel import members_of
from trueup.judges.resolve import resolve

__all__ = [
    "EndpointConfig",
    "Judge",
    "Outcome",
    "Ranking",
    "compare",
    "members_of",
    "resolve",
    "signature",
    "version_of",
]
