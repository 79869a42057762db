"""The page of a turn: should this release be trusted? Made to be answered in a minute.

`report_data` gathers every figure from the records; the template only prints them, and the same
figures stand beside the page as JSON. What was not measured is None in one and "unknown" in the
other, never zero. Whatever a model or a user wrote is escaped, shown with its control characters
made visible, and cut where it is long; the page loads nothing and runs nothing.

Page and JSON must not tell two stories, so there is one gathering of figures; what the gates
measured is in `measures.py`, the words of the page, and which plot shows what, in
templates/report.html.
"""

import json
import math
import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from trueup.errors import ConfigError, DataError, StorageError
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
from trueup.web import plots
from trueup.web.measures import checked, details, measures, number, scored, series, setting

__all__ = ["report_data", "write_report"]

NUM_EXAMPLES = 6  # of each sort
NUM_PAIRS = 5
SHOWN_CHARS = 600  # of a text, before it folds
MOST_CHARS = 4000  # of a text, unfolded; the rest is counted, not shown

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They reorder what stands around them, so that a page can say the opposite of its text."""


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
    page = path or store.folder / "reports" / f"{checkpoint.id}.html"
    twin = page.with_suffix(".json")
    if twin == page:
        raise ConfigError(
            "The page would overwrite its own JSON twin", got=str(page), expected="a name in .html"
        )
    data = report_data(
        store, checkpoint, verdict=verdict, reports=reports, costs=costs, counts=counts
    )
    html = _template().render(data, twin=twin.name).lstrip()
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(twin, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        _write_whole(page, html)
    except OSError as error:
        raise StorageError(
            f"The report {page} could not be written; the verdict stands in the store",
            got=error.strerror,
            expected="a writable folder with free space",
            next="free some space, then 'trueup report'",
        ) from error
    return page


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
    return _plain(data)


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
        "prompt": _excerpt(vote.get("prompt")),
        "champion": _excerpt(vote.get("champion_answer")),
        "candidate": _excerpt(vote.get("answer")),
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
            "prompt": _excerpt(prompt[-1].content if prompt else ""),
            "champion": _excerpt(before),
            "candidate": _excerpt(after),
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
                "prompt": _excerpt(item.get("prompt")),
                "champion": _excerpt(item.get("champion_answer")),
                "candidate": _excerpt(item.get("answer")),
            }
            for item in items[:NUM_EXAMPLES]
        ],
        "other_ids": [item.get("id") for item in items[NUM_EXAMPLES:]],
    }


def _excerpt(text: object) -> dict[str, Any]:
    """The start of a text, what follows it when unfolded, and its whole length."""
    text = str(text or "")
    start = len(text) if len(text) <= 1.25 * SHOWN_CHARS else _break(text, SHOWN_CHARS)
    return {"text": text[:start], "more": text[start:MOST_CHARS], "chars": len(text)}


def _break(text: str, limit: int) -> int:
    """A place at or shortly before `limit` that does not cut a word, if there is one."""
    space = max(text.rfind(mark, limit - 60, limit) for mark in " \n")
    return limit if space < 0 else space + 1


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
        "prompt": _excerpt(pair.prompt[-1].content if pair.prompt else ""),
        "earlier_messages": max(0, len(pair.prompt) - 1),
        "chosen": _excerpt(pair.chosen.text),
        "rejected": _excerpt(pair.rejected.text),
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


def _plain(value: Any) -> Any:
    """JSON values only: text made visible, tuples as lists, numbers that are none as None."""
    if isinstance(value, str):
        return _visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_visible(str(key)): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(one) for one in value]
    return value


def _visible(text: str) -> str:
    """Control characters as pictures, and what reorders text by its number."""
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_picture, text))


def _picture(char: str) -> str:
    if char in "\n\t":
        return char
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))
    # Cs: half a surrogate pair, which no file can hold
    if char in BIDI or unicodedata.category(char) in ("Cc", "Cs"):
        return f"⟨U+{ord(char):04X}⟩"
    return char


def _write_whole(path: Path, text: str) -> None:
    """A file of its own beside the target, then a rename: readers see the old page or the new."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)  # mkstemp makes it private; a report is for the team
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _gold_rows(gold: Mapping[str, Any]) -> list[plots.Row]:
    """The whole set first, then its slices, in the words of the plot."""
    rows = [gold["all"]] if gold["all"] else []
    return [
        plots.Row(
            "Whole gold set" if place == 0 else row["slice"],
            f"{row['champion_passed']:,} → {row['passed']:,} of {row['items']:,}",
            100 * row["estimate"],
            100 * row["low"],
            100 * row["high"],
            strong=place == 0,
        )
        for place, row in enumerate([*rows, *gold["slices"]])
    ]


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trueup.web"),
        autoescape=True,  # for every file, whatever its ending
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["draw"] = plots
    environment.filters["gold_rows"] = _gold_rows
    environment.filters["bars"] = lambda counts: [
        plots.Bar(name.replace("_", " "), number) for name, number in counts.items()
    ]
    environment.filters["figure"] = plots.figure
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return environment.get_template("report.html")
