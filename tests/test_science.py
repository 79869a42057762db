"""The claims of `make science` on made-up curves: what holds, what fails, what nobody knows."""

import argparse
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks" / "science"


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    """The scripts, with their neighbours within reach as when they are run."""
    sys.path.insert(0, str(FOLDER))
    yield {name: import_module(name) for name in ("claims", "run", "tables")}
    sys.path.remove(str(FOLDER))
    for name in ("claims", "run", "tables"):
        sys.modules.pop(name)


@pytest.fixture
def claims(bench: dict[str, ModuleType]) -> ModuleType:
    return bench["claims"]


def curve(kls: list[float], gold: list[float], **more: list[float]) -> dict[str, Any]:
    points = [
        {"step": at, "kl": kl, "gold": g, **{name: column[at] for name, column in more.items()}}
        for at, (kl, g) in enumerate(zip(kls, gold, strict=True))
    ]
    return {"points": points, "labels": 1, "trained_on": {"chosen_logps_change": [1.0]}}


def test_gold_is_read_between_the_looks_where_the_distance_is_first_passed(
    claims: ModuleType,
) -> None:
    assert claims.at_kl(curve([0, 3, 5, 2, 6], [0, 1, 2, 9, 9]), 3.5) == pytest.approx(1.25)
    assert claims.at_kl(curve([0, 3.5], [0, 1]), 3.5) == 1


def test_a_run_that_never_went_so_far_is_unknown_and_its_claim_does_not_hold(
    claims: ModuleType,
) -> None:
    near, far = curve([0, 3], [0, 9]), curve([0, 7], [0, 1])
    assert claims.at_kl(near) is None
    made = claims.online_vs_offline(
        {"online-dpo": [near, far], "offline-foreign": [far, far], "offline-own": [far, far]}
    )
    assert [one.held for one in made] == [False, False]
    assert "unknown in 1 of 2 seeds" in made[0].said


def test_a_claim_is_on_the_mean_over_seeds(claims: ModuleType) -> None:
    low, high, rival = (curve([0, 7], [0, 2 * gold]) for gold in (1.0, 1.5, 1.0))
    made = claims.online_vs_offline(
        {"online-dpo": [low, high], "offline-foreign": [rival] * 2, "offline-own": [rival] * 2}
    )
    assert made[0].figures == pytest.approx([0.0, 0.5])
    assert [one.held for one in made] == [True, True]


def test_a_proxy_that_falls_at_the_end_is_no_over_optimisation(claims: ModuleType) -> None:
    gold, kls = [1.0, 2.0, 0.5, 0.0], [0.0, 1.0, 2.0, 3.0]
    rising = claims.goodhart({"goodhart": [curve(kls, gold, proxy=[0, 1, 2, 3])]})
    falling = claims.goodhart({"goodhart": [curve(kls, gold, proxy=[0, 1, 2, 1])]})
    assert [one.held for one in rising] == [True, True, True]
    assert [one.held for one in falling] == [True, True, False]


def test_every_run_that_a_claim_reads_can_be_made(bench: dict[str, ModuleType]) -> None:
    asked = {run for runs, _ in bench["claims"].CLAIMS.values() for run in runs}
    assert asked == set(bench["run"].RUNS)


def test_what_was_measured_before_is_read(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    run = bench["run"]
    found = curve([0, 7], [0, 1])
    for seed in (0, 1):
        code = run.fingerprint("rloo")
        (tmp_path / f"rloo-seed-{seed}-{code}.json").write_text(json.dumps(found))
    options = argparse.Namespace(cache=tmp_path, jobs=1)
    assert run.measured(["rloo"], [0, 1], options) == {"rloo": [found, found]}
