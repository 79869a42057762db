"""What is asked again and again, in nearly the same words.

Exact, and with a matrix product for a block of rows at a time. Most pairs are far apart, which a
few of their numbers tell: with a and b the parts of two vectors along the directions in which the
vectors vary most, and |r| and |s| the lengths of what is left of each, their cosine is at most
a·b + |r| |s| (Cauchy and Schwarz). Only pairs whose bound reaches the threshold are compared whole.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trueup import progress
from trueup.vectors.index import EVERYTHING, Filter, Index

__all__ = ["NEARLY_SAME", "Group", "duplicates"]

NEARLY_SAME = 0.95
"""Cosine from which two prompts are one question; all-MiniLM gives rewordings 0.9 and more."""

BLOCK = 256  # rows that look for others at once
TILE = 32_768  # rows they are held against at once: 34 MB
DIRECTIONS = 32  # of the bound
SAMPLE = 10_000  # rows that tell the directions
ROUNDING = 1e-5  # of a cosine in float32; equal texts are equal at a threshold of 1


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

    Cost: memory for all vectors that the filter lets through, and for n rows that are not copies
    n**2 products of `DIRECTIONS` numbers: under a minute for 100,000 rows.
    """
    rows, vectors = index.read(where)
    first, cosines = _firsts(vectors, threshold - ROUNDING)
    order = np.lexsort((np.arange(len(rows)), -cosines, first))
    starts = np.flatnonzero(np.diff(first[order], prepend=-1))
    groups = []
    for at in np.split(order, starts[1:]) if len(rows) else ():
        if len(at) > 1:  # the oldest has a cosine above all others', and so comes first
            ids = tuple(rows[place].id for place in at)
            groups.append(Group(ids, float(min(1.0, cosines[at[-1]]))))
    return sorted(groups, key=lambda group: -len(group.ids))


def _firsts(vectors_ND: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the oldest of its group, itself where it is that, and the cosine to it, which of
    the oldest to itself is infinite. Rows are ordered by age."""
    n = len(vectors_ND)
    sizes = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    x = vectors_ND / np.where(sizes > 0, sizes, 1)
    first, cosines = np.full(n, -1), np.full(n, np.inf)
    low = _bounding(x)
    with progress.task("comparing", n) as advance:
        for done, block in _blocks(first):
            advance(done)
            _within(x, block, threshold, first, cosines)
            heads = block[first[block] == block]
            for at in range(int(block[-1]) + 1, n, TILE):
                end = min(at + TILE, n)
                might = (low[heads] @ low[at:end].T).max(axis=0) >= threshold
                near = at + np.flatnonzero(might & (first[at:end] < 0))
                exact = x[heads] @ x[near].T
                oldest = (exact >= threshold).argmax(axis=0)
                cosine = exact[oldest, np.arange(len(near))]
                is_near = cosine >= threshold
                first[near[is_near]] = heads[oldest[is_near]]
                cosines[near[is_near]] = cosine[is_near]
    return first, cosines


def _blocks(first_N: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The next rows that are in no group yet, and how many rows were passed over or are in the
    block: until all are in a group."""
    at = 0
    while at < len(first_N):
        free = at + np.flatnonzero(first_N[at : at + TILE] < 0)[:BLOCK]
        end = int(free[-1]) + 1 if len(free) == BLOCK else min(at + TILE, len(first_N))
        if len(free):
            yield end - at, free
        at = end


def _within(
    x_ND: np.ndarray, block: np.ndarray, threshold: float, first: np.ndarray, cosines: np.ndarray
) -> None:
    """Groups among the rows of a block."""
    near = x_ND[block] @ x_ND[block].T
    for n, place in enumerate(block):
        if first[place] < 0:
            first[place] = place
            later = slice(n + 1, None)
            mine = n + 1 + np.flatnonzero((near[n, later] >= threshold) & (first[block[later]] < 0))
            first[block[mine]], cosines[block[mine]] = place, near[n, mine]


def _bounding(x_ND: np.ndarray) -> np.ndarray:
    """Vectors of few numbers whose dot products are nowhere below the cosines of the whole ones."""
    n, size = x_ND.shape
    if n <= 4 * BLOCK or size <= 2 * DIRECTIONS:
        return x_ND
    sample = x_ND[:: max(1, n // SAMPLE)].astype(np.float64)
    _, directions = np.linalg.eigh(sample.T @ sample)
    a = x_ND @ directions[:, -DIRECTIONS:].astype(np.float32)
    left = np.sqrt(np.maximum(0, (x_ND**2).sum(axis=1) - (a**2).sum(axis=1)))
    return np.hstack([a, left[:, None]])
