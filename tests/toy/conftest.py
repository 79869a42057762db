"""The taught base model, made once a session however many workers there are."""

import os
from pathlib import Path

import pytest

from trueup.models.backbone import Backbone
from trueup.toy.model import toy_folder


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the base model; a worker's own temporary folder lies in the session's."""
    here = tmp_path_factory.getbasetemp()
    session = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here
    return toy_folder(session / "toy")


@pytest.fixture(scope="session")
def toy(toy_base: Path) -> Backbone:
    return Backbone.load(toy_base, device="cpu")
