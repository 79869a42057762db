"""How quickly `trueup import` reads, beside what nobody can do without: JSON, and the store.

    python benchmarks/import.py [--rows 100000] [--runs 3] [--json]

Rows are OpenAI messages with a prompt and an answer of about 1 KB each. Beside the import stand
`json.loads` on the same lines, and the store's own insertion of rows made beforehand; the import
does both and what lies between them, without and with the scrubbing of personal data. All run in
turns, each in an empty store.
"""

import argparse
import json
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from telling import text_table

from trueup.capture.importer import BATCH_ROWS, import_file
from trueup.capture.plain import PlainRows
from trueup.capture.shapes import Origin
from trueup.privacy import PrivacyConfig, Scrubber
from trueup.records import Interaction
from trueup.store import Store

WORDS = 155  # about 1 KB


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=WORDS, help="of a prompt and of an answer")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rates = measure(Path(name), asked.rows, asked.words, asked.runs)
    medians = {what: statistics.median(found) for what, found in rates.items()}
    if asked.json:
        print(json.dumps({"rows": asked.rows, "words": asked.words, "rates": rates}))
        return
    rows = [
        [what, f"{median:,.0f}", f"{medians['import'] / median:.2f}"]
        for what, median in medians.items()
    ]
    print(text_table(["", "rows a second", "import / this"], rows))


def measure(folder: Path, num_rows: int, num_words: int, num_runs: int) -> dict[str, list[float]]:
    """Rows a second of each, a figure a run."""
    path = write_rows(folder / "rows.jsonl", num_rows, num_words)
    plain = PlainRows(Origin(path.name))
    with open(path) as file:
        rows = [plain.row(json.loads(line), "2026-01-01T00:00:00.000000+00:00") for line in file]
    assert all(rows)

    def insert(store: Store) -> None:
        with store.loading() as load:
            for at in range(0, num_rows, BATCH_ROWS):
                load({Interaction: rows[at : at + BATCH_ROWS]})  # type: ignore[dict-item]

    def read(_: Store) -> None:
        with open(path, "rb") as file:
            for line in file:
                json.loads(line)

    ways: dict[str, Callable[[Store], object]] = {
        "json.loads alone": read,
        "store alone": insert,
        "import": lambda store: import_file(store, path),
        "import, scrubbed": lambda store: import_file(
            store, path, scrub=Scrubber(PrivacyConfig(), store)
        ),
    }
    rates: dict[str, list[float]] = {what: [] for what in ways}
    for run in range(num_runs):
        for number, (what, way) in enumerate(ways.items()):
            store = Store(folder / f"{run}-{number}")
            started = time.perf_counter()
            way(store)
            rates[what].append(num_rows / (time.perf_counter() - started))
            if what != "json.loads alone":
                assert store.count(Interaction) == num_rows
            store.close()
    return rates


def write_rows(path: Path, num_rows: int, num_words: int) -> Path:
    """A file of conversations in made-up words; no two alike."""
    generator = random.Random(0)
    letters = string.ascii_lowercase
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(5000)]

    def text() -> str:
        return " ".join(generator.choices(words, k=num_words))

    with open(path, "w") as file:
        for _ in range(num_rows):
            turns = [{"role": role, "content": text()} for role in ("user", "assistant")]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


if __name__ == "__main__":
    main()
