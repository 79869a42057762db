"""The page of a turn: should this release be trusted? Made to be answered in a minute.

`report_data` gathers every figure from the records; the template only prints them, and the same
figures stand beside the page as JSON. What was not measured is None in one and "unknown" in the
other, never zero. Whatever a model or a user wrote is escaped, shown with its control characters
made visible, and cut where it is long; the page loads nothing and runs nothing.

One long file, in the order of the page, because page and JSON must not tell two stories; the words
of the page, and which plot shows what, are in templates/report.html.
"""

import json
import math
import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trueup import stats
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

__all__ = ["report_data", "write_report"]

NUM_EXAMPLES = 6  # of each sort
NUM_PAIRS = 5
SHOWN_CHARS = 600  # of a text, before it folds
MOST_CHARS = 4000  # of a text, unfolded; the rest is counted, not shown

HISTORY = ("loss", "margin", "chosen_logps_change", "rejected_logps_change")
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
        "measures": [
            asdict(measure)
            for measure in (
                _score(ab),
                _win_rate(ab),
                _evidence(ab),
                _length(guard),
                _entropy(guard),
                _kl(guard),
                _sameness(guard),
                _accuracy(evaluate),
            )
        ],
        "plots": {
            "evidence": _evidence_path(ab),
            "length": _both_sides(guard, "length"),
            "entropy": _both_sides(guard, "entropy"),
            "kl": {"values": _finite(_details(guard).get("kl")), "max_kl": _limit(guard, "max_kl")},
            "training": _history(checkpoint),
            "gold": _slices(evaluate),
        },
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


@dataclass(frozen=True)
class _Measure:
    """One row of the table. `kind` and `change_kind` name how `plots.figure` prints it."""

    name: str
    kind: str
    candidate: float | None
    champion: float | None = None
    has_champion: bool = True
    """False where the measure compares the two, and the champion has no figure of its own."""
    change: float | None = None
    has_change: bool = True
    low: float | None = None
    high: float | None = None
    """Of the 95 % interval: of the change, or of the candidate's figure where there is none."""
    has_interval: bool = True
    change_kind: str = ""
    line: str | None = None
    """The threshold in words; None where nothing is decided by this measure."""
    status: Literal["inside", "outside", "unknown", "not run", "no line"] = "no line"
    note: str = ""


def _status(
    report: Report | None, inside: bool | None
) -> Literal["inside", "outside", "unknown", "not run"]:
    """By the rule of the gate; unknown refuses."""
    if report is None:
        return "not run"
    if inside is None:
        return "unknown"
    return "inside" if inside else "outside"


def _score(ab: Report | None) -> _Measure:
    gap = stats.mean_interval([ours - theirs for ours, theirs, _ in _scored(ab)])
    scorer = _setting(ab, "scorer_id") or _setting(ab, "scorer")
    return _Measure(
        "Held-out score",
        "score",
        _figure(ab, "score"),
        _figure(ab, "champion_score"),
        change=gap and gap.estimate,
        low=gap and gap.low,
        high=gap and gap.high,
        change_kind="difference",
        note=f"by {scorer}" if scorer else "",
    )


def _win_rate(ab: Report | None) -> _Measure:
    low = _figure(ab, "win_rate_low")
    votes = {
        name: _figure(ab, f"{vote}_votes")
        for vote, name in (("win", "wins"), ("tie", "ties"), ("loss", "losses"))
    }
    return _Measure(
        "Win rate",
        "rate",
        _figure(ab, "win_rate"),
        has_champion=False,
        has_change=False,
        low=low,
        high=_figure(ab, "win_rate_high"),
        change_kind="rate",
        line="interval above 50%",
        status=_status(ab, None if low is None else low > 0.5),
        note=", ".join(f"{n:,.0f} {name}" for name, n in votes.items() if n is not None),
    )


def _evidence(ab: Report | None) -> _Measure:
    evidence, needed = _figure(ab, "evidence"), _limit(ab, "min_evidence")
    prompts = _figure(ab, "prompts")
    return _Measure(
        "Evidence",
        "number",
        evidence,
        has_champion=False,
        has_change=False,
        has_interval=False,
        line=_line("at least {:g}", needed),
        status=_status(ab, _both(evidence, needed, lambda e, n: e >= n)),
        note="e-value" if prompts is None else f"e-value over {prompts:,.0f} prompts",
    )


