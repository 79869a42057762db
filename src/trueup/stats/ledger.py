"""What each gate of a sequence must show, so that few of the promotions are false in the long run.

A threshold that is right for one week is wrong for a year: 26 gates at p < 0.05 promote something
useless with probability 0.74 even if nothing was ever better. Online control of the false
discovery rate hands each gate a level that depends on its place and on the promotions so far; the
share of promotions that were none is at most `fdr` in expectation, at any time.

Pure functions over the sequence: the same history gives the same levels, so a ledger is replayed
from the reports that stand in it.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

__all__ = [
    "RULES",
    "Entry",
    "Rule",
    "discount",
    "elond_level",
    "evidence_needed",
    "lord_level",
    "replay",
]

Rule = Literal["e-lond", "lord++"]

ZETA_3_2 = 2.612375348685488
"""Sum of t^-3/2 over t = 1, 2, …"""


def discount(place: int) -> float:
    """The share of the error budget for the gate at `place`, 1, 2, …: t^-3/2 / zeta(3/2).

    Sums to 1. A steeper sequence asks less of the first gate and more of the hundredth; a flatter
    one the reverse. This one asks an e-value of 26 of the first gate at an fdr of 0.1.
    """
    return place**-1.5 / ZETA_3_2 if place >= 1 else 0.0


def elond_level(place: int, discoveries: Sequence[int], fdr: float) -> float:
    """e-LOND: the level of the gate at `place`; it discovers where its e-value is >= 1 / level.

        level_t = fdr * discount(t) * (discoveries before t + 1)

    Xu & Ramdas 2024, arXiv:2311.06412: controls the FDR however the e-values depend on each other,
    so weeks may share prompts. Each must be an e-value by itself: its mean is at most 1 where the
    candidate is not better.
    """
    return fdr * discount(place) * (sum(d < place for d in discoveries) + 1)


def lord_level(place: int, discoveries: Sequence[int], fdr: float) -> float:
    """LORD++: the level of the gate at `place`; it discovers where its p-value is <= level.

        level_t = discount(t) w0 + (fdr - w0) discount(t - t_1)
                  + fdr * sum over later discoveries t_j of discount(t - t_j),     w0 = fdr / 2

    Ramdas et al. 2017, arXiv:1710.00499. Each discovery gives budget back, so that a loop that
    keeps improving is asked for no more in week 50 than in week 5; the price is that p-values must
    be independent from week to week, which prompts that are used again are not.
    """
    before = sorted(d for d in discoveries if d < place)
    first = fdr / 2
    level = discount(place) * first
    if before:
        level += (fdr - first) * discount(place - before[0])
    return level + fdr * sum(discount(place - d) for d in before[1:])


RULES: dict[Rule, Callable[[int, Sequence[int], float], float]] = {
    "e-lond": elond_level,
    "lord++": lord_level,
}


def evidence_needed(rule: Rule, place: int, discoveries: Sequence[int], fdr: float) -> float:
    """The e-value, or one over the p-value, that the gate at `place` must show."""
    return 1 / RULES[rule](place, discoveries, fdr)


class Entry(NamedTuple):
    """One gate of the sequence."""

    place: int
    evidence: float
    needed: float
    discovered: bool


def replay(evidence: Sequence[float], *, rule: Rule = "e-lond", fdr: float = 0.1) -> list[Entry]:
    """The whole sequence, where whatever reaches its level is a discovery.

    Args:
        evidence: of each gate in order: an e-value, or one over a p-value for `lord++`.
    """
    entries: list[Entry] = []
    found: list[int] = []
    for place, value in enumerate(evidence, start=1):
        needed = evidence_needed(rule, place, found, fdr)
        entries.append(Entry(place, value, needed, value >= needed))
        if value >= needed:
            found.append(place)
    return entries
