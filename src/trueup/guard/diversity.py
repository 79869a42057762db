"""Does the candidate still say different things? To one prompt, and to different ones.

A policy that collapsed gives every sample of a prompt alike; one that found a canned answer gives
different prompts the same. Both are held against the champion on the same prompts: no paper has a
threshold that holds for every product.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from trueup.guard.answers import Answers
from trueup.judges import text

__all__ = [
    "distinct",
    "duplicates",
    "extra_answers",
    "most_common_opening",
    "opening_rate",
    "same_answer_rate",
    "self_similarity",
    "vendi",
]

NEAR = 0.9
"""Cosine from which two answers count as near-duplicates."""

OPENING_WORDS = 4


def vendi(vectors_ND: np.ndarray) -> float:
    """The effective number of different texts among N, in [1, N].

        exp(-sum_i l_i log l_i),   l the eigenvalues of K / N,  K_ij = the cosine of i and j

    Friedman & Dieng 2023, arXiv:2210.02410, Eq. 1. N times the same text is 1; N texts that share
    nothing are N.

    Args:
        vectors_ND: vectors of length 1.
    """
    n, d = vectors_ND.shape
    x = np.asarray(vectors_ND, np.float64)
    # x x^T and x^T x have the same eigenvalues but for zeros; the smaller one is quicker
    kernel = (x @ x.T if n <= d else x.T @ x) / n
    values = np.linalg.eigvalsh(kernel)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def extra_answers(vectors_PND: Sequence[np.ndarray]) -> list[float]:
    """For each prompt how many further answers its samples hold: their Vendi score less 1, in
    [0, N - 1]. The ratio of two models' is 0 for one that always says the same, whatever N."""
    return [vendi(one) - 1.0 for one in vectors_PND]


def self_similarity(vectors_ND: np.ndarray) -> float | None:
    """Mean cosine over pairs of answers to different prompts; None for fewer than two."""
    n = len(vectors_ND)
    if n < 2:
        return None
    x = np.asarray(vectors_ND, np.float64)
    own = float((x * x).sum())
    return (float(x.sum(0) @ x.sum(0)) - own) / (n * (n - 1))


def distinct(texts: Sequence[str], n: int = 2) -> float | None:
    """Different n-grams of words over all of them (Li et al. 2016, arXiv:1510.03055), in (0, 1];
    None where there is none. It falls with length as such: read it beside the length."""
    grams = Counter[tuple[str, ...]]()
    for one in texts:
        said = text.words(one)
        grams.update(zip(*(said[at:] for at in range(n)), strict=False))
    return len(grams) / grams.total() if grams else None


def opening_rate(texts: Sequence[str]) -> float:
    """Share of answers that begin with the most common four words."""
    found = Counter(map(_opening, texts))
    return max(found.values(), default=0) / len(texts) if texts else 1.0


def most_common_opening(texts: Sequence[str]) -> str:
    """Those four words; empty where nothing is said."""
    found = Counter(map(_opening, texts)).most_common(1)
    return " ".join(found[0][0]) if found else ""


def _opening(said: str) -> tuple[str, ...]:
    return tuple(text.words(said)[:OPENING_WORDS])


def same_answer_rate(answers: Answers) -> float:
    """Share of prompts that received the most common answer, words alone compared."""
    given = Counter[tuple[str, ...]]()
    for group in answers:
        given.update({tuple(text.words(c.text)) for c in group})
    return max(given.values()) / len(answers) if given else 1.0


def duplicates(vectors_ND: np.ndarray) -> list[int]:
    """The largest set of near-duplicates: an answer and all that are within a cosine of 0.9 of it.

    A star, not a chain: where a is near b and b near c, a and c need not be alike.

    Returns:
        Places of its members, the centre among them; empty for no answers.
    """
    if not len(vectors_ND):
        return []
    x = np.asarray(vectors_ND, np.float64)
    near_NN = x @ x.T >= NEAR
    np.fill_diagonal(near_NN, True)
    return [int(i) for i in np.flatnonzero(near_NN[int(near_NN.sum(1).argmax())])]