def _length(guard: Report | None) -> _Measure:
    ratio, low = _figure(guard, "length_ratio"), _figure(guard, "length_ratio_low")
    most = _limit(guard, "max_length_ratio")
    # the guard's own rule: over the line only if the interval also says it is longer at all
    inside = None if low is None else _both(ratio, most, lambda r, m: r <= m or low <= 1)
    return _Measure(
        "Answer length",
        "tokens",
        _figure(guard, "length"),
        _figure(guard, "champion_length"),
        change=ratio,
        low=low,
        high=_figure(guard, "length_ratio_high"),
        change_kind="ratio",
        line=_line("at most ×{:.2f}", most),
        status=_status(guard, inside),
        note="mean tokens",
    )


def _entropy(guard: Report | None) -> _Measure:
    ratio, least = _figure(guard, "entropy_ratio"), _limit(guard, "min_entropy_ratio")
    sides = _both_sides(guard, "entropy")
    interval = stats.ratio_interval(sides["candidate"], sides["champion"])
    return _Measure(
        "Token entropy",
        "nats",
        _figure(guard, "entropy"),
        _figure(guard, "champion_entropy"),
        change=ratio,
        low=interval and interval.low,
        high=interval and interval.high,
        change_kind="ratio",
        line=_line("at least ×{:.2f}", least),
        status=_status(guard, _both(ratio, least, lambda r, m: r >= m)),
        note="nats per token",
    )


def _kl(guard: Report | None) -> _Measure:
    kl, most = _figure(guard, "kl"), _limit(guard, "max_kl")
    return _Measure(
        "KL per answer",
        "nats",
        kl,
        has_champion=False,
        has_change=False,
        low=_figure(guard, "kl_low"),
        high=_figure(guard, "kl_high"),
        change_kind="nats",
        line=_line("at most {:g} nats", most),
        status=_status(guard, _both(kl, most, lambda k, m: k <= m)),
        note="nats from the champion",
    )


def _sameness(guard: Report | None) -> _Measure:
    same, before = _figure(guard, "same_answer_rate"), _figure(guard, "champion_same_answer_rate")
    most = _limit(guard, "max_same_answer_rate")
    # the guard's own rule: a champion that repeats itself as often has not got worse
    inside = None if before is None else _both(same, most, lambda s, m: s <= m or s <= before)
    return _Measure(
        "Most common answer",
        "rate",
        same,
        before,
        has_change=False,
        has_interval=False,
        line=_line("at most {:.0%}", most),
        status=_status(guard, inside),
        note="share of prompts that got it",
    )


def _accuracy(evaluate: Report | None) -> _Measure:
    low, margin = _figure(evaluate, "difference_low"), _limit(evaluate, "margin")
    items, needed = _figure(evaluate, "items"), _figure(evaluate, "items_needed")
    enough = _both(items, needed, lambda have, need: have >= need)
    note = "" if items is None else f"{items:,.0f} items"
    if enough is False:
        note += f" of the {needed:,.0f} it takes"
    return _Measure(
        "Gold accuracy",
        "rate",
        _figure(evaluate, "accuracy"),
        _figure(evaluate, "champion_accuracy"),
        change=_figure(evaluate, "difference"),
        low=low,
        high=_figure(evaluate, "difference_high"),
        change_kind="points",
        line=_line("interval above −{:g} points", None if margin is None else 100 * margin),
        status=_status(evaluate, _both(low, margin, lambda at, m: at > -m) if enough else None),
        note=note,
    )


def _figure(report: Report | None, name: str) -> float | None:
    return _number(report.verdict.figures.get(name)) if report else None


def _setting(report: Report | None, name: str) -> Any:
    return report.config.get(name) if report else None


def _limit(report: Report | None, name: str) -> float | None:
    return _number(_setting(report, name))


def _line(form: str, value: float | None) -> str:
    return "unknown" if value is None else form.format(value)


def _both(
    first: float | None, second: float | None, rule: Callable[[float, float], bool]
) -> bool | None:
    """The rule's answer, or None where one of the two is unknown."""
    return None if first is None or second is None else rule(first, second)


