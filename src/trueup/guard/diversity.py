"""Does the candidate still say different things? To one prompt, and to different ones.

A policy that collapsed gives every sample of a prompt alike; one that found a canned answer gives
different prompts the same. Both are held against the champion on the same prompts: no paper has a
threshold that holds for every product.
"""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from trueup.guard.answers import Answers
from trueup.judges import text

__all__ = [
    "answers_given",
    "distinct",
    "duplicates",
    "extra_answers",
    "kernel",
    "most_common_opening",
    "most_common_rate",
    "openings",
    "same_answer_rate",
    "self_similarity",
    "vendi",
]

NEAR = 0.9
"""Cosine from which two answers count as near-duplicates."""

OPENING_WORDS = 4


def kernel(vectors_ND: np.ndarray) -> np.ndarray:
    """Cosines of N vectors of length 1 with each other, (N, N)."""
    x = np.asarray(vectors_ND, np.float64)
    return x @ x.T


def vendi(kernel_NN: np.ndarray) -> float:
    """The effective number of different texts among N, in [1, N].

        exp(-sum_i l_i log l_i),   l the eigenvalues of K / N,  K_ij = the cosine of i and j

    Friedman & Dieng 2023, arXiv:2210.02410, Eq. 1. N times the same text is 1; N texts that share
    nothing are N.

    Args:
        kernel_NN: see `kernel`; any part of it over some texts is that of those texts.
    """
    values = np.linalg.eigvalsh(kernel_NN / len(kernel_NN))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def extra_answers(vectors_PND: Sequence[np.ndarray]) -> list[float]:
    """For each prompt how many further answers its samples hold: their Vendi score less 1, in
    [0, N - 1]. The ratio of two models' is 0 for one that always says the same, whatever N."""
    return [max(0.0, vendi(kernel(one)) - 1.0) for one in vectors_PND]


def self_similarity(kernel_NN: np.ndarray) -> float | None:
    """Mean cosine over pairs of answers to different prompts; None for fewer than two."""
    n = len(kernel_NN)
    if n < 2:
        return None
    return float(kernel_NN.sum() - np.trace(kernel_NN)) / (n * (n - 1))


def distinct(said: Sequence[Sequence[str]], n: int = 2) -> float | None:
    """Different n-grams of words over all of them (Li et al. 2016, arXiv:1510.03055), in (0, 1];
    None where there is none. It falls with length as such: read it beside the length.

    Args:
        said: each text as its words.
    """
    grams = Counter[tuple[str, ...]]()
    for words in said:
        grams.update(zip(*(words[at:] for at in range(n)), strict=False))
    return len(grams) / grams.total() if grams else None


def most_common_rate(given: Sequence[Collection[tuple[str, ...]]]) -> float:
    """Share of prompts that got the most common of all things given; 1 where nothing was given.

    Args:
        given: for each prompt the different things it got, see `openings` and `answers_given`.
    """
    found = Counter(one for things in given for one in set(things))
    return max(found.values()) / len(given) if found else 1.0


def openings(texts: Sequence[str]) -> list[list[tuple[str, ...]]]:
    """The first four words of each text."""
    return [[tuple(text.words(one)[:OPENING_WORDS])] for one in texts]


def most_common_opening(texts: Sequence[str]) -> str:
    """The four words that most texts begin with; empty where nothing is said."""
    found = Counter(one for (one,) in openings(texts)).most_common(1)
    return " ".join(found[0][0]) if found else ""


def answers_given(answers: Answers) -> list[set[tuple[str, ...]]]:
    """For each prompt its different answers, as words alone."""
    return [{tuple(text.words(c.text)) for c in group} for group in answers]


def same_answer_rate(answers: Answers) -> float:
    """Share of prompts that received the most common answer, words alone compared."""
    return most_common_rate(answers_given(answers))


def duplicates(kernel_NN: np.ndarray) -> list[int]:
    """The largest set of near-duplicates: an answer and all that are within a cosine of 0.9 of it.

    A star, not a chain: where a is near b and b near c, a and c need not be alike.

    Returns:
        Places of its members, the centre among them; empty for no answers.
    """
    if not len(kernel_NN):
        return []
    near_NN = kernel_NN >= NEAR
    np.fill_diagonal(near_NN, True)
    return [int(i) for i in np.flatnonzero(near_NN[int(near_NN.sum(1).argmax())])]
