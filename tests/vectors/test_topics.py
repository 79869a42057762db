"""Groups, topics and picks against what is known of traffic made for the purpose, and against
brute force over all pairs or all choices."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest

from trueup.errors import DataError
from trueup.models.embedder import lexical
from trueup.records import Completion, Flag, Interaction, Message
from trueup.store import Store
from trueup.vectors import (
    Filter,
    Index,
    Row,
    VectorsConfig,
    diverse,
    duplicates,
    embed,
    find_topics,
    topic_names,
)
from vector_rows import some_rows

Opener = Callable[..., Index]
FORMS = {
    "battery": "my battery charger number {} does not charge the battery",
    "train": "train {} to Rome: when does the train leave",
    "python": "how to sort python list {} in reverse",
}


# --- near-duplicates ------------------------------------------------------------------------------


def greedy(rows: Sequence[Row], vectors: np.ndarray, threshold: float) -> set[frozenset[str]]:
    """The same groups by comparing all pairs."""
    near, taken, groups = vectors @ vectors.T >= threshold, set[int](), set[frozenset[str]]()
    for i in sorted(range(len(rows)), key=lambda i: rows[i].created_us):
        if i not in taken:
            group = {i, *(j for j in range(len(rows)) if near[i, j] and j not in taken)}
            taken |= group
            if len(group) > 1:
                groups.add(frozenset(rows[j].id for j in group))
    return groups


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_groups_are_those_of_all_pairs(either: Opener, threshold: float) -> None:
    rows, vectors = some_rows(300)
    vectors[200:240] = vectors[3]  # more copies than one look shows
    index = either()
    index.add(rows, vectors)
    found = duplicates(index, threshold=threshold)
    assert {frozenset(group.ids) for group in found} == greedy(rows, vectors, threshold)
    assert len(found) > 5
    sizes = [len(group.ids) for group in found]
    assert sizes == sorted(sizes, reverse=True)
    at = {row.id: i for i, row in enumerate(rows)}
    for group in found:
        cosines = [float(vectors[at[group.ids[0]]] @ vectors[at[one]]) for one in group.ids[1:]]
        assert group.least == pytest.approx(min(cosines), abs=1e-5)


@pytest.mark.parametrize("threshold", [0.7, 0.95, 1.0])
def test_groups_of_many_rows_are_those_of_all_pairs(opened: Opener, threshold: float) -> None:
    """More rows than a block has, more numbers a row than the bound looks at."""
    rows, vectors = some_rows(1_500, size=128)
    chance = np.random.default_rng(1)
    vectors[700:] = vectors[chance.integers(700, size=800)]
    vectors[900:] += 0.02 * chance.normal(size=(600, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = opened()
    index.add(rows, vectors)
    found = duplicates(index, threshold=threshold)
    assert {frozenset(one.ids) for one in found} == greedy(rows, vectors, threshold - 1e-5)
    assert len(found) > 20
    assert all(one.least >= threshold - 1e-5 for one in found)


def test_groups_of_nothing(opened: Opener) -> None:
    assert duplicates(opened()) == []


def test_only_what_the_filter_lets_through_is_grouped(opened: Opener) -> None:
    rows, vectors = some_rows(40)
    vectors[:] = vectors[0]
    index = opened()
    index.add(rows, vectors)
    (group,) = duplicates(index, where=Filter(model="large"))
    assert set(group.ids) == {row.id for row in rows if row.model == "large"}


# --- topics ---------------------------------------------------------------------------------------


@pytest.fixture
def traffic(store: Store) -> Store:
    """Three topics over three weeks: trains come up in the last one, batteries are flagged."""
    per_week = [{"battery": 30, "python": 30}, {"battery": 20, "python": 20, "train": 10}]
    per_week.append({"battery": 10, "python": 10, "train": 30})
    for week, counts in enumerate(per_week):
        for topic, n in counts.items():
            for i in range(n):
                one = Interaction(
                    prompt=(Message(role="user", content=FORMS[topic].format(i)),),
                    completion=Completion(text="…"),
                    source="gateway",
                    request_id=f"{week} {topic} {i}",
                    created_at=f"2026-03-{2 + 7 * week + i % 7:02}T10:00:00+00:00",
                )
                store.add(one)
                if topic == "battery" and i % 2:
                    store.add(
                        Flag(interaction_id=one.id, flagger="signals/1", score=1, raised=True)
                    )
    return store


def test_topics_are_found_counted_named_and_followed(traffic: Store, opened: Opener) -> None:
    config, index = VectorsConfig(), opened(lexical().id)
    embed(traffic, index, lexical(), config)
    found = find_topics(traffic, index, config)
    assert found.weeks == ("2026-03-02", "2026-03-09", "2026-03-16")
    assert found.num_by_week == (60, 50, 50)
    by_word = {
        word: topic for topic in found.topics for word in FORMS if word in topic.name.split()
    }
    assert set(by_word) == set(FORMS) and len(found.topics) == 3
    battery, train = by_word["battery"], by_word["train"]
    assert (battery.num_interactions, train.num_interactions) == (60, 40)
    assert battery.flag_rate == 0.5 and train.flag_rate == 0
    assert battery.flag_low < 0.5 < battery.flag_high
    assert train.shares == (0, 0.2, 0.6)
    assert train.change == pytest.approx(0.4)
    assert [one.num_interactions for one in found.topics] == sorted(
        (one.num_interactions for one in found.topics), reverse=True
    )
    for topic, word in ((battery, "battery"), (train, "train")):
        texts = [one.prompt[0].content for one in traffic.get_all(Interaction, topic.examples)]
        assert len(set(texts)) == 3 and all(word in text for text in texts)
    assert find_topics(traffic, index, config) == found, "the same traffic, the same topics"
    assert len(find_topics(traffic, index, config, k=5).topics) == 5


def test_the_number_of_topics_is_that_of_the_groups_there_are(store: Store, opened: Opener) -> None:
    """Twelve groups, well apart; the labels are those that made them."""
    chance = np.random.default_rng(0)
    centres = np.linalg.qr(chance.normal(size=(32, 12)))[0].T
    truth = chance.integers(12, size=600)
    vectors = centres[truth] + 0.05 * chance.normal(size=(600, 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows, _ = some_rows(600)
    index = opened()
    index.add(rows, vectors.astype(np.float32))
    found = find_topics(store, index, VectorsConfig())
    assert len(found.topics) == 12
    counts = np.bincount(truth)
    assert sorted(one.num_interactions for one in found.topics) == sorted(counts.tolist())
    assert found.silhouette > 0.6


def test_too_little_traffic_has_no_topics(store: Store, opened: Opener) -> None:
    index = opened()
    rows, vectors = some_rows(10)
    vectors[:] = vectors[0]
    index.add(rows, vectors)
    with pytest.raises(DataError, match="1 different texts"):
        find_topics(store, index, VectorsConfig())


def test_class_tf_idf_by_hand() -> None:
    """Three words a topic on average. In the first topic `red` is 2 of 3 words and 2 in all, `car`
    1 of 3 and 2 in all: 2/3 log(1 + 3/2) against 1/3 log(1 + 3/2)."""
    assert topic_names([["red red car"], ["blue blue car"]], num_words=1) == ["red", "blue"]
    assert topic_names([["red red car"], ["blue blue cars"]], num_words=2) == [
        "red car",
        "blue cars",
    ]
    twice = topic_names([["red car"], ["red car"], [""]], num_words=2)
    assert twice == ["car red", "car red 2", "other"]


# --- picks that cover -----------------------------------------------------------------------------


def radius(vectors: np.ndarray, picked: Sequence[int]) -> float:
    """The largest distance of any vector to its nearest pick."""
    distances = np.linalg.norm(vectors[:, None] - vectors[list(picked)][None], axis=2)
    return float(distances.min(axis=1).max())


@pytest.mark.parametrize("seed", range(5))
def test_picks_are_at_most_twice_as_far_as_the_best_choice(seed: int) -> None:
    vectors = some_rows(16, size=4, seed=seed)[1]
    best = min(radius(vectors, one) for one in combinations(range(16), 4))
    assert radius(vectors, diverse(vectors, 4)) <= 2 * best + 1e-6


def test_picks_cover_every_group_before_any_twice() -> None:
    vectors = np.repeat(np.eye(5, 8, dtype=np.float32), 20, axis=0)
    assert {i // 20 for i in diverse(vectors, 5)} == set(range(5))
    assert sorted(diverse(vectors, 200)) == list(range(100)), "each once, then no more"
    taken = np.eye(8, dtype=np.float32)[[0, 2, 4]]
    assert {i // 20 for i in diverse(vectors, 2, taken_ND=taken)} == {1, 3}
    assert diverse(vectors[:0], 3) == [] and diverse(vectors, 0) == []
