"""DPO steps of trueup and of TRL 1.16 side by side: seconds, memory, and whether they agree.

    python benchmarks/train.py                      every case, on the quickstart's model
    python benchmarks/train.py --cases 'prompt-*'   some of them
    python benchmarks/train.py --quick              a minute, on a tiny random model: does it work?

Every measurement has a process of its own, so that its peak of memory is its own; the two sides
take turns. A row whose first loss or first gradient differs between them is INVALID, and then
the exit code is 1. TRL is needed here and nowhere else: `pip install 'trueup[bench]'`.
"""

import argparse
import fnmatch
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from processes import (
    MODEL,
    ROOT,
    BenchmarkError,
    Runner,
    commit,
    cpu_name,
    model_folder,
    num_cores,
    say,
    versions,
)
from telling import listed, markdown_table, some, text_table

Pair = list[list[int]]
"""Token ids of prompt, chosen and rejected."""

SIDES = Path(__file__).with_name("train_sides.py")
DATA = ROOT.parent / "shared" / "data" / "dpo-en.jsonl"
SEED = 0
BETA = 0.1
LEARNING_RATES = {"full": 1e-6, "lora": 1e-4}
REAL_PAIRS, REAL_TOKENS = 16, 1024
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 1e-4  # relative


@dataclass(frozen=True)
class Case:
    """One row of the tables."""

    shape: str
    """`prompt`: prompts three times as long as answers; `completion`: the other way round;
    `ragged`: real pairs."""
    adapter: str
    reference: str
    checkpointing: bool = False
    trl_defaults: bool = False
    """TRL in the precision and with the checkpointing it chooses itself."""
    accumulate: bool = False
    """TRL runs one pair at a time and sums the gradients."""

    @property
    def name(self) -> str:
        extra = {
            "checkpointing": self.checkpointing,
            "trl-defaults": self.trl_defaults,
            "accumulated": self.accumulate,
        }
        said = [self.shape, self.adapter, self.reference]
        return "-".join(said + [word for word, is_so in extra.items() if is_so])


CASES = [
    *(
        Case(shape, adapter, reference)
        for shape in ("prompt", "completion")
        for adapter in ("full", "lora")
        for reference in ("online", "precomputed")
    ),
    Case("prompt", "full", "online", checkpointing=True),
    Case("prompt", "full", "online", trl_defaults=True),
    Case("ragged", "full", "online"),
    Case("ragged", "lora", "online"),
    Case("ragged", "lora", "online", accumulate=True),
]


class Size(NamedTuple):
    """Tokens of prompt and of each completion in the two even shapes, and pairs a step."""

    long: int
    short: int
    pairs_per_step: int
    real_pairs_per_step: int

    def lengths(self, shape: str) -> tuple[int, int]:
        return (self.long, self.short) if shape == "prompt" else (self.short, self.long)


FULL_SIZE, QUICK_SIZE = Size(192, 64, 2, 4), Size(48, 16, 2, 2)


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
    return 0 if all(case["status"] in ("equal", "unlike") for case in report["cases"]) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="NAME", help="* is any")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--repeats", type=int, help="turns of every case; default 2, quick 1")
    parser.add_argument("--steps", type=int, help="timed steps of a turn; default 3, quick 1")
    parser.add_argument("--model", help=f"folder or name of a pulled model; default {MODEL}")
    parser.add_argument("--threads", type=int, default=num_cores(), help="default: all cores")
    parser.add_argument("--data", type=Path, default=DATA, help="pairs in ShareGPT shape")
    parser.add_argument("--quick", action="store_true", help="short, and tiny unless --model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page")
    options = parser.parse_args()
    if options.list:
        print(*(case.name for case in CASES), sep="\n")
        parser.exit()
    options.repeats = options.repeats or (1 if options.quick else 2)
    options.steps = options.steps or (1 if options.quick else 3)
    if min(options.repeats, options.steps, options.threads) < 1:
        parser.error("--repeats, --steps and --threads are at least 1")
    return options


