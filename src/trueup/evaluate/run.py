"""The second gate: what the champion could do before, the candidate can still do."""

from collections.abc import Sequence
from typing import Any

from trueup import stats
from trueup.evaluate.answers import Marked, marked
from trueup.evaluate.config import EvaluateConfig
from trueup.evaluate.gold import GoldItem
from trueup.evaluate.paired import Paired, paired
from trueup.judges import Judge, signature
from trueup.models.stored import StoredModel
from trueup.records import Completion, EvalReport, Verdict, content_hash
from trueup.stats import Interval
from trueup.store import Store

__all__ = ["run", "settings"]

Answers = Sequence[tuple[bool | None, Completion]]
"""For each item whether it passed (None: it could not be checked here) and the answer."""


def run(
    store: Store,
    config: EvaluateConfig,
    candidate: StoredModel,
    champion: StoredModel,
    gold: Sequence[GoldItem],
    *,
    first: StoredModel | None = None,
    judge: Judge | None = None,
) -> EvalReport:
    """Put the gold set to both models, greedily, and compare item by item.

    Reads:   the gold items; answers already drawn by either model; earlier reports.
    Writes:  the missing answers; one EvalReport with each item's outcome.
    Again:   the same candidate, champion and gold set return the same report.
    Killed:  answers drawn so far are kept.
    Refuses: when a loss of more than `margin` to the champion, or of more than `budget` to the
             first model, cannot be excluded at 95 %; as unknown, when there are too few items to
             exclude it whatever the answers, or an item cannot be checked here.
    Warns:   of a slice that falls though the whole holds, and where the champion passes so few
             items that it had nothing to lose.
    Cost:    one greedy answer an item and model; the champion's and the first model's are kept
             from turn to turn.
    Next:    ab.run

    Args:
        first: the model the project began with; None leaves the budget out.
        judge: who grades `judge` items, see `gold_judge`.
    """
    assert candidate.checkpoint is not None, "a candidate is a checkpoint"
    wanted = settings(config, gold, judge)
    for report in reversed(
        store.all(EvalReport, checkpoint_id=candidate.checkpoint.id, champion=champion.weights)
    ):
        if report.config == wanted:
            return report
    has_budget = first is not None and config.budget is not None and config.budget < 1
    asked = {"candidate": candidate, "champion": champion}
    if first is not None and has_budget and first.weights != champion.weights:
        asked["first"] = first
    found = {
        role: marked(store, model, gold, config.max_tokens, name=f"{role} gold", judge=judge)
        for role, model in asked.items()
    }
    if has_budget:
        found.setdefault("first", found["champion"])
    ours, theirs, began = (
        [(one.passed, one.answer) for one in found[role]] if role in found else None
        for role in ("candidate", "champion", "first")
    )
    assert ours is not None and theirs is not None
    report = EvalReport(
        checkpoint_id=candidate.checkpoint.id,
        champion=champion.weights,
        config=wanted,
        verdict=_verdict(config, ours, theirs, began, slices=[item.slice for item in gold]),
        details=_details(gold, found, _always_passed(store)),
    )
    if not report.verdict.figures["refused_items"]:  # with a sandbox the answer is another
        store.add(report)
    return report


def settings(
    config: EvaluateConfig, gold: Sequence[GoldItem], judge: Judge | None = None
) -> dict[str, Any]:
    """What a report must have been made with to speak for these settings and items."""
    items = content_hash([item.model_dump(mode="json") for item in gold])
    wanted = {**config.model_dump(mode="json"), "items": items}
    return wanted | ({"judge_id": signature(judge)} if judge else {})


# --- the verdict ----------------------------------------------------------------------------------


def _verdict(
    config: EvaluateConfig,
    ours: Answers,
    theirs: Answers,
    began: Answers | None = None,
    *,
    slices: Sequence[str] = (),
) -> Verdict:
    """Margin, budget, and a word on slices that fall."""
    at = [
        i
        for i in range(len(ours))
        if ours[i][0] is not None
        and theirs[i][0] is not None
        and (began is None or began[i][0] is not None)
    ]
    mine, yours = ([bool(answers[i][0]) for i in at] for answers in (ours, theirs))
    change = paired([slices[i] for i in at] if slices else ["all"] * len(at), mine, yours)
    drift = stats.paired_difference(mine, [bool(began[i][0]) for i in at]) if began else None
    before = stats.wilson(sum(yours), len(yours))
    needed = stats.smallest_useful_n(config.margin, pass_rate=before.estimate if before else 0.5)
    figures = _figures(len(ours), len(at), needed, change, drift)
    gap = change.whole.difference if change else None
    if len(at) < len(ours):
        reason = f"unknown: {len(ours) - len(at)} items cannot be checked here"
        reason += " (code needs a sandbox, a judge's item a readable verdict)"
    elif gap is None or len(at) < needed:
        reason = f"unknown: {len(at)} items cannot exclude a loss of {config.margin:.0%}; "
        reason += f"it takes {needed}"
    elif gap.low <= -config.margin:
        reason = f"a loss of {-gap.low:.1%} on the gold set cannot be excluded, "
        reason += f"over {config.margin:.0%}"
    elif config.budget is not None and drift is not None and drift.low <= -config.budget:
        reason = f"a loss of {-drift.low:.1%} since the first model cannot be excluded, "
        reason += f"over the budget of {config.budget:.0%}"
    else:
        reason = f"a loss of more than {max(0.0, -gap.low):.1%} is excluded at 95 %"
        reason += _falling(change) + _nothing_to_lose(config, yours, gap)
        return Verdict(gate="evaluate", status="passed", reason=reason, figures=figures)
    return Verdict(
        gate="evaluate", status="refused", reason=reason + _falling(change), figures=figures
    )


