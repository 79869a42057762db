"""Both indexes against a dot product with every vector: same neighbours, under every filter."""

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from trueup.errors import ConfigError
from trueup.vectors import Filter, Index, Row
from vector_rows import some_rows


def at(row: Row) -> str:
    return datetime.fromtimestamp(row.created_us / 1e6, UTC).isoformat()


def lets_through(where: Filter, row: Row) -> bool:
    return (
        all(getattr(row, name) == value for name, value in where.equals.items())
        and (where.users is None or row.user in where.users)
        and (where.since is None or at(row) >= where.since)
        and (where.until is None or at(row) < where.until)
    )


def nearest(rows: list[Row], vectors: np.ndarray, asked: np.ndarray, k: int, where: Filter) -> list:
    """By comparing with every row."""
    near = sorted(
        (
            (float(v @ asked), row.id)
            for row, v in zip(rows, vectors, strict=True)
            if lets_through(where, row)
        ),
        reverse=True,
    )
    return near[:k]


ROWS, VECTORS = some_rows(600)
FILTERS = [
    Filter(),
    Filter(user="user-7"),
    Filter(tenant="o'hara"),
    Filter(tenant='say "hi" -- \\', model="large"),
    Filter(model="small", source="gateway"),
    Filter(raised=True),
    Filter(raised=False, user="user-3"),
    Filter(since=at(ROWS[400])),
    Filter(since=at(ROWS[100]), until=at(ROWS[160]), raised=True),
    Filter(user="' OR '1'='1"),
    Filter(user="nobody"),
    Filter(users=("user-7", "user-9", "o'hara")),
    Filter(users=("user-7", "user-9"), tenant="o'hara"),
    Filter(users=()),
]


@pytest.fixture
def index(either: Callable[..., Index]) -> Index:
    made = either()
    for start in range(0, 600, 150):
        made.add(ROWS[start : start + 150], VECTORS[start : start + 150])
    return made


@pytest.mark.parametrize("where", FILTERS, ids=str)
def test_the_neighbours_are_those_of_brute_force(index: Index, where: Filter) -> None:
    assert index.count(where) == sum(lets_through(where, row) for row in ROWS)
    assert index.ids(where) == {row.id for row in ROWS if lets_through(where, row)}
    for asked in some_rows(5, seed=1)[1]:
        found = index.search(asked, 10, where)
        wanted = nearest(ROWS, VECTORS, asked, 10, where)
        assert [hit.id for hit in found] == [one for _, one in wanted]
        assert [hit.similarity for hit in found] == pytest.approx([s for s, _ in wanted], abs=1e-5)


def test_an_index_opened_again_has_everything(index: Index, either: Callable[..., Index]) -> None:
    index.close()
    again = either()
    rows, vectors = again.read()
    assert rows == ROWS
    assert np.allclose(vectors, VECTORS, atol=1e-6)
    asked = some_rows(1, seed=2)[1][0]
    assert [hit.id for hit in again.search(asked, 5)] == [
        one for _, one in nearest(ROWS, VECTORS, asked, 5, Filter())
    ]


def test_rows_added_twice_are_there_once(index: Index) -> None:
    index.add(ROWS[:300], VECTORS[:300])
    assert index.count() == 600


def test_another_embedder_has_another_index(index: Index, either: Callable[..., Index]) -> None:
    other = either("made-up/2")
    assert other.count() == 0 and other.ids() == set()
    assert other.search(VECTORS[0], 5) == []
    other.add(ROWS[:2], VECTORS[:2, :8])
    assert (other.count(), index.count()) == (2, 600)


def test_what_is_deleted_is_not_found(index: Index, either: Callable[..., Index]) -> None:
    gone = [ROWS[3].id, ROWS[500].id]
    assert index.delete([*gone, "interaction_of_nobody"]) == 2
    assert index.delete(gone) == 0
    for one in (index, either()):
        assert one.count() == 598
        assert not one.ids() & set(gone)
        assert gone[0] not in {hit.id for hit in one.search(VECTORS[3], 20)}


