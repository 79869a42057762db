"""What is particular to Postgres: bytes that must go from the server's files, and writers of
vectors that hold up nobody else."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from trueup.store import Store
from trueup.vectors import VectorsConfig, open_index
from vector_rows import some_rows


@pytest.mark.parametrize("approximate", [False, True], ids=["exact", "approximate"])
def test_a_deleted_vector_is_gone_from_the_tables_files(
    postgres_url: str, tmp_path: Path, approximate: bool
) -> None:
    store = Store(tmp_path, url=postgres_url)
    settings = VectorsConfig(approximate_from=1_000 if approximate else 100_000)
    index = open_index(store, settings, "made-up/1")
    rows, vectors = some_rows(1_200)
    index.add(rows, vectors)
    index.tend(now=True)

    def holding(needle: bytes) -> list[str]:
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CHECKPOINT"))
            folder = Path(connection.execute(text("SHOW data_directory")).scalar_one())
        return [str(f) for f in (folder / "base").rglob("*") if f.is_file() and needle in read(f)]

    gone, stays = vectors[17][4:12].tobytes(), vectors[18][4:12].tobytes()
    assert holding(gone) and holding(stays), "the search would find it"
    assert index.delete([rows[17].id]) == 1
    assert holding(gone) == [] and holding(rows[17].id.encode()) == []
    assert holding(stays)
    assert index.count() == 1_199
    store.close()


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:  # the server has removed it meanwhile
        return b""


def test_writing_vectors_does_not_wait_for_the_writers_of_records(
    postgres_url: str, tmp_path: Path
) -> None:
    store = Store(tmp_path, url=postgres_url)
    index = open_index(store, VectorsConfig(), "made-up/1")
    rows, vectors = some_rows(20)
    with store.engine.begin():  # holds the records' queue
        adding = threading.Thread(target=index.add, args=(rows, vectors))
        adding.start()
        adding.join(20)
        assert not adding.is_alive()
    assert index.count() == 20
    store.close()
