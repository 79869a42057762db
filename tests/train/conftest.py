"""A tiny project to train in; what is read by many tests is made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_project import MakeProject, Project, Trained, drawn_pairs, fill, written_pairs

from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import PreferencePair
from trueup.store import Store


@pytest.fixture(scope="session")
def pairs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    store = Store(tmp_path_factory.mktemp("draw"))
    return drawn_pairs(StoredModel.serving(store, Backbone.load(tiny_model))) + written_pairs()


@pytest.fixture
def make_project(
    tiny_model: Path, tmp_path: Path, pairs: list[PreferencePair]
) -> Iterator[MakeProject]:
    stores: list[Store] = []

    def make(some: list[PreferencePair] | None = None, *, name: str = "store") -> Project:
        store = Store(tmp_path / name)
        stores.append(store)
        return fill(store, tiny_model, pairs if some is None else some)

    yield make
    for store in stores:
        store.close()


@pytest.fixture(scope="session")
def trained(
    tiny_model: Path, pairs: list[PreferencePair], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    project = fill(Store(tmp_path_factory.mktemp("trained")), tiny_model, pairs)
    return Trained(project, project.train())
