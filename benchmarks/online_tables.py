"""What `online.py` prints: a table a kind of case, and how the numbers came about."""

import textwrap
from typing import Any

from telling import listed, markdown_table, some, text_table

__all__ = ["as_markdown", "as_text"]

WIDTH = 80
TITLES = {
    "draw": "Drawing, tokens a second",
    "score": "Scoring, seconds",
    "ppo": "PPO, seconds an update",
    "memory": "PPO beside our own DPO, seconds a step",
}
Table = tuple[str, list[str], list[list[str]]]


def tables(report: dict[str, Any]) -> list[Table]:
    """As (title, header, rows): speed by kind, memory, and how far the sides are apart."""
    is_quick = report["settings"]["quick"]
    speed: dict[str, list[list[str]]] = {kind: [] for kind in TITLES}
    memory, same = [], []
    for case in report["cases"]:
        same.append(_agreement(case))
        for row in case["rows"]:
            theirs, ours = case["sides"][row["beside"]], case["sides"][row["ours"]]
            named = [case["name"], row["name"]]
            speed[case["kind"]].append(
                [
                    *(*named, _speed(theirs), _speed(ours), f"{row['speed']:.2f}x"),
                    _goal(row["speed_goal"], row["meets_speed"], is_quick),
                ]
            )
            memory.append(
                [
                    *(*named, f"{theirs['peak_mb']:,.0f}", f"{ours['peak_mb']:,.0f}"),
                    f"{row['peak_ratio']:.2f}x",
                    _goal(row["peak_goal"], row["meets_peak"], is_quick),
                ]
            )
    header = ["case", "beside", "there", "trueup", "ratio", "goal"]
    found = [(TITLES[kind], [*header[:4], "speed", "goal"], rows) for kind, rows in speed.items()]
    found.append(("Highest resident memory, MB", header, memory))
    found.append(("Whether the sides did the same", ["case", "furthest apart", "", "equal"], same))
    return [table for table in found if table[2]]


def _speed(side: dict[str, Any]) -> str:
    low, high = side["seconds_range"]
    middle = side.get("per_second", side["seconds"])
    return f"{middle:.3g} ±{(high - low) / 2 / side['seconds']:.0%}"


def _goal(goal: float | None, met: bool | None, is_quick: bool) -> str:
    if goal is None:
        return ""
    return f"{goal:.3g}x" + ("" if is_quick else " met" if met else " missed")


def _agreement(case: dict[str, Any]) -> list[str]:
    if case["status"] == "failed":
        return [case["name"], case["error"].splitlines()[0][:40], "", "failed"]
    told = {"equal": "yes", "alone": "TRL missing"}.get(case["status"], "INVALID")
    name, worst = max(case["differences"].items(), key=lambda item: item[1])
    return [case["name"], name if worst else "nothing", f"{worst:.0e}", told]


def heading(report: dict[str, Any]) -> str:
    said, machine = report["settings"], report["machine"]
    known = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{report['date'][:10]}, commit {report['commit']}; {known}. {machine['cpu']}, "
        f"{some(machine['threads'], 'thread')}. Model: {said['model']}, float32. Each side of a "
        f"case has {some(said['turns'], 'turn')} of 1 warm-up and "
        f"{some(said['steps'], 'timed run')}."
        + (" Quick: one process a side did it all; only equality means anything." * said["quick"])
    )


def notes(report: dict[str, Any]) -> list[str]:
    """How the numbers came about, a few sentences each."""
    said = report["settings"]
    prompt, num_new, samples = said["prompt"], said["num_new"], said["num_samples"]
    rates, coefficients = said["learning_rates"], said["coefficients"]
    defaults = ", ".join(f"{name} {value:g}" for name, value in coefficients.items())
    return [
        f"`draw`: {said['num_prompts']} prompts of {prompt} tokens, {samples} answers each, "
        "temperature 1, nothing cut off. `generate` has all answers in one batch, without and "
        "with the log-probs of its tokens (`output_logits`, `compute_transition_scores`); trueup's "
        f"`sample` always keeps them. `even`: {num_new} tokens each, no token ends an answer; "
        f"`ragged`: 1 to {num_new}, the same on both sides; `natural`: up to the end token, at "
        f"most {2 * num_new}, so lengths differ by chance and tokens a second are compared.",
        f"`score`: {samples} candidates to each of {said['num_prompts']} prompts; trueup's "
        "`RewardModel.scores`, its adapter switched on, beside a sequence classifier with the "
        f"same weights and head on {samples} full rows a batch. `ragged`: {num_new // 4} to "
        f"{num_new} tokens, rows padded.",
        f"`ppo`: one update on {said['batch']} answers of {num_new} tokens: draw, score, "
        f"reference, values, {some(said['passes'], 'pass')} over the batch in one minibatch "
        f"(TRL's default is 4 passes). `8x1`: 8 prompts; `2x4`: 2 prompts with 4 answers each. "
        f"Both: temperature 1 (TRL's default is 0.7), {defaults}, AdamW without decay.",
        f"trueup: one frozen backbone, LoRA of rank 16 on all linear layers ({rates['lora']:g}), "
        "a value head on the policy's states, a reward model with an adapter of its own, groups "
        "of at most 512 tokens, gradients clipped at 1. TRL: four models, policy and value "
        f"trained whole ({rates['full']:g}), no clipping; checkpointing and bfloat16, its "
        "defaults, are off; its micro-batch is the whole batch, its default, or a quarter "
        "(`TRL in 4 parts`). `ours full`: policy and value are whole models in trueup too.",
        "`memory`: a PPO update on 4 prompts with 2 answers each over a DPO step with LoRA on "
        "4 pairs, the same tokens.",
        "Seconds: median of the timed runs of all turns, ± half their range. MB: the process's "
        "highest resident memory, imports included. `speed`: how many times as fast trueup is; "
        "`ratio`: its memory as a share.",
        "Equal: lengths are what was set; log-probs of drawn tokens are those of a plain pass of "
        "transformers' model (`generate`'s taken from its logits: the transition scores it "
        "returns are up to 2e-4 off by rounding, see the JSON); scores are the classifier's; "
        "trueup gives TRL's first answers the "
        f"scores and log-probs that TRL gave them. Beyond {said['tolerance']:.0e}, in nats and "
        "raw scores, a row is INVALID.",
    ]


def as_text(report: dict[str, Any]) -> str:
    parts = [textwrap.fill(heading(report), WIDTH)]
    parts += [f"{title}\n{_text(header, rows)}" for title, header, rows in tables(report)]
    return "\n\n".join([*parts, listed(notes(report), WIDTH)])


def _text(header: list[str], rows: list[list[str]]) -> str:
    """The second column to the left as well."""
    width = max(len(row[1]) for row in [header, *rows])
    padded = [[row[0], row[1].ljust(width), *row[2:]] for row in [header, *rows]]
    return text_table(padded[0], padded[1:])


def as_markdown(report: dict[str, Any]) -> str:
    parts = ["## Online methods", heading(report)]
    for title, header, rows in tables(report):
        parts += [f"{title}:", markdown_table(header, rows)]
    parts.append("\n".join(f"- {note}" for note in notes(report)))
    return "\n\n".join(parts) + "\n"
