"""The page of a turn: should this release be trusted? Made to be answered in a minute.

`report_data` gathers every figure from the records; the template only prints them, and the same
figures stand beside the page as JSON. What was not measured is None in one and "unknown" in the
other, never zero. Whatever a model or a user wrote is escaped, shown with its control characters
made visible, and cut where it is long; the page loads nothing and runs nothing.

Page and JSON must not tell two stories, so there is one gathering of figures; what the gates
measured is in `measures.py`, the words of the page, and which plot shows what, in
templates/report.html.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trueup.errors import DataError
from trueup.measure import Cost
from trueup.records import (
    Checkpoint,
    Dataset,
    Label,
    PreferencePair,
    Release,
    Report,
    SampleSet,
    TrainingRun,
    Verdict,
)
from trueup.store import Store
from trueup.web.measures import checked, details, measures, number, scored, series, setting
from trueup.web.page import excerpt, plain, write_page

__all__ = ["report_data", "write_report"]

NUM_EXAMPLES = 6  # of each sort
NUM_PAIRS = 5


def write_report(
    store: Store,
    checkpoint: Checkpoint,
    *,
    verdict: Verdict,
    reports: Sequence[Report],
    costs: Sequence[Cost] = (),
    counts: Mapping[str, int] | None = None,
    path: Path | None = None,
) -> Path:
    """Write the page of a checkpoint, and beside it the same figures as JSON.

    Each file is whole or absent, also after kill -9; the same records give the same bytes.

    Args:
        verdict: what ended the turn.
        reports: of the gates that ran; fewer than all is normal, later ones of a kind win.
        counts: of the turn: `examined`, `flagged`, `labelled`, `new_pairs`, `skipped: WHY`.
        path: by default `reports/ID.html` in the store's folder.

    Returns:
        Where the page is.

    Raises:
        DataError: a report is of another checkpoint, or they are not against one champion.
        StorageError: the page cannot be written there.
    """
    data = report_data(
        store, checkpoint, verdict=verdict, reports=reports, costs=costs, counts=counts
    )
    return write_page(
        path or store.folder / "reports" / f"{checkpoint.id}.html",
        "report.html",
        data,
        "The report {page} could not be written; the verdict stands in the store",
        "'trueup report'",
    )


def report_data(
    store: Store,
    checkpoint: Checkpoint,
    *,
    verdict: Verdict,
    reports: Sequence[Report],
    costs: Sequence[Cost] = (),
    counts: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Every figure of the page, as plain JSON values. Arguments as in `write_report`."""
    _check_one_contest(checkpoint, reports)
    newest: dict[str, Report] = {r.tag: r for r in reports}
    guard, evaluate, ab = newest.get("guard"), newest.get("eval"), newest.get("ab")
    run = next(iter(store.get_all(TrainingRun, [checkpoint.run_id])), None)
    dataset = next(iter(store.get_all(Dataset, [run.dataset_id])), None) if run else None
    counts = dict(counts or {})
    data = {
        "verdict": verdict.model_dump(mode="json", exclude={"figures"}),
        "gates": _gates(newest, verdict),
        "standing": _standing(store, checkpoint),
        "checkpoint": checkpoint.id,
        "candidate": checkpoint.weights,
        "champion": next((r.champion for r in reports), run.start_weights if run else None),
        "base": checkpoint.base_weights,
        "date": max(r.created_at for r in [checkpoint, *newest.values()]),
        "measures": measures(guard, evaluate, ab),
        "guard": _alarms(guard),
        "plots": series(checkpoint, guard, evaluate, ab),
        "head_to_head": _head_to_head(ab),
        "unjudged": _unjudged(store, checkpoint, reports) if ab is None else [],
        "gold": _flips(evaluate),
        "training": _training(store, checkpoint, run, dataset, counts),
        "costs": [asdict(cost) for cost in costs],
        "ids": _ids(checkpoint, run, newest),
        "configs": _configs(run, newest),
    }
    return plain(data)


def _check_one_contest(checkpoint: Checkpoint, reports: Sequence[Report]) -> None:
    """A page that mixed two candidates, or two champions, would be believed."""
    contests = {(r.checkpoint_id, r.champion) for r in reports}
    if len(contests) > 1 or any(candidate != checkpoint.id for candidate, _ in contests):
        raise DataError(
            "The reports are not all of this checkpoint against one champion",
            got=sorted(contests),
            expected=f"reports of {checkpoint.id} against the same weights",
            next="trueup report",
        )


