"""Decides whether a text answers a gold item.

A checker is a small JSON object stored with the item: `{"type": "numeric", "answer": 42}`. Each
type is one function here; `validate` finds a malformed checker when the gold set is loaded, long
before a model is asked anything.

Two promises. A checker that cannot decide says no: an ambiguous choice, an unreadable number or a
truncated function is a wrong answer, and an empty text passes nothing. And code written by a model
runs in `trueup.sandbox` only; without a sandbox the outcome is `None`, which is neither right nor
wrong, so a gate can refuse instead of guessing.
"""

from trueup.evaluate.checkers.check import CHECKERS, check
from trueup.evaluate.checkers.code import extract_code
from trueup.evaluate.checkers.fields import validate
from trueup.evaluate.checkers.ifeval import INSTRUCTIONS
from trueup.evaluate.checkers.outcome import Outcome, Part
from trueup.evaluate.checkers.rules import RULES

__all__ = [
    "CHECKERS",
    "INSTRUCTIONS",
    "RULES",
    "Outcome",
    "Part",
    "check",
    "extract_code",
    "validate",
]
