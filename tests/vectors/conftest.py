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


@pytest.fixture
def opened(store: Store) -> Opener:
    """Opens the index of the store; each call is another one, as another process would have."""

    def open_one(embedder_id: str = "made-up/1", **settings: object) -> Index:
        return open_index(store, VectorsConfig.model_validate(settings), embedder_id)

    return open_one
