"""An index to put vectors in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trueup.store import Store
from trueup.vectors import Index, VectorsConfig, open_index

Opener = Callable[..., Index]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / ".trueup")
    yield opened
    opened.close()


@pytest.fixture(params=["lancedb", "pgvector"])
def either_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store whose index is in LanceDB, then one whose is in Postgres."""
    in_postgres = request.param == "pgvector"
    url = request.getfixturevalue("postgres_url") if in_postgres else None
    opened = Store(tmp_path / ".trueup", url=url)
    yield opened
    opened.close()


@pytest.fixture
def either(either_store: Store) -> Opener:
    """As `opened`, for either database."""

    def open_one(embedder_id: str = "made-up/1", **settings: object) -> Index:
        return open_index(either_store, VectorsConfig.model_validate(settings), embedder_id)

    return open_one


@pytest.fixture
def opened(store: Store) -> Opener:
    """Opens the index of the store; each call is another one, as another process would have."""

    def open_one(embedder_id: str = "made-up/1", **settings: object) -> Index:
        return open_index(store, VectorsConfig.model_validate(settings), embedder_id)

    return open_one
