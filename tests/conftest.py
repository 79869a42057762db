"""What several test files share: one tiny model, taught once a session."""

from pathlib import Path

import pytest

from colour_project import make_project, save_model

COLOURS = {"sky": "blue", "leaf": "green", "coal": "black", "snow": "white", "rose": "red"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder. Asked `sky?` it says `blue.`, `um blue.` or `blue, the sky is blue.`, each
    often enough that its own samples can be told apart by length."""
    from trueup.models.tiny import save_tiny

    examples = [
        (f"{thing}?", answer)
        for thing, colour in COLOURS.items()
        for answer in (f"{colour}.", f"um {colour}.", f"{colour}, the {thing} is {colour}.")
    ]
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return save_tiny(folder, seed=0, hidden_size=48, examples=examples, steps=160)


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the colour project, see `colour_project`."""
    return save_model(tmp_path_factory.mktemp("colours") / "model")


@pytest.fixture
def folder(colour_model: Path, tmp_path: Path) -> Path:
    """A colour project of a test's own."""
    return make_project(colour_model, tmp_path)
