"""The second gate: what the champion could do before, the candidate can still do."""

from collections.abc import Sequence
from typing import Any

from trueup import stats
from trueup.evaluate import checkers
from trueup.evaluate.config import EvaluateConfig
from trueup.evaluate.gold import GoldItem
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import Completion, EvalReport, Sampling, Verdict, content_hash
from trueup.store import Store

__all__ = ["run", "settings"]


def run(
    store: Store,
    config: EvaluateConfig,
    candidate: StoredModel,
    champion: StoredModel,
    gold: Sequence[GoldItem],
) -> EvalReport:
    """Put the gold set to both models, greedily, and compare item by item.

    Reads:   the gold items; answers already drawn by either model.
    Writes:  the missing answers; one EvalReport with each item's outcome.
    Again:   the same candidate, champion and gold set return the same report.
    Killed:  answers drawn so far are kept.
    Refuses: when a loss of more than `margin` cannot be excluded at 95 %; as unknown, when there
             are too few items to exclude it whatever the answers, or code has no sandbox here.
    Cost:    one greedy answer an item and model; the champion's are kept from turn to turn.
    Next:    ab.run
    """
    assert candidate.checkpoint is not None, "a candidate is a checkpoint"
    wanted = settings(config, gold)
    for report in reversed(
        store.all(EvalReport, checkpoint_id=candidate.checkpoint.id, champion=champion.weights)
    ):
        if report.config == wanted:
            return report
    ours, theirs = (
        _outcomes(store, config, model, gold, name)
        for name, model in (("candidate gold", candidate), ("champion gold", champion))
    )
    report = EvalReport(
        checkpoint_id=candidate.checkpoint.id,
        champion=champion.weights,
        config=wanted,
        verdict=_verdict(config, ours, theirs),
        details=_details(gold, ours, theirs),
    )
    if not report.verdict.figures["refused_items"]:  # with a sandbox the answer is another
        store.add(report)
    return report


def settings(config: EvaluateConfig, gold: Sequence[GoldItem]) -> dict[str, Any]:
    """What a report must have been made with to speak for these settings and items."""
    items = content_hash([item.model_dump(mode="json") for item in gold])
    return {**config.model_dump(mode="json"), "items": items}


def _outcomes(
    store: Store, config: EvaluateConfig, model: StoredModel, gold: Sequence[GoldItem], name: str
) -> list[tuple[bool | None, Completion]]:
    """For each item whether it passed (None: its code may not run here) and the answer."""
    sampling = Sampling(temperature=0.0, max_tokens=config.max_tokens, seed=0)
    drawn = model.samples(store, [i.messages for i in gold], sampling, num_samples=1, name=name)
    outcomes = []
    with task("check", len(gold)) as advance:
        for item, (answer,) in zip(gold, drawn, strict=True):
            outcome = checkers.check(item.checker, answer.text)
            outcomes.append((outcome.passed, answer))
            advance(1)
    return outcomes


def _verdict(
    config: EvaluateConfig,
    ours: Sequence[tuple[bool | None, Completion]],
    theirs: Sequence[tuple[bool | None, Completion]],
) -> Verdict:
    both = [
        (o, t)
        for (o, _), (t, _) in zip(ours, theirs, strict=True)
        if o is not None and t is not None
    ]
    mine, yours = [o for o, _ in both], [t for _, t in both]
    gap = stats.paired_difference(mine, yours)
    accuracy, before = stats.wilson(sum(mine), len(mine)), stats.wilson(sum(yours), len(yours))
    needed = stats.smallest_useful_n(config.margin, pass_rate=before.estimate if before else 0.5)
    figures = {
        "items": float(len(both)),
        "items_needed": float(needed),
        "refused_items": float(len(ours) - len(both)),
        "accuracy": accuracy and accuracy.estimate,
        "champion_accuracy": before and before.estimate,
        "difference": gap and gap.estimate,
        "difference_low": gap and gap.low,
        "difference_high": gap and gap.high,
    }
    if len(both) < len(ours):
        status, reason = (
            "refused",
            (f"unknown: the code of {len(ours) - len(both)} items cannot be run in a sandbox here"),
        )
    elif gap is None or len(both) < needed:
        status, reason = (
            "refused",
            (
                f"unknown: {len(both)} items cannot exclude a loss of {config.margin:.0%}; "
                f"it takes {needed}"
            ),
        )
    elif gap.low <= -config.margin:
        status, reason = (
            "refused",
            (
                f"a loss of {-gap.low:.1%} on the gold set cannot be excluded, "
                f"over {config.margin:.0%}"
            ),
        )
    else:
        status, reason = (
            "passed",
            f"a loss of more than {max(0.0, -gap.low):.1%} is excluded at 95 %",
        )
    return Verdict(gate="evaluate", status=status, reason=reason, figures=figures)


def _details(
    gold: Sequence[GoldItem],
    ours: Sequence[tuple[bool | None, Completion]],
    theirs: Sequence[tuple[bool | None, Completion]],
) -> dict[str, object]:
    items = [
        {
            "id": item.id,
            "slice": item.slice,
            "prompt": item.prompt,
            "passed": mine,
            "champion_passed": yours,
            "answer": answer.text,
            "champion_answer": before.text,
        }
        for item, (mine, answer), (yours, before) in zip(gold, ours, theirs, strict=True)
    ]
    slices: dict[str, dict[str, int]] = {}
    for one in items:
        counts = slices.setdefault(
            str(one["slice"]), {"items": 0, "passed": 0, "champion_passed": 0}
        )
        counts["items"] += 1
        counts["passed"] += bool(one["passed"])
        counts["champion_passed"] += bool(one["champion_passed"])
    return {"items": items, "slices": slices}
