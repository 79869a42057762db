"""A few vectors that stand for many: each next one is the furthest from those taken."""

import numpy as np

__all__ = ["diverse"]


def diverse(vectors_ND: np.ndarray, k: int, *, taken_ND: np.ndarray | None = None) -> list[int]:
    """Places of k unit vectors that cover all, in the order they were taken; fewer where there are
    fewer.

    Farthest-point greedy for the k-centre problem (Gonzalez 1985, Theor. Comput. Sci. 38): the
    largest distance of any vector to its nearest one taken is at most twice the least possible.
    Without `taken_ND` the first is the one nearest to the mean. Ties go to the lower place. It
    reaches for the fringe: a random slice beside it keeps estimates honest.

    Args:
        vectors_ND: each of length 1.
        taken_ND: vectors that count as taken already.
    """
    n = len(vectors_ND)
    if n == 0 or k <= 0:
        return []
    x = np.asarray(vectors_ND, np.float32)
    if taken_ND is not None and len(taken_ND):
        nearest = (x @ np.asarray(taken_ND, np.float32).T).max(axis=1)
        picked: list[int] = []
    else:
        picked = [int(np.argmax(x @ x.mean(axis=0)))]
        nearest = x @ x[picked[0]]
        nearest[picked[0]] = np.inf
    while len(picked) < min(k, n):
        furthest = int(np.argmin(nearest))
        picked.append(furthest)
        nearest = np.maximum(nearest, x @ x[furthest])
        nearest[picked] = np.inf  # of equal vectors each is taken once
    return picked[:k]
