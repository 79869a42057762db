"""Dawid & Skene 1979 against an independent slow version, planted truths, and a majority."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from trueup.stats.dawid_skene import Vote, dawid_skene

MIRROR = (1, 0, 2, 3)


def planted(
    accuracies: list[float], *, num_items: int = 400, rate: float = 0.7, seed: int = 0
) -> tuple[np.ndarray, list[Vote]]:
    """True classes, and votes of annotators who are right so often and err evenly."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, num_items, p=[0.35, 0.35, 0.2, 0.1])
    votes = [
        Vote(i, a, int(t) if rng.random() < p else int(rng.choice([k for k in range(4) if k != t])))
        for a, p in enumerate(accuracies)
        for i, t in enumerate(truth)
        if rng.random() < rate or a == 0
    ]
    return truth, votes


def slow(votes: list[Vote], k: int, steps: int) -> tuple[list[list[float]], list[float]]:
    """Maximum likelihood by the letter of the paper: dictionaries and loops, no prior. Posteriors
    after so many steps, and the log-likelihood before each."""
    items, people = sorted({v.item for v in votes}), sorted({v.annotator for v in votes})
    posterior = {}
    for i in items:
        said = [v.label for v in votes if v.item == i]
        posterior[i] = [said.count(c) / len(said) for c in range(k)]
    found = []
    for _ in range(steps):
        p = [sum(posterior[i][c] for i in items) / len(items) for c in range(k)]
        pi: dict[int, list[list[float]]] = {}
        for a in people:
            own = [v for v in votes if v.annotator == a]
            pi[a] = []
            for c in range(k):
                total = sum(posterior[v.item][c] for v in own)
                row = [sum(posterior[v.item][c] for v in own if v.label == j) for j in range(k)]
                pi[a].append([x / total for x in row] if total else [1 / k] * k)
        likelihood = 0.0
        for i in items:
            joint = [
                p[c] * math.prod(pi[v.annotator][c][v.label] for v in votes if v.item == i)
                for c in range(k)
            ]
            likelihood += math.log(sum(joint))
            posterior[i] = [one / sum(joint) for one in joint]
        found.append(likelihood)
    return [posterior[i] for i in items], found


def test_without_a_prior_it_is_the_paper_step_by_step() -> None:
    _, votes = planted([0.8, 0.7, 0.6, 0.9], num_items=40)
    ours = dawid_skene(votes, 4, strength=0, max_steps=11, tolerance=0)
    posterior, likelihood = slow(votes, 4, 12)
    assert ours.objective == pytest.approx(likelihood, abs=1e-9)
    assert ours.posterior == pytest.approx(np.array(posterior), abs=1e-9)


@pytest.mark.parametrize("strength", [0.0, 0.5, 4.0, 50.0])
@pytest.mark.parametrize("mirror", [None, MIRROR])
@pytest.mark.parametrize("seed", range(4))
def test_no_step_lowers_the_objective(
    strength: float, mirror: tuple[int, ...] | None, seed: int
) -> None:
    accuracies = list(np.random.default_rng(seed).uniform(0.2, 0.95, 5))
    _, votes = planted(accuracies, num_items=60, rate=0.4, seed=seed)
    known = {0: 1, 7: 2} if seed % 2 else None
    found = dawid_skene(votes, 4, known=known, strength=strength, mirror=mirror, tolerance=0)
    assert len(found.objective) > 5
    assert np.diff(found.objective).min() > -1e-8


def test_planted_confusion_matrices_are_recovered() -> None:
    """Within what 1,200 items can tell of them, an odd one out included."""
    rng = np.random.default_rng(3)
    truth = rng.choice(3, 1200, p=[0.5, 0.3, 0.2])
    planted_pi = np.array(
        [
            [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]],
            [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]],
            [[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]],  # takes one for the other
            [[0.8, 0.1, 0.1], [0.1, 0.85, 0.05], [0.05, 0.05, 0.9]],
        ]
    )
    votes = [
        Vote(i, a, int(rng.choice(3, p=planted_pi[a, t])))
        for i, t in enumerate(truth)
        for a in range(4)
    ]
    found = dawid_skene(votes, 3)
    assert np.abs(found.confusion - planted_pi).max() < 0.09
    assert np.abs(found.prior - [0.5, 0.3, 0.2]).max() < 0.04
    assert (found.posterior.argmax(axis=1) == truth).mean() > 0.93