def test_rows_raised_later_are_found_as_raised(index: Index) -> None:
    late = [row.id for row in ROWS if not row.raised][:5]
    index.mark_raised([*late, ROWS[0].id])
    assert index.ids(Filter(raised=True)) == {*late, *(row.id for row in ROWS if row.raised)}
    assert index.count() == 600


def test_a_writer_sees_what_another_wrote(index: Index, either: Callable[..., Index]) -> None:
    other = either()
    assert other.count() == 600
    rows, vectors = some_rows(3, seed=5)
    other.add(rows, vectors)
    assert index.search(vectors[1], 1)[0].id == rows[1].id


def test_dropped_it_is_empty_and_can_be_filled_again(
    index: Index, either: Callable[..., Index]
) -> None:
    other = either()
    assert other.count() == 600
    index.drop()
    assert index.count() == other.count() == 0
    index.add(ROWS[:2], VECTORS[:2])
    assert index.count() == other.count() == 2


def test_an_approximate_index_finds_what_an_exact_search_finds(
    either: Callable[..., Index],
) -> None:
    index = either(approximate_from=4_000)
    rows, vectors = some_rows(12_000)
    index.add(rows[:11_000], vectors[:11_000])
    assert index.tend()
    assert not index.tend()
    index.add(rows[11_000:], vectors[11_000:])  # these no list has yet
    asked = some_rows(40, seed=3)[1]
    for where in (Filter(), Filter(model="small"), Filter(raised=True), Filter(user="user-3")):
        hits = 0
        for one in asked:
            found = index.search(one, 10, where)
            wanted = index.search(one, 10, where, exact=True)
            hits += len({hit.id for hit in found} & {hit.id for hit in wanted})
            assert [h.similarity for h in found] == sorted(
                (h.similarity for h in found), reverse=True
            )
        assert hits >= 0.95 * 10 * len(asked), where
    assert index.search(vectors[11_500], 1)[0].id == rows[11_500].id


def test_an_index_that_grew_gets_new_centres(either: Callable[..., Index]) -> None:
    index = either(approximate_from=1_000)
    rows, vectors = some_rows(4_000)
    index.add(rows[:1_000], vectors[:1_000])
    assert index.tend() and not index.tend()
    index.add(rows[1_000:1_080], vectors[1_000:1_080])
    assert not index.tend(), "a little more changes nothing"
    index.add(rows[1_080:], vectors[1_080:])
    assert index.tend() and not index.tend()
    assert index.search(vectors[3_000], 1)[0].id == rows[3_000].id


def test_more_ids_than_a_statement_takes(index: Index) -> None:
    rows, _ = some_rows(30)
    others = [f"interaction_none_{n}" for n in range(70_000)]
    raised = index.count(Filter(raised=True))
    index.mark_raised([*others, rows[1].id])
    assert index.count(Filter(raised=True)) == raised + 1
    before = index.count()
    assert index.delete([*others, rows[1].id, rows[2].id]) == 2
    assert index.count() == before - 2


def test_vectors_of_another_size_are_refused_and_it_says_what_to_do(index: Index) -> None:
    rows, vectors = some_rows(2, size=8, seed=5)
    with pytest.raises(ConfigError, match=r"8 numbers.*32.*--rebuild"):
        index.add(rows, vectors)
    with pytest.raises(ConfigError, match=r"8 numbers.*32.*--rebuild"):
        index.search(vectors[0], 3)


def test_a_vector_of_zeros_is_near_to_nothing(index: Index) -> None:
    (row,), _ = some_rows(1, seed=6)
    _, vectors = some_rows(1)
    expected = index.search(vectors[0], 20)
    index.add([row], np.zeros((1, 32), np.float32))
    assert index.search(vectors[0], 20) == expected
    assert index.search(np.zeros(32, np.float32), 3) == []
    every = index.count()
    assert row.id not in {hit.id for hit in index.search(vectors[0], every, exact=True)}
