"""The training benchmark on a tiny model: it runs, both sides take the same step, it would tell."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("trl", reason="TRL is not installed: nothing to compare with")

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "train.py"
ANSWERS = [("Blue.", "It is a frog."), ("Green, mostly; in autumn red.", "No."), ("Black.", "Snow")]


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The script, with its neighbours within reach as when it is run."""
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("bench_train", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of different lengths, in the shape of the public file."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {
            "conversations": [{"from": "human", "value": "And what colour is that? " * (1 + i)}],
            "chosen": {"from": "gpt", "value": chosen},
            "rejected": {"from": "gpt", "value": rejected},
        }
        for i, (chosen, rejected) in enumerate(ANSWERS)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def ran(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--quick` printed and wrote, over every case."""
    folder = tmp_path_factory.mktemp("bench")
    written = [folder / "all.json", folder / "page.md"]
    done = subprocess.run(
        [
            *(sys.executable, SCRIPT, "--quick", "--threads", "1", "--data", data),
            *("--json", written[0], "--markdown", written[1]),
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return {
        "text": done.stdout,
        "report": json.loads(written[0].read_text()),
        "page": written[1].read_text(),
    }


def test_every_case_takes_the_same_step_on_both_sides(
    ran: dict[str, Any], bench: ModuleType
) -> None:
    cases = {case["name"]: case for case in ran["report"]["cases"]}
    assert list(cases) == [case.name for case in bench.CASES]
    for name, case in cases.items():
        assert case["status"] == ("unlike" if name.endswith("trl-defaults") else "equal"), case
        assert case["differences"]["same_start"]
        if case["status"] == "equal":
            assert case["differences"]["loss"] <= 1e-5
            assert case["differences"]["grad_norm"] <= 1e-4
            assert case["differences"]["last_loss"] <= 1e-3


def test_every_number_is_there(ran: dict[str, Any]) -> None:
    for case in ran["report"]["cases"]:
        for side in (case["trl"], case["trueup"]):
            low, high = side["step_range"]
            assert 0 < low <= side["step"] <= high
            assert side["peak_mb"] > 100 and side["operations"] > 0
        assert case["operations_ratio"] > 1 and 0 < case["gemm_share"] < 1


def test_the_operations_are_those_of_the_model(ran: dict[str, Any]) -> None:
    """Two layers of 64 channels, 256 inside, 258 in the vocabulary; the prompt runs once."""
    report = ran["report"]
    long, short = report["settings"]["long"], report["settings"]["short"]
    rows, width = 2, long + 2 * (short - 1)
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 256)
    layers = 2 * rows * width * weights
    # the prompt looks at half of its square, each branch at the prompt and itself
    met = long**2 / 2 + 2 * (short - 1) * (long + short - 1)
    attention = 2 * 4 * rows * met * 64
    head = 2 * rows * 2 * short * 64 * 258
    # backward: twice forward; attention makes its scores again, the head keeps its probabilities
    policy = 3 * layers + 3.5 * attention + 3 * head
    counted = {case["name"]: case["trueup"]["operations"] for case in report["cases"]}
    assert counted["prompt-full-precomputed"] == pytest.approx(policy, rel=0.03)
    online = policy + layers + attention + head
    assert counted["prompt-full-online"] == pytest.approx(online, rel=0.03)
    assert counted["prompt-full-online-checkpointing"] > counted["prompt-full-online"]
    assert counted["prompt-lora-precomputed"] < policy


def test_the_tables_fit_and_say_how_they_came_about(ran: dict[str, Any]) -> None:
    assert max(map(len, ran["text"].splitlines())) <= 100
    for told in (ran["text"], ran["page"]):
        assert ran["report"]["versions"]["trl"] == "1.16.0"
        for word in ("trl 1.16.0", ran["report"]["machine"]["cpu"], "1 thread", "On a GPU expect"):
            assert word in " ".join(told.split()), word
    assert ran["page"].count("| `prompt-lora-online` |") == 2


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, "equal"),
        ({"grad_norms": [2.001, 1.0]}, "INVALID"),
        ({"losses": [0.6932, 0.6]}, "INVALID"),
        ({"start": "another"}, "INVALID"),
    ],
)
def test_a_different_step_is_told(
    bench: ModuleType, changed: dict[str, Any], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        "start": "same",
        "losses": [0.693147, 0.6],
        "grad_norms": [2.0, 1.0],
        "seconds": [9.0, 1.0, 9.0],
        "peak_mb": 1000.0,
        "operations": [1e9],
    }

    def run(task: dict[str, Any]) -> dict[str, Any]:
        return {**found, **(changed if task["side"] == "trueup" else {})}

    pairs = [[[1, 2], [3], [4]]] * 6
    case = bench.Case("prompt", "full", "online")
    row = bench.measured(case, pairs, bench.QUICK_SIZE, Path("model"), run, 1, 1)
    assert row["status"] == status
    assert row["trl"]["step"] == 1.0, "neither the warm-up nor the counted step is timed"
    row["gemm_share"] = 0.5
    monkeypatch.setattr(bench, "as_text", lambda report: "")
    monkeypatch.setattr(bench, "measure", lambda options: {"cases": [row]})
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert bench.main() == (0 if status == "equal" else 1)


def test_a_side_that_dies_is_told(bench: ModuleType, tmp_path: Path) -> None:
    run = bench.Runner(tmp_path, 1, bench.SIDES, reuse=False)
    row = bench.measured(
        bench.Case("prompt", "full", "online"),
        [[[1, 2], [3], [4]]] * 6,
        bench.QUICK_SIZE,
        tmp_path / "nowhere",
        run,
        1,
        1,
    )
    assert row["status"] == "failed" and "nowhere" in row["error"]


def test_without_real_pairs_a_reason_is_given(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["train.py", "--cases", "ragged-*", "--data", str(tmp_path / "absent.jsonl")]
    monkeypatch.setattr(sys, "argv", asked)
    assert bench.main() == 2
    said = capsys.readouterr().err
    assert "ragged cases are skipped" in said and "nothing is left to measure" in said


def test_a_name_nobody_has_is_an_error(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--cases", "promt-*"])
    assert bench.main() == 2
