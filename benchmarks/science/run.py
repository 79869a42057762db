"""Claims about alignment, held against a world where the truth is known (`make science`).

    python benchmarks/science/run.py                       every experiment, three seeds
    python benchmarks/science/run.py --only goodhart       one of them
    python benchmarks/science/run.py --seeds 1 --jobs 1    a first look

The trainers are the product's own. Results are kept by what made them (settings, seed, code), so
a second call computes only what is missing. Exit code 1 where a claim does not hold, and it says
which. Read signs, not magnitudes: the model has 62,000 weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from hashlib import sha256
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from claims import CLAIMS, Claim
from tables import as_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "bench" / "science"


RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "offline-own": ("methods", "offline_own", {}),
    "offline-foreign": ("methods", "offline_foreign", {}),
    "iterative": ("weekly", "iterative", {}),
    "online-dpo": ("methods", "online_dpo", {}),
    "rloo": ("methods", "rloo", {}),
    "ppo": ("methods", "ppo", {}),
    "goodhart": ("goodhart", "goodhart", {}),
    "weekly-plain": ("weekly", "weekly", {}),
    "weekly-sft": ("weekly", "with_likelihood", {}),
    "weekly-replay": ("weekly", "with_replay", {}),
    "offline-own-beta-0.02": ("methods", "offline_own", {"beta": 0.02}),
    "offline-own-beta-0.5": ("methods", "offline_own", {"beta": 0.5}),
}
"""Each run's module, function and settings."""


def main() -> int:
    options = arguments()
    chosen = options.only or list(CLAIMS)
    names = list(dict.fromkeys(run for one in chosen for run in CLAIMS[one][0]))
    results = measured(names, list(range(options.seeds)), options)
    claims: dict[str, list[Claim]] = {one: CLAIMS[one][1](results) for one in chosen}
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seeds": options.seeds,
        "claims": {one: [claim._asdict() for claim in made] for one, made in claims.items()},
        "runs": results,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(as_text(results, claims))
    failed = [claim.name for made in claims.values() for claim in made if not claim.held]
    for name in failed:
        print(f"does not hold: {name}", file=sys.stderr)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(CLAIMS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, … up to this many; default 3")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"default {CACHE}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args()
    if min(options.seeds, options.jobs) < 1:
        parser.error("--seeds and --jobs are at least 1")
    return options


# --- results kept -------------------------------------------------------------------------------


def measured(
    names: Sequence[str], seeds: Sequence[int], options: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """What every run found, seed after seed, read where it is known."""
    options.cache.mkdir(parents=True, exist_ok=True)
    codes = {name: fingerprint(name) for name in names}
    places = {
        (name, seed): options.cache / f"{name}-seed-{seed}-{codes[name]}.json"
        for seed in seeds
        for name in names
    }
    missing = [one for one, place in places.items() if not place.is_file()]
    # a worker has one thread: the model is too small to share
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        asked = {
            pool.submit(do, name, seed, places[name, seed], options.cache): (name, seed)
            for name, seed in missing
        }
        for number, done in enumerate(as_completed(asked), start=1):
            name, seed = asked[done]
            told = f"[{number}/{len(missing)}] {name}, seed {seed}: {done.result():.0f} s"
            print(told, file=sys.stderr, flush=True)
    return {n: [json.loads(places[n, s].read_text()) for s in seeds] for n in names}


def do(name: str, seed: int, place: Path, cache: Path) -> float:
    """One run in a process of its own; returns its seconds."""
    from world import World

    module, function, settings = RUNS[name]
    run = getattr(import_module(module), function)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        found = run(World(Path(folder), cache / "models", seed), **settings)
    seconds = time.perf_counter() - started
    scratch = place.with_suffix(".part")
    scratch.write_text(json.dumps({**found, "seconds": seconds}))
    scratch.rename(place)
    return seconds


def fingerprint(name: str) -> str:
    """Of all code that decides a run's result: the product's, and the run's own here."""
    import trueup

    product = Path(trueup.__file__).parent
    rooms = ("models", "rounds", "toy", "train")
    files = [file for room in rooms for file in sorted((product / room).rglob("*.py"))]
    files += [HERE / f"{module}.py" for module in ("world", "methods", RUNS[name][0])]
    digest = sha256(repr(RUNS[name]).encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