# --- measuring ----------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run every case that was asked for; returns what is written as JSON.

    Raises:
        BenchmarkError: TRL, the model or the data is missing, or no case is meant.
    """
    cases = chosen_cases(options)
    if importlib.util.find_spec("trl") is None:
        raise BenchmarkError("TRL is not installed; pip install 'trueup[bench]'")
    data = options.data if options.data.is_file() else None
    if data is None and any(case.shape == "ragged" for case in cases):
        say(f"ragged cases are skipped: there is no file {options.data} (see --data)")
        cases = [case for case in cases if case.shape != "ragged"]
    if not cases:
        raise BenchmarkError("nothing is left to measure")
    size = QUICK_SIZE if options.quick else FULL_SIZE
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        is_tiny = options.quick and not options.model
        model = Path(folder) / "tiny" if is_tiny else model_folder(options.model or MODEL)
        run = Runner(Path(folder), options.threads, SIDES, reuse=options.quick)
        prepared = run(
            {
                "side": "prepare",
                "model": str(model),
                "tiny": is_tiny,
                "quick": options.quick,
                "data": str(data) if data else None,
                "num_pairs": REAL_PAIRS,
                "max_tokens": REAL_TOKENS,
            }
        )
        best = max(one["per_second"] for one in prepared["gemm"])
        report: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "versions": versions("trueup", "trl", "torch", "transformers", "peft"),
            "machine": {
                "cpu": cpu_name(),
                "threads": options.threads,
                "gemm": prepared["gemm"],
                "gemm_per_second": best,
            },
            "settings": {
                "model": "a tiny random Llama" if is_tiny else model.name,
                "turns": options.repeats,
                "steps": options.steps,
                "quick": options.quick,
                **size._asdict(),
                "beta": BETA,
                "learning_rates": LEARNING_RATES,
            },
            "cases": [],
        }
        for case in cases:
            pairs = pairs_of(case, size, options.steps, prepared)
            if not pairs:
                say(f"{case.name} is skipped: no pair has {REAL_TOKENS} tokens or fewer")
                continue
            row = measured(case, pairs, size, model, run, options.repeats, options.steps)
            if "trueup" in row:
                row["gemm_share"] = row["trueup"]["operations"] / row["trueup"]["step"] / best
            report["cases"].append(row)
            if options.json:  # an hour's work should not end with its last minute
                options.json.write_text(json.dumps(report, indent=1) + "\n")
        run.end()
    return report


def measured(
    case: Case, pairs: list[Pair], size: Size, model: Path, run: Runner, repeats: int, steps: int
) -> dict[str, Any]:
    """One row: both sides in turn, the one that starts changing each time."""
    per_step = size.real_pairs_per_step if case.shape == "ragged" else size.pairs_per_step
    task = {
        "model": str(model),
        "pairs": pairs,
        "pairs_per_step": per_step,
        "timed": steps,
        "counted": len(pairs) // per_step - 1 - steps,
        "adapter": case.adapter,
        "reference": case.reference,
        "beta": BETA,
        "learning_rate": LEARNING_RATES[case.adapter],
        "seed": SEED,
    }
    runs: dict[str, list[dict[str, Any]]] = {"trl": [], "trueup": []}
    for turn in range(repeats):
        for side in ("trl", "trueup") if turn % 2 == 0 else ("trueup", "trl"):
            is_default = case.trl_defaults and side == "trl"
            own = {
                "side": side,
                "checkpointing": case.checkpointing,
                "trl_defaults": is_default,
                "accumulate": case.accumulate and side == "trl",
            }
            if turn:  # what is computed is counted once
                own |= {"counted": 0, "pairs": pairs[: (1 + steps) * per_step]}
            try:
                found = run({**task, **own})
            except BenchmarkError as error:
                say(f"{case.name}: {error}")
                return {"name": case.name, "status": "failed", "error": str(error), "runs": runs}
            runs[side].append(found)
            each = " ".join(f"{s:.3g}" for s in found["seconds"][: 1 + steps])
            told = f"{each} s, {found['peak_mb']:,.0f} MB"
            say(f"{case.name} {turn + 1}/{repeats} {side}: {told}")
    differences = compared(runs["trl"], runs["trueup"], steps)
    is_same = (
        differences["loss"] <= LOSS_TOLERANCE
        and differences["grad_norm"] <= NORM_TOLERANCE
        and differences["same_start"]
    )
    status = "unlike" if case.trl_defaults else "equal" if is_same else "INVALID"
    sides = {side: summary(found, case, steps) for side, found in runs.items()}
    return {
        "name": case.name,
        "status": status,
        **sides,
        "seconds_ratio": sides["trl"]["step"] / sides["trueup"]["step"],
        "peak_ratio": sides["trueup"]["peak_mb"] / sides["trl"]["peak_mb"],
        "operations_ratio": sides["trl"]["operations"] / sides["trueup"]["operations"],
        "differences": differences,
        "runs": runs,
    }


def summary(runs: list[dict[str, Any]], case: Case, steps: int) -> dict[str, Any]:
    """Seconds, memory and operations of one step on one side."""
    timed = [run["seconds"][1 : 1 + steps] for run in runs]
    if case.shape == "ragged":  # steps of different sizes: a turn's mean is one value
        values = [statistics.mean(turn) for turn in timed]
    else:
        values = [seconds for turn in timed for seconds in turn]
    peaks = [run["peak_mb"] for run in runs]
    return {
        "step": statistics.median(values),
        "step_range": [min(values), max(values)],
        "peak_mb": statistics.median(peaks),
        "peak_mb_range": [min(peaks), max(peaks)],
        "operations": statistics.mean(runs[0]["operations"]),
    }


def compared(
    theirs: list[dict[str, Any]], ours: list[dict[str, Any]], steps: int
) -> dict[str, Any]:
    """The largest relative differences over the turns."""

    def worst(name: str, step: int) -> float:
        pairs = [(t[name][step], o[name][step]) for t, o in zip(theirs, ours, strict=True)]
        return max(abs(t - o) / max(abs(t), 1e-30) for t, o in pairs)

    return {
        "loss": worst("losses", 0),
        "grad_norm": worst("grad_norms", 0),
        "last_loss": worst("losses", steps),
        "same_start": all(t["start"] == o["start"] for t, o in zip(theirs, ours, strict=True)),
    }


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


def pairs_of(case: Case, size: Size, steps: int, prepared: dict[str, Any]) -> list[Pair]:
    """The pairs of the warm-up step, of the timed steps, and again of those to be counted: one of
    an even shape, all of a ragged one."""
    if case.shape == "ragged":
        real = prepared["pairs"]
        if not real:
            return []
        num = size.real_pairs_per_step
        first = [real[i % len(real)] for i in range((1 + steps) * num)]
        return first + first[num:]
    num = size.pairs_per_step
    prompt, completion = size.lengths(case.shape)
    draw = random.Random(SEED)
    first = [
        [
            [draw.randrange(prepared["vocabulary"]) for _ in range(length)]
            for length in (prompt, completion, completion)
        ]
        for _ in range((1 + steps) * num)
    ]
    return first + first[num : 2 * num]


# --- telling ------------------------------------------------------------------------------------


def tables(report: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Two tables as (header, rows): what a step takes, and whether it is the same step."""
    speed, same = [], []
    for case in report["cases"]:
        if case["status"] == "failed":
            speed.append([case["name"], "failed", "", "", "", ""])
            continue
        trl, ours, gap = case["trl"], case["trueup"], case["differences"]
        speed.append(
            [
                case["name"],
                _seconds(trl),
                _seconds(ours),
                f"{case['seconds_ratio']:.2f}x",
                f"{case['operations_ratio']:.2f}x",
                f"{case['gemm_share']:.0%}",
            ]
        )
        same.append(
            [
                case["name"],
                f"{trl['peak_mb']:,.0f}",
                f"{ours['peak_mb']:,.0f}",
                f"{case['peak_ratio']:.2f}x",
                f"{gap['loss']:.0e}",
                f"{gap['grad_norm']:.0e}",
                f"{gap['last_loss']:.0e}",
                {"equal": "yes", "unlike": "not asked"}.get(case["status"], case["status"]),
            ]
        )
    return [
        (["case", "TRL: s a step", "trueup: s a step", "speed", "work", "of rate"], speed),
        (["case", "TRL: MB", "trueup: MB", "MB", "loss", "norm", "later", "equal"], same),
    ]


