"""Drawing, scoring and PPO updates of trueup beside transformers and TRL 1.12, and what they share.

    python benchmarks/online.py                    every case, on the quickstart's model
    python benchmarks/online.py --cases 'draw-*'   some of them
    python benchmarks/online.py --quick            a minute, on a tiny random model: does it work?

Every measurement has a process of its own, so that its peak of memory is its own; the sides take
turns. Answers are drawn at random, so sides are held to each other's log-probs, scores and
lengths: where these differ a row is INVALID, and then the exit code is 1.

TRL's PPO left it after 1.12.0, which needs an environment of its own. It is made on first use in
`.venv-ppo`, or found where `--ppo-venv` or TRUEUP_PPO_VENV says; `--quick` makes none.
"""

import argparse
import fnmatch
import json
import os
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from online_cases import (
    BATCH,
    CASES,
    COEFFICIENTS,
    FULL_SIZE,
    LEARNING_RATES,
    QUICK_SIZE,
    SEED,
    Case,
    Comparison,
    Runners,
    Sides,
    Size,
    asked,
    inputs,
)
from online_checks import TOLERANCE, compared
from online_tables import as_markdown, as_text
from ppo_venv import ppo_python
from processes import (
    MODEL,
    BenchmarkError,
    Runner,
    Task,
    commit,
    cpu_name,
    model_folder,
    num_cores,
    say,
    versions,
)


def main() -> int:
    options = arguments()
    try:
        report = measure(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_text(report))
    if options.markdown:
        options.markdown.write_text(as_markdown(report))
    return 0 if all(case["status"] in ("equal", "alone") for case in report["cases"]) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="NAME", help="* is any")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--repeats", type=int, help="turns of every case; default 2, quick 1")
    parser.add_argument("--steps", type=int, help="timed runs of a turn; default 2, quick 1")
    parser.add_argument("--passes", type=int, default=1, help="of PPO over a batch; default 1")
    parser.add_argument("--model", help=f"folder or name of a pulled model; default {MODEL}")
    parser.add_argument("--threads", type=int, default=num_cores(), help="default: all cores")
    parser.add_argument(
        "--ppo-venv",
        type=Path,
        metavar="FOLDER",
        help="environment with TRL 1.12; default .venv-ppo, made where it is missing",
    )
    parser.add_argument("--quick", action="store_true", help="short, and tiny unless --model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page's section")
    options = parser.parse_args()
    if options.list:
        print(*(case.name for case in CASES), sep="\n")
        parser.exit()
    options.repeats = options.repeats or (1 if options.quick else 2)
    options.steps = options.steps or (1 if options.quick else 2)
    if min(options.repeats, options.steps, options.threads, options.passes) < 1:
        parser.error("--repeats, --steps, --passes and --threads are at least 1")
    return options