def _gates(newest: Mapping[str, Report], verdict: Verdict) -> list[dict[str, Any]]:
    """What each gate said, in their order; None where it did not speak."""
    spoken = {report.verdict.gate: report.verdict for report in newest.values()}
    spoken[verdict.gate] = verdict
    return [
        {
            "gate": gate,
            "status": spoken[gate].status if gate in spoken else None,
            "reason": spoken[gate].reason if gate in spoken else None,
        }
        for gate in ("guard", "evaluate", "ab", "promote")
    ]


def _standing(store: Store, checkpoint: Checkpoint) -> dict[str, Any]:
    """Whether this checkpoint serves, ever served, and what serves now."""
    champion = store.champion()
    released = any(r.checkpoint_id == checkpoint.id for r in store.all(Release))
    return {
        "released": released,
        "serves": champion is not None and champion.checkpoint_id == checkpoint.id,
        "serving_weights": champion.weights if champion else checkpoint.base_weights,
    }


def _head_to_head(ab: Report | None) -> dict[str, Any] | None:
    """The answers that gained and that lost most in score; as many of one as of the other."""
    if ab is None:
        return None
    gaps = [(ours - theirs, vote) for ours, theirs, vote in scored(ab)]
    better = sorted((g for g in gaps if g[0] > 0), key=lambda g: -g[0])
    worse = sorted((g for g in gaps if g[0] < 0), key=lambda g: g[0])
    return {
        "prompts": len(gaps),
        "same": len(gaps) - len(better) - len(worse),
        "samples_per_prompt": setting(ab, "samples_per_prompt"),
        "improved": {"total": len(better), "shown": [_vote(*g) for g in better[:NUM_EXAMPLES]]},
        "worse": {"total": len(worse), "shown": [_vote(*g) for g in worse[:NUM_EXAMPLES]]},
    }


def _vote(gap: float, vote: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": excerpt(vote.get("prompt")),
        "champion": excerpt(vote.get("champion_answer")),
        "candidate": excerpt(vote.get("answer")),
        "champion_score": vote["champion_score"],
        "candidate_score": vote["score"],
        "change": gap,
    }


def _unjudged(
    store: Store, checkpoint: Checkpoint, reports: Sequence[Report]
) -> list[dict[str, Any]]:
    """Where no scorer compared them: the stored answers that changed most in length.

    A turn that the guard stops should show what the guard saw.
    """
    if not reports:
        return []
    ours, theirs = (
        {
            (one.prompt, one.sampling): one.completions[0].text
            for one in store.each(SampleSet, weights=weights)
            if one.completions and one.sampling.is_plain  # the gold set's answers are greedy
        }
        for weights in (checkpoint.weights, reports[0].champion)
    )
    both = [(key[0], ours[key], theirs[key]) for key in ours if key in theirs]
    both.sort(key=lambda one: -abs(math.log((1 + len(one[1])) / (1 + len(one[2])))))
    return [
        {
            "prompt": excerpt(prompt[-1].content if prompt else ""),
            "champion": excerpt(before),
            "candidate": excerpt(after),
        }
        for prompt, after, before in both[:NUM_EXAMPLES]
    ]


def _alarms(guard: Report | None) -> dict[str, Any]:
    """Every alarm of the guard, those that crossed a line first, and what was not asked."""
    order = ("red", "unknown", "amber", "inside")
    found = [one for one in details(guard).get("alarms", ()) if one.get("status") in order]
    found.sort(key=lambda one: order.index(one["status"]))
    return {
        "warnings": list(details(guard).get("warnings", ())),
        "alarms": [
            {
                "name": one.get("name"),
                "status": one["status"],
                "says": one.get("says") if one["status"] != "unknown" else "unknown",
                **{key: number(one.get(key)) for key in ("low", "high", "amber", "red")},
            }
            for one in found
        ],
        "not_asked": dict(details(guard).get("not_asked", {})),
        "embedder": details(guard).get("embedder"),
    }


