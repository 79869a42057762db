"""Held-out prompts drawn from traffic, topic by topic, so that no topic decides alone.

k-means on the prompts' embeddings makes the topics. Each gets places by its share of the traffic,
and at least two, so that its win rate has an interval; within a topic prompts are drawn at random,
because the most different ones would measure the fringe and not the traffic; where a suite is to
cover what is asked and not to weigh it, they may be had all the same. What says nearly the same as
a prompt already drawn is passed over.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueup.errors import DataError
from trueup.judges import text
from trueup.models.embedder import Embedder
from trueup.records import Messages
from trueup.suite import SuitePrompt
from trueup.vectors.diverse import diverse
from trueup.vectors.duplicates import NEARLY_SAME

__all__ = ["draw_suite"]

LEAST = 2  # prompts a topic


def draw_suite(
    prompts: Sequence[Messages],
    embedder: Embedder,
    *,
    size: int,
    topics: int = 0,
    seed: int = 0,
    is_diverse: bool = False,
) -> list[SuitePrompt]:
    """`size` prompts, each with its topic as its stratum, ordered by topic.

    Args:
        prompts: of the traffic, one an interaction: what is asked often counts often.
        topics: how many; 0 takes one for every 16 prompts drawn, at least 2 and at most 12.
        is_diverse: within a topic, take the prompts furthest from each other.

    Raises:
        DataError: fewer different prompts than asked for, or fewer places than topics need.
    """
    shares = Counter(prompts)
    different = list(shares)
    topics = topics or min(12, max(2, size // 16))
    if len(different) < size or size < LEAST * topics:
        raise DataError(
            "There are too few prompts to draw a suite from",
            got=f"{len(different)} different prompts for {size} places in {topics} topics",
            expected=f"at least {size} prompts, and {LEAST} places a topic",
            next="capture more traffic, or lower --size or --topics",
        )
    vectors = embedder([_asked(p) for p in different])
    found = _topics(vectors, topics, seed)
    weights = np.array([shares[p] for p in different], float)
    members = [np.flatnonzero(found == topic) for topic in np.unique(found)]
    names = _names([[different[i] for i in at] for at in members])
    places = _places([weights[at].sum() for at in members], [len(at) for at in members], size)
    rng = np.random.default_rng(seed)
    drawn = [
        SuitePrompt(messages=different[i], stratum=name)
        for name, at, n in zip(names, members, places, strict=True)
        for i in (
            at[diverse(vectors[at], n)] if is_diverse else _some(vectors, rng.permutation(at), n)
        )
    ]
    return drawn


def _asked(prompt: Messages) -> str:
    return next((m.content for m in reversed(prompt) if m.role == "user"), "")


def _topics(vectors: np.ndarray, topics: int, seed: int) -> np.ndarray:
    """A topic for each prompt; topics of fewer than two prompts join the nearest."""
    from sklearn.cluster import KMeans

    kmeans: Any = KMeans  # its hints take `n_init` for a string
    found = kmeans(topics, n_init=4, random_state=seed).fit(vectors)
    labels, centres = np.asarray(found.labels_), np.asarray(found.cluster_centers_)
    sizes = np.bincount(labels, minlength=topics)
    whole = np.flatnonzero(sizes >= LEAST)
    for at in np.flatnonzero(sizes[labels] < LEAST):
        labels[at] = whole[np.argmax(centres[whole] @ vectors[at])]
    return labels


def _places(shares: Sequence[float], most: Sequence[int], size: int) -> list[int]:
    """How many of each: by share, at least two, no more than there are, and `size` in all."""
    places = [LEAST] * len(shares)
    for _ in range(size - sum(places)):
        free = [i for i in range(len(shares)) if places[i] < most[i]]
        # the one furthest behind its share is next
        behind = max(free, key=lambda i: shares[i] / (places[i] + 1))
        places[behind] += 1
    return places


def _some(vectors: np.ndarray, order: np.ndarray, n: int) -> list[int]:
    """The first `n` in this order that are not nearly the same; where these run out, the others."""
    kept: list[int] = []
    passed: list[int] = []
    for i in order:
        is_new = not kept or float((vectors[kept] @ vectors[i]).max()) < NEARLY_SAME
        (kept if is_new else passed).append(int(i))
    return [*kept, *passed][:n]


def _names(topics: Sequence[Sequence[Messages]]) -> list[str]:
    """Two words each that its prompts have and others have not, and a number where names meet."""
    counts = [Counter(w for p in one for w in set(text.content_words(_asked(p)))) for one in topics]
    everywhere = sum(counts, Counter())
    named, seen = [], Counter()
    for words in counts:
        typical = sorted(words, key=lambda w: (-(words[w] ** 2) / everywhere[w], w))[:2]
        name = " ".join(typical) or "other"
        seen[name] += 1
        named.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return named
