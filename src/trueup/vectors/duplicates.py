"""What is asked again and again, in nearly the same words."""

from typing import NamedTuple

import numpy as np

from trueup import progress
from trueup.vectors.index import EVERYTHING, Filter, Index

__all__ = ["NEARLY_SAME", "Group", "duplicates"]

NEARLY_SAME = 0.95
"""Cosine from which two prompts are one question; all-MiniLM gives rewordings 0.9 and more."""

FIRST_LOOK = 16  # neighbours


class Group(NamedTuple):
    """Interactions that say nearly the same."""

    ids: tuple[str, ...]
    """The oldest first: it is the one that the others are near to; then the nearest first."""
    least: float
    """The lowest cosine to the oldest."""


def duplicates(
    index: Index, *, threshold: float = NEARLY_SAME, where: Filter = EVERYTHING
) -> list[Group]:
    """Groups of two and more, the largest first.

    The oldest interaction that is in no group yet gathers all that are near it and in no group:
    everyone in a group is near its oldest, so groups do not chain from one question to another.

    Cost: a search for every group and every interaction that stands alone, a few milliseconds
    each; no pair is compared outside the index.
    """
    rows, vectors = index.read(where)
    own = {row.id: place for place, row in enumerate(rows)}
    is_taken = np.zeros(len(rows), bool)
    groups = []
    with progress.task("comparing", len(rows)) as advance:
        for place, row in enumerate(rows):
            advance(1)
            if is_taken[place]:
                continue
            is_taken[place] = True
            near = [
                (hit.similarity, own[hit.id])
                for hit in _within(index, vectors[place], threshold, where)
                if hit.id in own and not is_taken[own[hit.id]]
            ]
            if near:
                is_taken[[one for _, one in near]] = True
                ids = (row.id, *(rows[one].id for _, one in near))
                groups.append(Group(ids, min(one for one, _ in near)))
    return sorted(groups, key=lambda group: -len(group.ids))


def _within(index: Index, vector_D: np.ndarray, threshold: float, where: Filter) -> list:
    """All hits from a similarity upwards, nearest first."""
    k = FIRST_LOOK
    while True:
        hits = index.search(vector_D, k, where)
        near = [hit for hit in hits if hit.similarity >= threshold]
        if len(near) < len(hits) or len(hits) < k:
            return near
        k *= 4