def _details(report: Report | None) -> dict[str, Any]:
    return report.details if report else {}


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _finite(values: Iterable[object] | None) -> list[float]:
    return [v for v in map(_number, values or ()) if v is not None]


def _evidence_path(ab: Report | None) -> dict[str, Any]:
    after_each = [_number(v) for v in _details(ab).get("evidence", ())]
    # before the first prompt the e-value is 1: no evidence either way
    return {
        "path": [1.0, *after_each] if after_each else [],
        "min_evidence": _limit(ab, "min_evidence"),
    }


def _both_sides(guard: Report | None, name: str) -> dict[str, list[float]]:
    """Both models' values for the prompts where both are known."""
    sides = _details(guard).get(name) or {}
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(
            map(_number, sides.get("candidate", ())),
            map(_number, sides.get("champion", ())),
            strict=False,
        )
        if ours is not None and theirs is not None
    ]
    return {"candidate": [o for o, _ in pairs], "champion": [t for _, t in pairs]}


def _history(checkpoint: Checkpoint) -> dict[str, list[float | None]]:
    """A column a figure, a place an optimizer step."""
    steps = checkpoint.metrics.get("history") or []
    columns = {name: [_number(step.get(name)) for step in steps] for name in HISTORY}
    return {name: column if _finite(column) else [] for name, column in columns.items()}


def _slices(evaluate: Report | None) -> dict[str, Any]:
    """The paired difference on the whole gold set and on each slice, the worst slice first."""
    slices: dict[str, list[dict[str, Any]]] = {}
    items = _checked(evaluate)
    for item in items:
        slices.setdefault(str(item.get("slice", "all")), []).append(item)
    rows = [_slice(name, members) for name, members in slices.items()]
    rows.sort(key=lambda row: (row["estimate"], row["slice"]))
    return {
        "margin": _limit(evaluate, "margin"),
        "all": _slice("all", items) if items else None,
        "slices": rows if len(rows) > 1 else [],
    }


def _slice(name: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ours = [bool(item["passed"]) for item in items]
    theirs = [bool(item["champion_passed"]) for item in items]
    gap = stats.paired_difference(ours, theirs)
    assert gap is not None, "a slice has items"
    return {
        "slice": name,
        "items": len(items),
        "passed": sum(ours),
        "champion_passed": sum(theirs),
        **gap._asdict(),
    }


def _scored(ab: Report | None) -> list[tuple[float, float, dict[str, Any]]]:
    """Votes with both scores known: the candidate's, the champion's, the vote."""
    votes = [
        (_number(vote.get("score")), _number(vote.get("champion_score")), vote)
        for vote in _details(ab).get("votes", ())
    ]
    return [(o, t, vote) for o, t, vote in votes if o is not None and t is not None]


def _head_to_head(ab: Report | None) -> dict[str, Any] | None:
    """The answers that gained and that lost most in score; as many of one as of the other."""
    if ab is None:
        return None
    gaps = [(ours - theirs, vote) for ours, theirs, vote in _scored(ab)]
    better = sorted((g for g in gaps if g[0] > 0), key=lambda g: -g[0])
    worse = sorted((g for g in gaps if g[0] < 0), key=lambda g: g[0])
    return {
        "prompts": len(gaps),
        "same": len(gaps) - len(better) - len(worse),
        "samples_per_prompt": _setting(ab, "samples_per_prompt"),
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


def _checked(evaluate: Report | None) -> list[dict[str, Any]]:
    """Gold items that could be checked for both models."""
    return [
        item
        for item in _details(evaluate).get("items", ())
        if item.get("passed") is not None and item.get("champion_passed") is not None
    ]


def _flips(evaluate: Report | None) -> dict[str, Any] | None:
    """Gold items only one of the two models passed."""
    if evaluate is None:
        return None
    items = _checked(evaluate)
    lost = [i for i in items if i["champion_passed"] and not i["passed"]]
    gained = [i for i in items if i["passed"] and not i["champion_passed"]]
    return {
        "items": len(items),
        "not_checked": len(_details(evaluate).get("items", ())) - len(items),
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
        "trained_on": _number(checkpoint.metrics.get("num_pairs")),
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