def _flips(evaluate: Report | None) -> dict[str, Any] | None:
    """Gold items only one of the two models passed."""
    if evaluate is None:
        return None
    items = checked(evaluate)
    lost = [i for i in items if i["champion_passed"] and not i["passed"]]
    gained = [i for i in items if i["passed"] and not i["champion_passed"]]
    return {
        "items": len(items),
        "not_checked": len(details(evaluate).get("items", ())) - len(items),
        "lost": _flipped(lost),
        "gained": _flipped(gained),
    }


def _flipped(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "count": len(items),
        "shown": [
            {
                "id": item.get("id"),
                "slice": item.get("slice"),
                "prompt": excerpt(item.get("prompt")),
                "champion": excerpt(item.get("champion_answer")),
                "candidate": excerpt(item.get("answer")),
            }
            for item in items[:NUM_EXAMPLES]
        ],
        "other_ids": [item.get("id") for item in items[NUM_EXAMPLES:]],
    }


def _training(
    store: Store,
    checkpoint: Checkpoint,
    run: TrainingRun | None,
    dataset: Dataset | None,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    pairs = store.get_all(PreferencePair, dataset.pair_ids) if dataset else []
    in_turn = {k.removeprefix("skipped: "): n for k, n in counts.items() if k.startswith("skipped")}
    return {
        "method": run.method if run else None,
        "dataset": dataset.id if dataset else None,
        "source": dataset.source if dataset else None,
        "pairs": len(dataset.pair_ids) if dataset else None,
        "erased": len(dataset.pair_ids) - len(pairs) if dataset else None,
        "trained_on": number(checkpoint.metrics.get("num_pairs")),
        "prompts": number(checkpoint.metrics.get("num_prompts")),
        "rewarded_by": checkpoint.metrics.get("rewarded_by"),
        "counts": {k: n for k, n in counts.items() if not k.startswith("skipped")},
        "labels_without_pair": (dataset.skipped if dataset else {}) or in_turn,
        "pairs_left_out": checkpoint.metrics.get("skipped") or {},
        "annotators": _annotators(store, pairs),
        "examples": [_pair(pair) for pair in _spread(pairs)],
    }


def _annotators(store: Store, pairs: Sequence[PreferencePair]) -> list[dict[str, Any]]:
    labels = store.get_all(Label, sorted({one for p in pairs for one in p.label_ids}))
    by_whom = Counter((label.annotator, label.annotator_kind) for label in labels)
    return [
        {"annotator": who, "annotator_kind": kind, "labels": n}
        for (who, kind), n in by_whom.most_common()
    ]


def _spread(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """A few pairs from the widest margin to the narrowest: the narrow ones show label noise."""
    ordered = sorted(pairs, key=lambda pair: (-pair.margin, pair.id))
    if len(ordered) <= NUM_PAIRS:
        return ordered
    return [ordered[round(n * (len(ordered) - 1) / (NUM_PAIRS - 1))] for n in range(NUM_PAIRS)]


def _pair(pair: PreferencePair) -> dict[str, Any]:
    return {
        "id": pair.id,
        "prompt": excerpt(pair.prompt[-1].content if pair.prompt else ""),
        "earlier_messages": max(0, len(pair.prompt) - 1),
        "chosen": excerpt(pair.chosen.text),
        "rejected": excerpt(pair.rejected.text),
        "margin": pair.margin,
    }


def _ids(
    checkpoint: Checkpoint, run: TrainingRun | None, newest: Mapping[str, Report]
) -> list[dict[str, Any]]:
    named = [
        ("checkpoint", checkpoint.id),
        ("training run", checkpoint.run_id),
        ("data set", run.dataset_id if run else None),
        ("base weights", checkpoint.base_weights),
        ("start weights", run.start_weights if run else None),
        ("reference weights", run.ref_weights if run else None),
        ("chat template", run.template if run else None),
        *((f"{r.verdict.gate} report", r.id) for r in newest.values()),
    ]
    return [{"name": name, "id": one} for name, one in named]


def _configs(run: TrainingRun | None, newest: Mapping[str, Report]) -> dict[str, Any]:
    reports = {r.verdict.gate: r.config for r in newest.values()}
    return {**({"train": run.config} if run else {}), **reports}