def _figures(
    items: int, checked: int, needed: int, change: Paired | None, drift: Interval | None
) -> dict[str, float | None]:
    whole = change.whole if change else None
    worst = change.worst if change else None
    figures = {
        "items": float(checked),
        "items_needed": float(needed),
        "refused_items": float(items - checked),
        "accuracy": whole and whole.accuracy.estimate,
        "champion_accuracy": whole and whole.champion.estimate,
        "difference": whole and whole.difference.estimate,
        "difference_low": whole and whole.difference.low,
        "difference_high": whole and whole.difference.high,
        "lost": whole and float(whole.lost),
        "won": whole and float(whole.won),
        "p_value": whole and whole.p_value,
        "worst_slice_difference": worst and worst.difference.estimate,
    }
    if drift is not None:
        figures |= {"since_first": drift.estimate, "since_first_low": drift.low}
    return figures


def _nothing_to_lose(config: EvaluateConfig, champion: Sequence[bool], gap: Interval) -> str:
    """A warning where a candidate that forgot all the champion can do would pass, unless it is
    shown to be better."""
    if sum(champion) > config.margin * len(champion) or gap.low > 0:
        return ""
    return (
        f"; warning: the champion passes {sum(champion)} of {len(champion)} items, so there is "
        "hardly anything to lose: add items that it passes"
    )


def _falling(change: Paired | None) -> str:
    """A warning on slices that fell by more than chance explains."""
    names = [one.name for one in change.falling] if change else []
    return f"; warning: {', '.join(names)} {'fall' if len(names) > 1 else 'falls'}" if names else ""


# --- the details ----------------------------------------------------------------------------------


def _always_passed(store: Store) -> dict[str, bool]:
    """By item, whether every champion in an earlier report passed it."""
    passed: dict[str, bool] = {}
    for report in store.each(EvalReport):
        for item in report.details.get("items", ()):
            known = _same(item["id"], item["prompt"])
            passed[known] = passed.get(known, True) and item["champion_passed"] is True
    return passed


def _same(item_id: str, prompt: str) -> str:
    """An item by its id and words: one that was rewritten is another."""
    return content_hash([item_id, prompt])


def _details(
    gold: Sequence[GoldItem], found: dict[str, list[Marked]], always: dict[str, bool]
) -> dict[str, Any]:
    """Item by item, by slice, and the tail: what always passed and is lost now."""
    items = [
        {
            "id": ours.item.id,
            "slice": ours.item.slice,
            "prompt": ours.item.prompt,
            "passed": ours.passed,
            "champion_passed": theirs.passed,
            "answer": ours.answer.text,
            "champion_answer": theirs.answer.text,
        }
        for ours, theirs in zip(found["candidate"], found["champion"], strict=True)
    ]
    began = found.get("first", [])
    for item, one in zip(items, began, strict=False):
        item["first_passed"] = one.passed
    known = [i for i in items if i["passed"] is not None and i["champion_passed"] is not None]
    change = paired(
        [str(i["slice"]) for i in known],
        [bool(i["passed"]) for i in known],
        [bool(i["champion_passed"]) for i in known],
    )
    lost = [
        str(i["id"])
        for i in known
        if i["champion_passed"]
        and not i["passed"]
        and i.get("first_passed", True) is not False
        and always.get(_same(str(i["id"]), str(i["prompt"])), True)
    ]
    return {
        "items": items,
        "slices": _slices(change),
        "falling": [one.name for one in change.falling] if change else [],
        "worst_slice": change.worst.name if change and change.worst else None,
        "always_passed_now_lost": lost,
    }


def _slices(change: Paired | None) -> dict[str, dict[str, Any]]:
    """By name; the whole stands for a set without slices."""
    if change is None:
        return {}
    return {one.name: one.as_json() for one in change.slices or [change.whole]}