def test_it_beats_the_majority_where_one_annotator_votes_at_random() -> None:
    """Three careful people and three who guess, on ten draws of the world."""
    gains = []
    for seed in range(10):
        truth, votes = planted([0.85, 0.85, 0.8, 0.25, 0.25, 0.25], seed=seed, rate=1)
        said = defaultdict(Counter)
        for vote in votes:
            said[vote.item][vote.label] += 1
        most = np.array([said[i].most_common(1)[0][0] for i in range(len(truth))])
        ours = dawid_skene(votes, 4, mirror=MIRROR).posterior.argmax(axis=1)
        gains.append((ours == truth).mean() - (most == truth).mean())
    assert min(gains) > 0.02


def test_it_beats_the_majority_with_one_annotator_who_has_the_keys_swapped() -> None:
    rng = np.random.default_rng(1)
    truth = rng.choice(4, 300, p=[0.4, 0.4, 0.15, 0.05])
    votes = []
    for i, t in enumerate(truth):
        for a, p in enumerate((0.75, 0.75, 0.95)):
            label = int(t) if rng.random() < p else int(rng.choice(4))
            votes.append(Vote(i, a, MIRROR[label] if a == 2 else label))
    found = dawid_skene(votes, 4, mirror=MIRROR)
    most = [
        Counter(v.label for v in votes[3 * i : 3 * i + 3]).most_common(1)[0][0] for i in range(300)
    ]
    assert (found.posterior.argmax(axis=1) == truth).mean() > (np.array(most) == truth).mean() + 0.1
    assert found.confusion[2, 0, 1] > 0.8


def test_swapping_the_two_sides_of_every_item_swaps_what_is_found_and_nothing_else() -> None:
    _, votes = planted([0.8, 0.6, 0.9], num_items=80, rate=0.5)
    ours = dawid_skene(votes, 4, mirror=MIRROR)
    swapped = dawid_skene([v._replace(label=MIRROR[v.label]) for v in votes], 4, mirror=MIRROR)
    assert swapped.posterior == pytest.approx(ours.posterior[:, list(MIRROR)], abs=1e-9)
    assert swapped.accuracy() == pytest.approx(ours.accuracy(), abs=1e-9)
    assert ours.confusion[:, 0, 1] == pytest.approx(ours.confusion[:, 1, 0])


def test_an_item_whose_class_is_known_keeps_it_and_teaches_who_is_right() -> None:
    """Two who contradict each other always: only the known items say who knows."""
    votes = [Vote(i, a, 0 if a == 0 else 1) for i in range(20) for a in (0, 1)]
    blind = dawid_skene(votes, 2)
    told = dawid_skene(votes, 2, known=dict.fromkeys(range(6), 1))
    assert blind.posterior[10] == pytest.approx([0.5, 0.5])
    assert told.posterior[:6, 1] == pytest.approx(1)
    assert told.posterior[10, 1] > 0.9
    assert told.accuracy()[1] > 0.8 > 0.3 > told.accuracy()[0]


def test_one_vote_is_worth_what_the_prior_says_and_no_more() -> None:
    found = dawid_skene([Vote(0, 0, 2)], 4)
    assert 0.7 < found.posterior[0, 2] < 0.95
    draw = dawid_skene([Vote(0, 0, 0), Vote(0, 1, 1)], 4)
    assert draw.posterior[0, 0] == pytest.approx(draw.posterior[0, 1])
    assert draw.posterior[0, 0] < 0.55


def test_posteriors_are_calibrated_where_the_model_is_true() -> None:
    """Of items said to be right with probability p, a share of about p is."""
    confidence, right = [], []
    for seed in range(6):
        truth, votes = planted([0.7, 0.65, 0.6, 0.55, 0.7], seed=seed, rate=0.6)
        found = dawid_skene(votes, 4, mirror=MIRROR)
        confidence += list(found.posterior.max(axis=1))
        right += list(found.posterior.argmax(axis=1) == truth)
    assert abs(np.mean(confidence) - np.mean(right)) < 0.05
