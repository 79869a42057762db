"""The online benchmark on a tiny model: it runs, the sides do the same, it would tell."""

import copy
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: nothing to measure")

FOLDER = Path(__file__).parent.parent / "benchmarks"
NAMES = ("draw-even", "draw-ragged", "draw-natural", "score-even", "score-ragged")
NAMES += ("ppo-8x1", "ppo-2x4", "memory-4x2")


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The script, with its neighbours within reach as when it is run."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("online")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--quick` printed and wrote, over every case, without TRL."""
    folder = tmp_path_factory.mktemp("bench")
    written = [folder / "all.json", folder / "page.md"]
    done = subprocess.run(
        [
            *(sys.executable, FOLDER / "online.py", "--quick", "--threads", "1"),
            *("--ppo-venv", folder / "absent"),
            *("--json", written[0], "--markdown", written[1]),
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return {
        "text": done.stdout,
        "said": done.stderr,
        "report": json.loads(written[0].read_text()),
        "page": written[1].read_text(),
    }


def test_every_case_does_the_same_on_its_sides(ran: dict[str, Any]) -> None:
    cases = {case["name"]: case for case in ran["report"]["cases"]}
    assert tuple(cases) == NAMES
    for name, case in cases.items():
        assert case["status"] == ("alone" if name.startswith("ppo") else "equal"), case
        assert max(case["differences"].values()) <= 1e-4
    # what is compared are numbers, not nothing with nothing
    assert cases["draw-natural"]["differences"]["log-probs of trueup"] > 0
    assert cases["score-ragged"]["differences"]["scores"] > 0
    scores = [one for of in cases["score-even"]["runs"]["trueup"][0]["scores"] for one in of]
    assert max(scores) - min(scores) > 0.1, "a head that tells candidates apart"


def test_every_number_is_there(ran: dict[str, Any]) -> None:
    for case in ran["report"]["cases"]:
        for side in case["sides"].values():
            low, high = side["seconds_range"]
            assert 0 < low <= side["seconds"] <= high and side["peak_mb"] > 100
        for row in case["rows"]:
            assert row["speed"] > 0 and row["peak_ratio"] > 0
    drawn = ran["report"]["cases"][0]["sides"]["trueup"]
    said = ran["report"]["settings"]
    assert drawn["tokens"] == said["num_prompts"] * said["num_samples"] * said["num_new"]


def test_ppo_runs_without_trl_and_says_so(ran: dict[str, Any]) -> None:
    assert "PPO is measured without TRL" in ran["said"]
    cases = {case["name"]: case for case in ran["report"]["cases"]}
    assert set(cases["ppo-8x1"]["sides"]) == {"trueup", "trueup-full"}
    assert cases["ppo-8x1"]["rows"] == [] and "TRL missing" in ran["text"]


def test_the_tables_fit_and_say_how_they_came_about(ran: dict[str, Any]) -> None:
    assert max(map(len, ran["text"].splitlines())) <= 80
    for told in (ran["text"], ran["page"]):
        for word in ("1 thread", "TRL's default is 4 passes", ran["report"]["machine"]["cpu"]):
            assert word in " ".join(told.split()), word
    assert ran["page"].startswith("## Online methods")
    assert ran["page"].count("| `score-even` |") == 3


# --- what is not the same -----------------------------------------------------------------------

PREPARED = {
    "prompts": [[number, 1, 2] for number in range(8)],
    "texts": ["a"] * 8,
    "candidates": [[[5, 6], [7, 8]]] * 8,
    "eos_ids": [9],
}
TASK = {"timed": 1, "passes": 1, "num_new": 2, "num_samples": 2, "model": "m", "head": "h"}
TIMES = {"seconds": [9.0, 2.0], "peak_mb": 1000.0}


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """What honest sides would say."""
    prompts = task.get("prompts", [])
    num_answers = len(prompts) * task.get("num_samples", 0)
    rows = [[*prompt, 5, 6] for prompt in prompts for _ in range(task.get("num_samples", 0))]
    logprobs, each = [-1.0, -2.0], [[2] * num_answers] * 2
    said: dict[str, dict[str, Any]] = {
        "plain-logprobs": {"logprobs": [logprobs for _ in task.get("rows", [])]},
        "score-trueup": {"scores": [[0.5, -0.5]] * len(prompts)},
        "ppo-check": {"scores": [0.5] * num_answers, "logprobs": [logprobs] * num_answers},
        "ppo-trueup": {"answer_tokens": each},
        "trl": {
            "answer_tokens": each,
            "sequences": rows,
            "scores": [0.5] * num_answers,
            "logprobs": [logprobs] * num_answers,
            "ref_logprobs": [logprobs] * num_answers,
        },
        "trueup": {},  # the other benchmark's
    }
    said["score-transformers"] = said["score-trueup"]
    for side in ("draw-trueup", "draw-transformers"):
        said[side] = {
            "answers": [[[5, 6], [7, 8]]] * len(prompts),
            "logprobs": [[logprobs, logprobs]] * len(prompts),
        }
    return copy.deepcopy({**TIMES, **said[task["side"]]})


@pytest.mark.parametrize(
    ("name", "side", "place", "value", "status"),
    [
        ("draw-even", "", (), None, "equal"),
        ("score-even", "", (), None, "equal"),
        ("ppo-2x4", "", (), None, "equal"),
        ("memory-4x2", "", (), None, "equal"),
        ("draw-even", "draw-trueup", ("answers", 0, 1), [7], "INVALID"),
        ("draw-even", "draw-trueup", ("logprobs", 0, 1, 0), -1.001, "INVALID"),
        ("draw-even", "draw-transformers", ("logprobs", 2, 0, 1), float("nan"), "INVALID"),
        ("draw-natural", "draw-trueup", ("answers", 0, 0), [9, 5], "INVALID"),
        ("score-even", "score-trueup", ("scores", 1, 1), -0.499, "INVALID"),
        ("ppo-2x4", "trl", ("scores", 3), 0.501, "INVALID"),
        ("ppo-2x4", "trl", ("ref_logprobs", 0, 0), -1.001, "INVALID"),
        ("ppo-2x4", "trl", ("answer_tokens", 1, 0), 1, "INVALID"),
        ("ppo-2x4", "trl", ("sequences", 0, 0), 77, "INVALID"),
        ("ppo-2x4", "ppo-trueup", ("answer_tokens", 0), [2] * 7, "INVALID"),
        ("memory-4x2", "ppo-trueup", ("answer_tokens", 1, 2), 1, "INVALID"),
    ],
)
def test_a_difference_is_told(
    bench: ModuleType,
    name: str,
    side: str,
    place: tuple[Any, ...],
    value: Any,
    status: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(task: dict[str, Any]) -> dict[str, Any]:
        said = answer(task)
        if task["side"] == side:
            at = said
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = value
        return said

    case = next(one for one in bench.CASES if one.name == name)
    size = bench.Size(3, 2, 4, 2)
    row = bench.measured(case, TASK, PREPARED, size, bench.Runners(run, run, run), 1)
    assert row["status"] == status, row["differences"]
    assert all(one["seconds"] == 2.0 for one in row["sides"].values()), "the warm-up is not timed"
    monkeypatch.setattr(bench, "as_text", lambda report: "")
    monkeypatch.setattr(bench, "measure", lambda options: {"cases": [row]})
    monkeypatch.setattr(sys, "argv", ["online.py"])
    assert bench.main() == (0 if status == "equal" else 1)


def test_goals_are_held_against_what_was_measured(bench: ModuleType) -> None:
    fast = {"seconds": 1.0, "peak_mb": 25.0}
    slow = {"seconds": 2.3, "peak_mb": 100.0}
    goal = bench.Comparison("theirs", "ours", "TRL", speed_goal=1 / 0.45, peak_goal=0.25)
    row = bench.compared_sides(goal, {"theirs": slow, "ours": fast})
    assert row["meets_speed"] and row["meets_peak"] and row["peak_ratio"] == 0.25
    row = bench.compared_sides(goal, {"theirs": {**slow, "seconds": 2.2}, "ours": fast})
    assert not row["meets_speed"]
    row = bench.compared_sides(goal, {"theirs": {**slow, "peak_mb": 99.0}, "ours": fast})
    assert not row["meets_peak"]


def test_a_side_that_dies_is_told(bench: ModuleType, tmp_path: Path) -> None:
    run = bench.Runner(tmp_path, 1, FOLDER / "online_sides.py", reuse=False)
    size = bench.Size(3, 2, 4, 2)
    task = {**TASK, "model": str(tmp_path / "nowhere")}
    runners = bench.Runners(run, run, None)
    row = bench.measured(bench.CASES[0], task, PREPARED, size, runners, 1)
    assert row["status"] == "failed" and "nowhere" in row["error"]


def test_a_name_nobody_has_is_an_error(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["online.py", "--cases", "drow-*"])
    assert bench.main() == 2


# --- TRL's environment --------------------------------------------------------------------------


def test_an_environment_is_made_once(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = importlib.import_module("ppo_venv")
    asked: list[list[str]] = []

    def run(command: list[str], **kwargs: Any) -> SimpleNamespace:
        asked.append(command)
        (tmp_path / "made").mkdir(exist_ok=True)
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(venv.subprocess, "run", run)
    for _ in range(2):
        found = venv.ppo_python(tmp_path / "made", make=True)
        assert found == tmp_path / "made" / "bin" / "python"
    assert len(asked) == 3
    assert asked[1][-1] == "torch==2.13.0" and "trl==1.12.0" in asked[2]


def test_what_pip_said_is_told(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = importlib.import_module("ppo_venv")
    failed = SimpleNamespace(returncode=1, stdout="", stderr="no space left")
    monkeypatch.setattr(venv.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(bench.BenchmarkError, match="no space left"):
        venv.ppo_python(tmp_path / "made", make=True)