def _seconds(side: dict[str, Any]) -> str:
    low, high = side["step_range"]
    spread = f" ({low:.3g}-{high:.3g})" if low < high else ""
    return f"{side['step']:.3g}{spread}"


def heading(report: dict[str, Any]) -> str:
    said, machine = report["settings"], report["machine"]
    known = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{report['date'][:10]}, commit {report['commit']}; {known}. "
        f"{machine['cpu']}, {some(machine['threads'], 'thread')}; best float32 matrix product "
        f"{machine['gemm_per_second'] / 1e9:.0f} GFLOP/s. Model: {said['model']}. Each side of a "
        f"case has {some(said['turns'], 'turn')} of 1 warm-up step and "
        f"{some(said['steps'], 'timed step')}."
        + (" Quick: one process did it all; only the differences mean anything." * said["quick"])
    )


def notes(report: dict[str, Any]) -> list[str]:
    """How the numbers came about, one sentence or two each."""
    said = report["settings"]
    long, short, pairs = said["long"], said["short"], said["pairs_per_step"]
    return [
        f"`prompt`: prompts of {long} random tokens and completions of {short}; `completion`: "
        f"{short} and {long}; {pairs} pairs a step. `ragged`: real pairs of at most "
        f"{REAL_TOKENS:,} tokens, {said['real_pairs_per_step']} a step.",
        "Both sides: one step of DPO in float32 with AdamW, no weight decay, no dropout, the norm "
        "of the gradient clipped at 1, LoRA of rank 16 on all linear layers. `online`: the "
        "reference is computed in every step; `precomputed`: before the first, outside the time.",
        "TRL's step is the one its own trainer runs, with what it computes for its metrics "
        "(entropy, mean logit, top-1 accuracy) and its default, fused AdamW. Padding its batch is "
        "outside its time; trueup's time has everything.",
        "Seconds: median (least-most) of the timed steps of all turns; of `ragged`, whose steps "
        "differ in size, of each turn's mean. MB: the process's highest resident memory up to the "
        "last timed step, imports included (the JSON has what imports alone take).",
        "`speed`: TRL's seconds for each of trueup's. `work`: TRL's operations for each of "
        "trueup's. Operations are counted as they run, in a further step that is not timed: every "
        "matrix product and attention, forward, backward and recomputed, padding included, 2 for a "
        "multiplication with its addition. Attention counts its whole square, half of it where "
        "the kernel is told that it is causal.",
        "`of rate`: trueup's operations a second as a share of the machine's best float32 matrix "
        "product, measured once, before the cases.",
        "`loss`, `norm`: relative difference of the first step's loss and gradient norm, the "
        f"worst of all turns. Above {LOSS_TOLERANCE:.0e} and {NORM_TOLERANCE:.0e}, or with other "
        "initial values, a row is INVALID. The first loss is ln 2 whatever the model says, so the "
        "norm is the test that bites; `later` is the last timed step's loss, not limited.",
        "A step of `ragged` runs in groups of at most 512 padded tokens in trueup and as one "
        "batch in TRL, each by default; `accumulated`: TRL one pair at a time. `checkpointing`: "
        "on both sides. `trl-defaults`: TRL as it sets itself up, bfloat16 autocast and "
        "checkpointing, against trueup as it sets itself up; slow on a CPU that lacks bfloat16.",
        "`full`: trueup holds the champion's weights beside the policy's even where the "
        "reference is precomputed, because its train stage does; TRL holds one model there.",
        "On a GPU expect less: there TRL's head runs on completion positions only, here on every "
        "position, prompt and padding too.",
    ]


def as_text(report: dict[str, Any]) -> str:
    parts = [textwrap.fill(heading(report), 96)]
    parts += [text_table(header, rows) for header, rows in tables(report)]
    return "\n\n".join([*parts, listed(notes(report), 96)])


def as_markdown(report: dict[str, Any]) -> str:
    parts = ["# Training beside TRL", heading(report)]
    parts += [markdown_table(header, rows) for header, rows in tables(report)]
    parts.append("\n".join(f"- {note}" for note in notes(report)))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
