"""Many people's labels of many items, each weighed by how well they turn out to know.

    L = sum_items log sum_k p_k  prod_votes  pi_a[k, vote]        (Dawid & Skene 1979, Eq. 2.7)

`p_k` is how common class k is, `pi_a[k, j]` how often annotator a says j where k is true. EM climbs
L + the log of a Dirichlet prior; each step raises that sum or leaves it. Departures from the paper:
the prior, without which an annotator with three votes gets a confusion matrix of zeros and ones
(Paun et al. 2018, TACL, on sparse annotators); items whose class is known beforehand; and `mirror`,
which ties what must be equal where the two sides of a comparison are shown in random order.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["DawidSkene", "Vote", "dawid_skene"]


class Vote(NamedTuple):
    """One annotator's label of one item, all by number."""

    item: int
    annotator: int
    label: int


class DawidSkene(NamedTuple):
    """What EM ended with."""

    posterior: np.ndarray
    """Probability of each class, shape (items, classes)."""
    prior: np.ndarray
    """How common each class is, shape (classes,)."""
    confusion: np.ndarray
    """Shape (annotators, classes, classes): row the true class, column what was said."""
    objective: tuple[float, ...]
    """Log-likelihood plus log prior (less its constant), in nats, before each step and at the
    end; it never falls."""
    is_converged: bool

    def accuracy(self) -> np.ndarray:
        """How often each annotator is right on items as common as these, shape (annotators,)."""
        return np.einsum("k,akk->a", self.prior, self.confusion)


def dawid_skene(
    votes: Sequence[Vote],
    num_classes: int,
    *,
    known: Mapping[int, int] | None = None,
    mirror: Sequence[int] | None = None,
    strength: float = 4.0,
    diagonal: float = 0.8,
    max_steps: int = 500,
    tolerance: float = 1e-7,
) -> DawidSkene:
    """Classes of items and confusion matrices of annotators, by EM from the shares of votes.

    Args:
        known: items whose class is known beforehand.
        mirror: a permutation of the classes that changes nothing but names, such as swapping
            `first` and `second` where annotators saw the sides in random order. Parameters that
            it maps onto each other are one parameter.
        strength: votes that the prior on each row of a confusion matrix is worth; 0 is maximum
            likelihood.
        diagonal: share of them on the right answer: what an annotator is held to be before the
            first vote.
        tolerance: the rise in nats an item below which EM ends.
    """
    item, annotator, label = (np.array(side, int) for side in zip(*votes, strict=True))
    num_items = max(int(item.max()), *(known or {0: 0})) + 1
    num_annotators = int(annotator.max()) + 1
    extra = _pseudo_votes(num_classes, strength, diagonal)
    common = np.full(num_classes, 1.0 if strength else 0.0)
    flip = None if mirror is None else np.array(mirror, int)
    fixed = sorted((known or {}).items())

    posterior = np.zeros((num_items, num_classes))
    np.add.at(posterior, (item, label), 1.0)
    posterior += np.where(posterior.sum(axis=1, keepdims=True), 0.0, 1.0)
    posterior /= posterior.sum(axis=1, keepdims=True)
    for one, known_class in fixed:
        posterior[one] = np.eye(num_classes)[known_class]

    steps: list[float] = []
    is_converged = False
    while True:
        # M: shares of classes, and of what each annotator said where a class is true
        prior = _tied(posterior.sum(axis=0) + common, flip)
        prior /= prior.sum()
        counts = np.zeros((num_annotators, num_classes, num_classes))
        np.add.at(counts.transpose(0, 2, 1), (annotator, label), posterior[item])
        confusion = _normalized(_tied(counts + extra, flip))

        # E: classes of items, given those
        with np.errstate(divide="ignore"):
            log_prior, log_confusion = np.log(prior), np.log(confusion)
        joint = np.tile(log_prior, (num_items, 1))
        np.add.at(joint, item, log_confusion[annotator, :, label])
        for one, known_class in fixed:
            joint[one, np.arange(num_classes) != known_class] = -np.inf
        top = joint.max(axis=1, keepdims=True)
        likelihood = np.exp(joint - top)
        evidence = top[:, 0] + np.log(likelihood.sum(axis=1))
        posterior = likelihood / likelihood.sum(axis=1, keepdims=True)

        steps.append(
            float(evidence.sum())
            + float(_times_log(common, log_prior))
            + float(_times_log(np.broadcast_to(extra, confusion.shape), log_confusion))
        )
        is_converged = len(steps) > 1 and steps[-1] - steps[-2] <= tolerance * num_items
        if is_converged or len(steps) > max_steps:
            return DawidSkene(posterior, prior, confusion, tuple(steps), is_converged)


def _pseudo_votes(num_classes: int, strength: float, diagonal: float) -> np.ndarray:
    """What each confusion matrix is given before the first vote, shape (classes, classes)."""
    off = strength * (1 - diagonal) / (num_classes - 1)
    return np.where(np.eye(num_classes) > 0, strength * diagonal, off)


def _tied(counts: np.ndarray, flip: np.ndarray | None) -> np.ndarray:
    """Counts of classes, or of classes and labels, with mirror images averaged."""
    if flip is None:
        return counts
    image = counts[flip] if counts.ndim == 1 else counts[:, flip][:, :, flip]
    return (counts + image) / 2


def _normalized(counts: np.ndarray) -> np.ndarray:
    """Rows as shares; a row that nothing was counted in says nothing, equally."""
    totals = counts.sum(axis=-1, keepdims=True)
    return np.where(totals > 0, counts / np.where(totals > 0, totals, 1), 1 / counts.shape[-1])


def _times_log(weights: np.ndarray, logs: np.ndarray) -> float:
    """The sum of products in which 0 times minus infinity is 0."""
    return float((weights[weights > 0] * logs[weights > 0]).sum())
