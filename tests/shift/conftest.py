"""The taught toy model, made once a session however many workers there are."""

import os

import pytest

from trueup.models.backbone import Backbone
from trueup.toy.model import toy_folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The base model; a worker's own temporary folder lies in the session's."""
    here = tmp_path_factory.getbasetemp()
    session = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here
    return Backbone.load(toy_folder(session / "toy"), device="cpu")
