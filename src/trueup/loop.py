"""Read first: one turn of the loop, one call a stage.

A turn is re-entrant. Traffic is captured all day by the gateway; each call of `turn` picks up
where the records stand, does what can be done, and returns the verdict that stopped it: `pending`
while there are too few new pairs, `refused` by the first gate that says no, `passed` when the
candidate became champion. Killed anywhere, it is simply called again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from trueup import ab, evaluate, flag, guard, label, pair, promote, train
from trueup.judges import resolve
from trueup.measure import Cost, measured
from trueup.project import Config, Project
from trueup.records import (
    ABReport,
    Checkpoint,
    Dataset,
    EvalReport,
    GuardReport,
    Label,
    PreferencePair,
    Release,
    Report,
    Sampling,
    TrainingRun,
    Verdict,
)
from trueup.store import Store

__all__ = ["Config", "Project", "Turn", "gates", "turn"]


@dataclass
class Turn:
    """What one call did, and the verdict that ended it."""

    verdict: Verdict
    checkpoint: Checkpoint | None = None
    champion: str = ""
    """Weights that served when the turn began."""
    reports: list[Report] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)


def turn(project: Project) -> Turn:
    """From new traffic to a new champion, or to the verdict that stopped it.

    Raises:
        ProjectBusy: another process is turning this project's loop.
    """
    with project.store.exclusive():
        return _turn(project)


def _turn(project: Project) -> Turn:
    store, config = project.store, project.config
    done = Turn(Verdict(gate="train", status="pending", reason=""))
    stage = partial(_stage, done)

    dataset = _unfinished(store)
    if dataset is None:
        with stage("flag"):
            flags = flag.run(store, config.flag)
        with stage("label"):
            labels = label.run(store, config.label, project.champion())
        with stage("pair"):
            skipped = pair.run(store, config.pair, _held_out(project))
            fresh = pair.new_pairs(store)
        done.counts = {
            "examined": len(flags),
            "flagged": sum(f.raised for f in flags),
            "labelled": len(labels),
            "new_pairs": len(fresh),
            **{f"skipped: {why}": n for why, n in skipped.items()},
        }
        if len(fresh) < config.train.min_new_pairs:
            done.verdict = _pending(len(fresh), config.train.min_new_pairs)
            return done
        dataset = pair.freeze(store, fresh, skipped=skipped)

    champion = project.champion()
    done.champion = champion.weights
    # before an hour of training: would what labelled these pairs also promote?
    ab.check_scorer(
        resolve(config.ab.scorer, endpoint=config.ab.endpoint, suite=project.suite),
        _annotators(store, dataset),
    )
    with stage("train"):
        checkpoint = done.checkpoint = train.run(store, config.train, dataset, champion)
    for report in gates(project, checkpoint, stage):
        done.reports.append(report)
        done.verdict = report.verdict
        if not report.verdict.passed:  # cheap and strict first: what was refused costs no more
            break
    else:
        done.verdict = promote.run(store, config.promote, checkpoint)
    return done


def gates(
    project: Project, checkpoint: Checkpoint, stage: "partial[object] | None" = None
) -> Iterator[Report]:
    """Run the gates on a checkpoint in their order; the caller stops when it has seen enough."""
    store, config, suite = project.store, project.config, project.suite
    champion, candidate = project.champion(), project.candidate(checkpoint)
    stage = stage or partial(_stage, Turn(Verdict(gate="", status="pending", reason="")))
    with stage("guard"):  # type: ignore[attr-defined]
        report: Report = guard.run(store, config.guard, candidate, champion, suite)
    yield report
    with stage("evaluate"):  # type: ignore[attr-defined]
        gold = evaluate.read_gold(project.folder / config.evaluate.gold)
        report = evaluate.run(store, config.evaluate, candidate, champion, gold)
    yield report
    with stage("ab"):  # type: ignore[attr-defined]
        # the very answers the guard looked at: nothing is drawn twice
        sampling = Sampling(
            temperature=1.0, max_tokens=config.guard.max_tokens, seed=config.guard.seed
        )
        dataset = store.get(Dataset, store.get(TrainingRun, checkpoint.run_id).dataset_id)
        report = ab.run(
            store,
            config.ab,
            candidate,
            champion,
            suite,
            sampling,
            config.guard.samples_per_prompt,
            labelled_by=_annotators(store, dataset),
        )
    yield report


def _unfinished(store: Store) -> Dataset | None:
    """The loop's newest data set, if no gate has spoken on what was trained from it."""
    dataset = next((d for d in reversed(store.all(Dataset)) if d.source == "loop"), None)
    if dataset is None:
        return None
    champion = store.champion()
    for run in store.all(TrainingRun, dataset_id=dataset.id):
        checkpoint = store.last(Checkpoint, run_id=run.id)
        if checkpoint is None:
            continue
        if champion and any(r.checkpoint_id == checkpoint.id for r in _releases(store)):
            return None
        reports = [
            store.last(kind, checkpoint_id=checkpoint.id)
            for kind in (GuardReport, EvalReport, ABReport)
        ]
        if any(r and r.verdict.status == "refused" for r in reports):
            return None
    return dataset


def _releases(store: Store) -> list[Release]:
    return store.all(Release)


def _annotators(store: Store, dataset: Dataset) -> list[str]:
    """Who labelled the pairs of a data set."""
    pairs = store.get_all(PreferencePair, dataset.pair_ids)
    ids = {one for p in pairs for one in p.label_ids}
    return sorted({one.annotator for one in store.get_all(Label, ids)})


def _held_out(project: Project) -> pair.HeldOut:
    """Every prompt that measures: the suite, the gold set, and what the settings name."""
    from trueup.suite import read_suite

    gold = evaluate.read_gold(project.folder / project.config.evaluate.gold)
    extra = [p for name in project.config.pair.held_out for p in read_suite(project.folder / name)]
    return pair.HeldOut(
        [p.messages for p in [*project.suite, *extra]] + [item.messages for item in gold]
    )


def _pending(have: int, need: int) -> Verdict:
    return Verdict(
        gate="train",
        status="pending",
        reason=f"{have} new pairs of the {need} that train.min_new_pairs asks for",
        figures={"new_pairs": float(have), "min_new_pairs": float(need)},
    )


@contextmanager
def _stage(done: Turn, name: str) -> Iterator[None]:
    """Keep a stage's seconds and peak memory with the turn."""
    with measured(name, done.costs):
        yield
