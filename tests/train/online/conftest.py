"""Projects to train in; every method's undisturbed run is made once and read by many tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import MakeProject, Project, Runner, Undisturbed, setting


@pytest.fixture
def make_project(tiny_model: Path, tmp_path: Path) -> Iterator[MakeProject]:
    projects: list[Project] = []

    def make(*, name: str = "store", **given: Any) -> Project:
        projects.append(Project.make(tmp_path / name, tiny_model, **given))
        return projects[-1]

    yield make
    for one in projects:
        one.store.close()


@pytest.fixture(scope="session")
def undisturbed(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Undisturbed]:
    """By the name of a method; trained when first asked for."""
    found: dict[str, Undisturbed] = {}

    def of(name: str) -> Undisturbed:
        if name not in found:
            project = Project.make(tmp_path_factory.mktemp("online") / "store", tiny_model)
            found[name] = Undisturbed(project, project.train(setting(name)))
        return found[name]

    return of


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    one = Runner()
    yield one
    one.end()
