"""What is particular to LanceDB: bytes that must go, versions that must not pile up, an
approximate index that must find what an exact search finds, files that break."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trueup.errors import StorageError
from trueup.store import Store
from trueup.vectors import Index, VectorsConfig, erase_vectors
from vector_rows import some_rows

Opener = Callable[..., Index]


def holding(folder: Path, needle: bytes) -> list[str]:
    """Files with these bytes in them."""
    return [str(f) for f in folder.rglob("*") if f.is_file() and needle in f.read_bytes()]


def with_vector(folder: Path, vector: np.ndarray) -> set[str]:
    """Kinds of files (`data`, `_indices`) that have a part of a vector in them; a rounding error
    more or less, since an index keeps what it has scaled itself."""
    found = set()
    for file in filter(Path.is_file, folder.rglob("*")):
        raw = file.read_bytes()
        for shift in range(4):
            numbers = np.frombuffer(raw[shift : shift + (len(raw) - shift) // 4 * 4], "<f4")
            numbers = np.nan_to_num(numbers, posinf=0, neginf=0)
            for at in np.flatnonzero(np.abs(numbers - vector[4]) < 1e-5):
                part = numbers[at : at + 8]
                if len(part) == 8 and np.allclose(part, vector[4:12], atol=1e-5):
                    found.add(next((k for k in ("data", "_indices") if k in file.parts), file.name))
    return found


def versions(folder: Path) -> int:
    return len(list(folder.glob("vectors/*.lance/_versions/*.manifest")))


@pytest.mark.parametrize("approximate", [False, True], ids=["exact", "approximate"])
def test_a_deleted_vector_leaves_no_bytes(store: Store, opened: Opener, approximate: bool) -> None:
    index = opened(approximate_from=1_000 if approximate else 100_000)
    rows, vectors = some_rows(1_200)
    for at in range(0, 1_200, 400):
        index.add(rows[at : at + 400], vectors[at : at + 400])
    index.mark_raised([rows[17].id])  # a copy of the row
    index.tend(now=True)
    late, later = some_rows(3, seed=9)
    index.add(late, later)
    gone = [(rows[17], vectors[17]), (rows[900], vectors[900]), (late[1], later[1])]
    kinds = {"data", "_indices"} if approximate else {"data"}
    assert [with_vector(store.folder, v) for _, v in gone] == [kinds, kinds, {"data"}]
    assert index.delete(row.id for row, _ in gone) == 3
    for row, vector in gone:
        assert with_vector(store.folder, vector) == set()
        assert holding(store.folder, row.id.encode()) == []
    assert with_vector(store.folder, vectors[18]) == kinds, "its neighbour stays"
    assert index.count() == 1_200
    assert index.search(vectors[18], 1)[0].id == rows[18].id


def test_versions_are_cleaned_up_after_so_many_commits(store: Store, opened: Opener) -> None:
    index = opened(compact_commits=5)
    rows, vectors = some_rows(60)
    for at in range(0, 60, 2):
        index.add(rows[at : at + 2], vectors[at : at + 2])
    assert versions(store.folder) == 30
    assert index.tend(now=True)
    assert versions(store.folder) <= 2
    assert not index.tend(), "nothing is due"
    assert index.count() == 60


def test_many_commits_in_a_short_time_are_not_compacted_one_by_one(opened: Opener) -> None:
    """Versions of the last minutes stay for readers, and must not call for a round a commit."""
    index = opened(compact_commits=5)
    rows, vectors = some_rows(60)
    rounds = 0
    for at in range(60):
        index.add(rows[at : at + 1], vectors[at : at + 1])
        rounds += index.tend()
    assert 60 // 12 <= rounds <= 60 // 5
    assert index.count() == 60


@pytest.mark.parametrize("kind", ["data", "_transactions"])
def test_killed_in_its_first_commit_it_goes_on(store: Store, opened: Opener, kind: str) -> None:
    index = opened()
    rows, vectors = some_rows(20)
    half = store.folder / "vectors" / f"{index.name}.lance" / kind
    half.mkdir(parents=True)
    (half / "half.lance").write_bytes(vectors.tobytes())
    assert index.ids() == set() and index.search(vectors[0], 3) == []
    if kind == "data":
        assert erase_vectors(store, VectorsConfig(), [rows[0].id]) == 0
        assert with_vector(store.folder, vectors[0]) == set()
    index.add(rows, vectors)
    assert index.count() == 20 and not (half / "half.lance").exists()


def test_two_processes_write_and_compact_at_once(store: Store, opened: Opener) -> None:
    """Nothing conflicts, and every row of either is there."""
    code = (
        "import sys; from pathlib import Path; from vector_rows import some_rows\n"
        "from trueup.vectors import VectorsConfig\n"
        "from trueup.vectors.lance import LanceIndex\n"
        "index = LanceIndex(Path(sys.argv[1]), VectorsConfig(compact_commits=3), 'made-up/1')\n"
        "rows, vectors = some_rows(60, seed=int(sys.argv[2]))\n"
        "for at in range(0, 60, 3):\n"
        "    index.add(rows[at : at + 3], vectors[at : at + 3]); index.tend(now=at % 9 == 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(store.folder / "vectors"), seed], env=environment
        )
        for seed in ("1", "2")
    ]
    assert [one.wait(120) for one in both] == [0, 0]
    index = opened()
    expected = {row.id for seed in (1, 2) for row in some_rows(60, seed=seed)[0]}
    assert index.ids() == expected


def test_a_reader_goes_on_while_files_are_replaced_under_it(opened: Opener) -> None:
    rows, vectors = some_rows(400)
    writer, reader = opened(), opened()
    writer.add(rows, vectors)
    failures: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                assert reader.search(vectors[7], 3)[0].id == rows[7].id
            except Exception as error:
                failures.append(error)
                return

    thread = threading.Thread(target=read)
    thread.start()
    for at in range(100, 112):
        writer.delete([rows[at].id])
    done.set()
    thread.join(30)
    assert failures == []


def test_a_damaged_index_says_how_it_is_made_again(store: Store, opened: Opener) -> None:
    index = opened()
    rows, vectors = some_rows(50)
    index.add(rows, vectors)
    for file in (store.folder / "vectors").rglob("data/*.lance"):
        file.write_bytes(b"nonsense")
    index.close()
    again = opened()
    with pytest.raises(StorageError, match="trueup embed --rebuild"):
        again.search(vectors[0], 3)
    again.drop()
    again.add(rows, vectors)
    assert again.search(vectors[0], 1)[0].id == rows[0].id


def test_killed_while_it_writes_it_goes_on(store: Store, opened: Opener) -> None:
    code = (
        "import sys; from pathlib import Path; from vector_rows import some_rows\n"
        "from trueup.vectors import VectorsConfig\n"
        "from trueup.vectors.lance import LanceIndex\n"
        "index = LanceIndex(Path(sys.argv[1]), VectorsConfig(), 'made-up/1')\n"
        "rows, vectors = some_rows(4000, seed=4)\n"
        "for at in range(0, 4000, 10):\n"
        "    index.add(rows[at : at + 10], vectors[at : at + 10]); print(at + 10, flush=True)\n"
        "    if at % 50 == 0: index.tend(now=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.folder / "vectors")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    acknowledged = 0
    while acknowledged < 200:
        acknowledged = int(child.stdout.readline())
    time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    index = opened()
    rows, vectors = some_rows(4000, seed=4)
    assert {row.id for row in rows[:acknowledged]} <= index.ids()
    assert index.count() % 10 == 0, "whole batches"
    index.add(rows, vectors)
    index.tend(now=True)
    assert index.ids() == {row.id for row in rows}