# --- measuring ----------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run every case that was asked for; returns what is written as JSON.

    Raises:
        BenchmarkError: the model is missing, TRL cannot be installed, or no case is meant.
    """
    cases = chosen_cases(options)
    size = QUICK_SIZE if options.quick else FULL_SIZE
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        is_tiny = options.quick and not options.model
        model = folder / "tiny" if is_tiny else model_folder(options.model or MODEL)
        asks_trl = any("trl" in case.sides for case in cases)
        venv = options.ppo_venv or os.environ.get("TRUEUP_PPO_VENV")
        make = not options.quick
        python = ppo_python(Path(venv) if venv else None, make=make) if asks_trl else None

        def runner(script: str, interpreter: str) -> Runner:
            return Runner(
                folder, options.threads, here / script, reuse=options.quick, python=interpreter
            )

        own = runner("online_sides.py", sys.executable)
        dpo = runner("train_sides.py", sys.executable)
        trl = runner("ppo_trl.py", str(python)) if python else None
        task = {
            "model": str(model),
            "head": str(folder / "head.pt"),
            "timed": options.steps,
            "passes": options.passes,
            "num_new": size.num_new,
            "num_samples": size.num_samples,
            "coefficients": COEFFICIENTS,
            "seed": SEED,
        }
        prepared = own(
            {
                **task,
                "side": "prepare",
                "tiny": is_tiny,
                "prompt": size.prompt,
                "num_prompts": max(BATCH, size.num_prompts),
            }
        )
        report: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "versions": versions("trueup", "torch", "transformers", "peft"),
            "machine": {"cpu": cpu_name(), "threads": options.threads},
            "settings": {
                "model": "a tiny random Llama" if is_tiny else model.name,
                "turns": options.repeats,
                "steps": options.steps,
                "passes": options.passes,
                "quick": options.quick,
                "trl": "measured" if python else "not installed" if asks_trl else "not asked",
                "batch": BATCH,
                "learning_rates": LEARNING_RATES,
                "coefficients": COEFFICIENTS,
                "tolerance": TOLERANCE,
                **size._asdict(),
            },
            "cases": [],
        }
        for case in cases:
            row = measured(case, task, prepared, size, Runners(own, dpo, trl), options.repeats)
            report["cases"].append(row)
            if options.json:  # an hour's work should not end with its last minute
                options.json.write_text(json.dumps(report, indent=1) + "\n")
        for one in (own, dpo, trl):
            if one:
                one.end()
    return report


def measured(
    case: Case, task: Task, prepared: Task, size: Size, runners: Runners, repeats: int
) -> dict[str, Any]:
    """One case: its sides in turn, the order turned round each time."""
    task = {**task, **inputs(case, prepared, size)}
    sides = [side for side in case.sides if runners.trl or not side.startswith("trl")]
    runs: Sides = {side: [] for side in sides}
    differences: dict[str, float] = {}
    try:
        for turn in range(repeats):
            for side in sides if turn % 2 == 0 else reversed(sides):
                run, own = asked(case, side, runners)
                found = run({**task, **own})
                runs[side].append(found)
                each = " ".join(f"{s:.3g}" for s in found["seconds"])
                told = f"{each} s, {found['peak_mb']:,.0f} MB"
                say(f"{case.name} {turn + 1}/{repeats} {side}: {told}")
        differences = compared(case, task, runs, runners.own)
    except BenchmarkError as error:
        say(f"{case.name}: {error}")
        return {"name": case.name, "status": "failed", "error": str(error), "rows": []}
    summaries = {side: summary(case, found) for side, found in runs.items()}
    rows = [
        compared_sides(one, summaries)
        for one in case.comparisons
        if one.beside in runs and one.ours in runs
    ]
    is_same = all(worst <= TOLERANCE for worst in differences.values())
    return {
        "name": case.name,
        "kind": case.kind,
        "status": ("equal" if rows else "alone") if is_same else "INVALID",
        "sides": summaries,
        "rows": rows,
        "differences": differences,
        "runs": {side: [_short(one) for one in found] for side, found in runs.items()},
    }


# --- telling ----------------------------------------------------------------------------------


def summary(case: Case, runs: list[Task]) -> dict[str, Any]:
    """Seconds and memory of one side; of drawn answers also tokens a second."""
    values = [seconds for run in runs for seconds in run["seconds"][1:]]
    peaks = [run["peak_mb"] for run in runs]
    said = {
        "seconds": statistics.median(values),
        "seconds_range": [min(values), max(values)],
        "peak_mb": statistics.median(peaks),
    }
    if case.kind == "draw":
        said["tokens"] = sum(len(one) for group in runs[0]["answers"] for one in group)
        said["per_second"] = said["tokens"] / said["seconds"]
    return said


def compared_sides(one: Comparison, sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row of the tables. Where tokens were drawn they are what speed counts."""
    theirs, ours = sides[one.beside], sides[one.ours]
    speed = theirs["seconds"] / ours["seconds"]
    if "per_second" in ours:
        speed = ours["per_second"] / theirs["per_second"]
    return {
        **one._asdict(),
        "speed": speed,
        "peak_ratio": ours["peak_mb"] / theirs["peak_mb"],
        "meets_speed": None if one.speed_goal is None else speed >= one.speed_goal,
        "meets_peak": None
        if one.peak_goal is None
        else ours["peak_mb"] <= one.peak_goal * theirs["peak_mb"],
    }


def _short(run: Task) -> Task:
    """Without tokens and their log-probs."""
    long = ("answers", "logprobs", "ref_logprobs", "sequences", "operations")
    return {name: value for name, value in run.items() if name not in long}


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The cases the options mean.

    Raises:
        BenchmarkError: none has such a name.
    """
    found = [
        case
        for case in CASES
        if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in options.cases)
    ]
    if not found:
        raise BenchmarkError(f"no case is called {' '.join(options.cases)}; --list names them")
    return found


if __name__ == "__main__":
    sys.exit(main())
