"""Which interactions go to people besides the weak-looking ones, and what a random slice tells.

`random` draws each interaction by a hash of its id, whatever its score: its labels, and they alone,
give a rate over all traffic. `uncertain` takes those just under the threshold, where a label
teaches a flagger most; `diverse` takes what is unlike everything selected, farthest point first
(Gonzalez 1985; the core-sets of Sener & Savarese 2018, arXiv:1708.00489).
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from trueup.flag.config import SelectConfig
from trueup.flag.truth import truths
from trueup.records import Flag, Interaction
from trueup.stats import Interval, wilson_at
from trueup.store import Store

__all__ = ["INCLUSION", "SLICE", "farthest", "is_drawn", "select", "weak_share"]

INCLUSION, SLICE = "inclusion", "slice"
"""Keys of `Flag.signals`: the chance to be selected by any way, and that of the random slice."""

AT_ONCE = 256  # vectors that the others are held against in one product


def is_drawn(interaction_id: str, share: float) -> bool:
    """True for a share of all ids, the same ones each time."""
    digest = hashlib.sha256(f"slice {interaction_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def select(
    flags: Sequence[Flag],
    interactions: Sequence[Interaction],
    config: SelectConfig,
    vectors: Callable[[Sequence[Interaction]], np.ndarray] | None,
) -> list[Flag]:
    """The flags with everything selected raised, and why: `random`, `uncertain`, `diverse`.

    Args:
        interactions: of each flag.
        vectors: of prompts; without it, nothing is picked for being unlike the rest.
    """
    why: list[list[str]] = [[] for _ in flags]
    usable = [n for n, one in enumerate(interactions) if not one.error]
    drawn = {n for n in usable if is_drawn(flags[n].interaction_id, config.random)}
    for n in drawn:
        why[n].append("random")
    rest = [n for n in usable if not flags[n].raised]
    near = sorted(rest, key=lambda n: -flags[n].score)[: round(config.uncertain * len(flags))]
    for n in near:
        why[n].append("uncertain")
    count = round(config.diverse * len(flags))
    if count and vectors:
        taken = {n for n in usable if flags[n].raised or why[n]}
        picked = farthest(vectors(interactions), sorted(taken), set(usable) - taken, count)
        for n in picked:
            why[n].append("diverse")
    return [_told(flag, reasons, config) for flag, reasons in zip(flags, why, strict=True)]


def farthest(vectors_ND: np.ndarray, taken: Sequence[int], free: set[int], count: int) -> list[int]:
    """Up to `count` places of `free`, each the furthest from all that is taken by then."""
    left = np.array(sorted(free), int)
    x = vectors_ND[left]
    nearest = np.full(len(left), np.inf)
    for at in range(0, len(taken), AT_ONCE):
        near = x @ vectors_ND[list(taken[at : at + AT_ONCE])].T
        nearest = np.minimum(nearest, 1 - near.max(axis=1, initial=-np.inf))
    picked: list[int] = []
    while len(picked) < min(count, len(left)):
        best = int(np.argmax(nearest))
        picked.append(int(left[best]))
        nearest = np.minimum(nearest, 1 - x @ x[best])
        nearest[best] = -np.inf  # and stays so, under every minimum
    return picked


def _told(flag: Flag, reasons: list[str], config: SelectConfig) -> Flag:
    if not reasons:
        return flag
    is_sure = flag.raised or reasons != ["random"]
    signals = dict(flag.signals) | {INCLUSION: 1.0 if is_sure else config.random}
    if "random" in reasons:
        signals[SLICE] = config.random
    return Flag(
        interaction_id=flag.interaction_id,
        flagger=flag.flagger,
        score=flag.score,
        raised=True,
        reasons=(*flag.reasons, *reasons),
        signals=signals,
    )


def weak_share(store: Store) -> tuple[Interval | None, int, int]:
    """The share of weak answers in all examined traffic, how many of the random slice are labelled,
    and how many it holds.

        share = (sum of y / p) / (sum of 1 / p)     over the labelled slice, y 1 where weak

    Horvitz & Thompson 1952 with Hajek's denominator, p the chance of each to be in the slice, and
    Wilson's interval at Kish's effective number. It assumes that labels within the slice do not
    come first to the weak ones; labelled in full, it rests on nothing but the draw. Thumbs do not
    count: who is content seldom says so.
    """
    slices = {f.interaction_id: f.signals[SLICE] for f in store.each(Flag) if SLICE in f.signals}
    said = {key: weak for key, weak in truths(store, thumbs=False).items() if key in slices}
    if not said:
        return None, 0, len(slices)
    weights = np.array([1 / slices[key] for key in said])
    share = float(weights @ np.array(list(said.values()), float) / weights.sum())
    effective = float(weights.sum() ** 2 / (weights @ weights))
    return wilson_at(share, effective), len(said), len(slices)
