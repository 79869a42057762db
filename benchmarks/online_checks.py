"""Whether the sides of `online.py` did the same: lengths, log-probs, scores, prompts."""

from typing import Any

from online_cases import Case, Run, Sides
from processes import Task

__all__ = ["TOLERANCE", "compared"]

TOLERANCE = 1e-4  # of log-probs in nats, of scores


def compared(case: Case, task: Task, runs: Sides, own: Run) -> dict[str, float]:
    """How far the sides are apart where they should agree; infinity where it is not a matter of
    rounding."""
    compare = {"draw": _drawn, "score": _scored, "ppo": _learned, "memory": _learned}
    return compare[case.kind](task, runs, own)


def _drawn(task: Task, runs: Sides, own: Run) -> dict[str, float]:
    """Lengths, and every side's log-probs against a plain pass of transformers' model over some
    of its answers."""
    found = {}
    for side, of_side in runs.items():
        first, rows = of_side[0], []
        lengths = [_unlike(_lengths(one), wanted(task, one)) for one in of_side]
        found[f"lengths of {side}"] = max(lengths)
        if first["logprobs"] is None:
            continue
        for prompt, answers in zip(task["prompts"], first["answers"], strict=True):
            rows += [[prompt, answer] for answer in answers[:2]]
        plain = own({**task, "side": "plain-logprobs", "rows": rows})["logprobs"]
        told = [one for group in first["logprobs"] for one in group[:2]]
        found[f"log-probs of {side}"] = _apart(told, plain)
    return found


def wanted(task: Task, run: Task) -> list[list[int]]:
    """How long each answer should be: what was set, or up to its own end."""
    if task["lengths"]:
        return task["lengths"]
    return [
        [_until(one, task["eos_ids"], task["num_new"]) for one in group] for group in run["answers"]
    ]


def _until(answer: list[int], eos_ids: list[int], limit: int) -> int:
    return next((at + 1 for at, token in enumerate(answer) if token in eos_ids), limit)


def _lengths(run: Task) -> list[list[int]]:
    return [[len(one) for one in group] for group in run["answers"]]


def _scored(task: Task, runs: Sides, own: Run) -> dict[str, float]:
    pairs = zip(runs["transformers"], runs["trueup"], strict=True)
    return {"scores": max(_apart(theirs["scores"], ours["scores"]) for theirs, ours in pairs)}


def _learned(task: Task, runs: Sides, own: Run) -> dict[str, float]:
    """Answers and their lengths in every update; and of TRL's first ones the scores and log-probs
    that trueup gives them."""
    num_answers = len(task["prompts"]) * task["num_samples"]
    each = [[task["num_new"]] * num_answers] * (1 + task["timed"])
    found = {
        f"lengths of {side}": max(_unlike(one["answer_tokens"], each) for one in of_side)
        for side, of_side in runs.items()
    }
    for side in runs:
        if side.startswith("trl"):
            first = runs[side][0]
            ours = own({**task, "side": "ppo-check", "sequences": first["sequences"]})
            found[f"scores of {side}"] = _apart(first["scores"], ours["scores"])
            for kind in ("logprobs", "ref_logprobs"):
                found[f"{kind} of {side}"] = _apart(first[kind], ours["logprobs"])
            given = sorted(prompt for prompt in task["prompts"] for _ in range(task["num_samples"]))
            size = len(given[0])
            asked_for = sorted(sequence[:size] for sequence in first["sequences"])
            found[f"prompts of {side}"] = _unlike(asked_for, given)
    return found


def _unlike(one: Any, other: Any) -> float:
    return 0.0 if one == other else float("inf")


def _apart(one: Any, other: Any) -> float:
    """The largest difference between numbers at the same places; infinity where the places are
    not the same or a number is not finite."""
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return float("inf")
        return max((_apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, list) or isinstance(other, list):
        return float("inf")
    gap = abs(one - other)
    return gap if gap < float("inf") else float("inf")
