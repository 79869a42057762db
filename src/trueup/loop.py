"""Read first: one turn of the loop, one call a stage.

A turn is re-entrant. Traffic is captured all day by the gateway; each call of `turn` picks up
where the records stand, does what can be done, and returns the verdict that stopped it: `pending`
while there are too few new pairs, `refused` by the first gate that says no, `passed` when the
candidate became champion. Killed anywhere, it is simply called again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from trueup import ab, evaluate, flag, guard, label, pair, promote, shift, train
from trueup.errors import ConfigError
from trueup.judges import Judge, members_of, resolve, version_of
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
from trueup.suite import read_suite

__all__ = [
    "GATES",
    "Config",
    "Project",
    "Turn",
    "ab_gate",
    "behind",
    "earlier_releases",
    "evaluate_gate",
    "gated",
    "guard_beside",
    "guard_gate",
    "held_out",
    "scored_by",
    "shift_of",
    "taught_by",
    "todays_reports",
    "turn",
]


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
    warnings: list[str] = field(default_factory=list)
    """What a person should read although nothing was refused."""


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

    # what is missing or forbidden shows before anything is drawn, labelled or trained
    measured_with = held_out(project)
    scorer = resolve(config.ab.scorer, endpoint=config.ab.endpoint, suite=project.suite)
    taught = scored_by(store, config.train)
    if config.label.judge != label.PEOPLE:
        taught.insert(0, resolve(config.label.judge, endpoint=config.label.endpoint).id)
    ab.check_scorer(scorer, taught)
    gold = evaluate.read_gold(project.folder / config.evaluate.gold)
    evaluate.gold_judge(store, config.evaluate, gold, taught)
    if config.train.method == "reward":
        raise ConfigError(
            "A reward model cannot serve, so the loop has nothing to promote",
            got="train.method = 'reward'",
            expected="a method that trains the policy",
            next="train it on the side with 'trueup train --method reward'",
        )

    dataset = _unfinished(store)
    if dataset is None:
        with measured("flag", done.costs):
            flags = flag.run(store, config.flag)
        with measured("label", done.costs):
            labels = label.run(store, config.label, project.champion())
        with measured("pair", done.costs):
            skipped = pair.run(store, config.pair, measured_with)
            fresh = pair.new_pairs(store, measured_with)
            takes_single = config.train.method in ("kto", "sft")
            singles = pair.unpaired(store, measured_with) if takes_single else []
        done.counts = {
            "examined": len(flags),
            "flagged": sum(f.raised for f in flags),
            "labelled": len(labels),
            **_people(project),
            "new_pairs": len(fresh),
            **{f"skipped: {why}": n for why, n in skipped.items()},
        }
        if len(fresh) + len(singles) < config.train.min_new_pairs:
            done.verdict = _pending(len(fresh) + len(singles), config.train.min_new_pairs)
            return done
        dataset = pair.freeze(store, fresh, labels=singles, skipped=skipped)

    champion = project.champion()
    done.champion = champion.weights
    ab.check_scorer(scorer, _annotators(store, dataset))
    with measured("shift", done.costs):
        pairs = store.get_all(PreferencePair, dataset.pair_ids)
        warned = shift.warning(shift_of(project, pairs), config.shift)
        done.warnings += [warned] if warned else []
    with measured("train", done.costs):
        checkpoint = done.checkpoint = train.run(
            store, config.train, dataset, champion, is_held_out=measured_with.contains
        )
    return gated(project, checkpoint, done)


def gated(project: Project, checkpoint: Checkpoint, done: Turn | None = None) -> Turn:
    """A candidate before the gates, and promoted if all pass it.

    Args:
        done: the turn so far; by default a new one.
    """
    if done is None:
        done = Turn(Verdict(gate="guard", status="pending", reason=""), checkpoint)
        done.champion = project.champion().weights
    for name, gate in GATES.items():
        with measured(name, done.costs):
            report = gate(project, checkpoint)
        done.reports.append(report)
        done.warnings += report.details.get("warnings", ())
        done.verdict = report.verdict
        if not report.verdict.passed:
            return done
    reports = dict(zip(GATES, done.reports, strict=True))
    with measured("earlier releases", done.costs):
        reports |= earlier_releases(project, checkpoint)
    done.verdict = promote.run(project.store, project.config.promote, checkpoint, reports)
    return done


def shift_of(project: Project, pairs: Sequence[PreferencePair]) -> shift.Shift | None:
    """How far pairs are from what the champion writes; None where the settings do not ask, or
    there are too few."""
    config = project.config.shift
    if not config.before_training:
        return None
    return shift.measure(project.store, config, pairs, project.champion(), project.embedder)


def guard_gate(project: Project, checkpoint: Checkpoint) -> Report:
    """The first gate on a checkpoint, against today's champion."""
    return guard.run(
        project.store,
        project.config.guard,
        project.candidate(checkpoint),
        project.champion(),
        project.suite,
        guard_beside(project, checkpoint),
    )


def guard_beside(project: Project, checkpoint: Checkpoint) -> guard.Beside:
    """What the guard looks at beside the held-out prompts: gold prompts, the base, and the two
    scorers, where the one behind the labels is known and asking costs nothing."""
    config, folder = project.config, project.folder
    scorer = resolve(config.ab.scorer, endpoint=config.ab.endpoint, suite=project.suite)
    teacher = _teacher(project, checkpoint)
    is_free = teacher is not None and all(_is_free(one) for one in (teacher, scorer))
    asks = {"all": True, "free": is_free, "none": False}[config.guard.ask_scorers]
    has_two = teacher is not None and asks
    named = config.guard.refusal_prompts
    return guard.Beside(
        embedder=project.embedder,
        base=project.base(),
        gold=[item.messages for item in evaluate.read_gold(folder / config.evaluate.gold)],
        refusals=guard.read_refusal_prompts(folder / named) if named else (),
        proxy=teacher if has_two else None,
        scorer=scorer if has_two else None,
    )


def _teacher(project: Project, checkpoint: Checkpoint) -> Judge | None:
    """The scorer that the checkpoint's own run learned from: its reward, or the judge behind its
    labels. None where it is neither by today's settings, and so cannot be asked."""
    store, config = project.store, project.config
    asked = store.get(TrainingRun, checkpoint.run_id).config.get("rewarded_by")
    if asked is None:
        taught = taught_by(store, checkpoint)
        asked_of = ((config.label.judge, config.label.endpoint), (config.rounds.reward, None))
        judges = (
            resolve(name, endpoint=at) for name, at in asked_of if name and name != label.PEOPLE
        )
        return next((one for one in judges if one.id in taught), None)
    reward = config.train.online.reward
    if not reward:
        return None
    found = train.reward_judge(store, config.train.online, project.champion())
    return found if found.id == asked else None


def _is_free(judge: Judge) -> bool:
    """True for code and for a reward model on this machine."""
    return judge.kind == "code" or not getattr(judge, "needs_audit", True)


def evaluate_gate(project: Project, checkpoint: Checkpoint) -> Report:
    """The second gate."""
    config = project.config.evaluate
    gold = evaluate.read_gold(project.folder / config.gold)
    return evaluate.run(
        project.store,
        config,
        project.candidate(checkpoint),
        project.champion(),
        gold,
        first=project.base(),
        judge=evaluate.gold_judge(
            project.store, config, gold, taught_by(project.store, checkpoint)
        ),
    )


def ab_gate(project: Project, checkpoint: Checkpoint) -> Report:
    """The third gate, on the very answers the guard looked at: nothing is drawn twice."""
    return ab.run(
        project.store,
        project.config.ab,
        project.candidate(checkpoint),
        project.champion(),
        project.suite,
        _suite_sampling(project),
        project.config.guard.samples_per_prompt,
        labelled_by=taught_by(project.store, checkpoint),
    )


def earlier_releases(project: Project, checkpoint: Checkpoint) -> dict[str, Report]:
    """The candidate's meetings that are due with the first release and the last approved one."""
    store, config = project.store, project.config
    if "ab" not in config.promote.gates:
        return {}
    scorer = resolve(config.ab.scorer, endpoint=config.ab.endpoint, suite=project.suite)
    return {
        one.anchor.name: ab.run(
            store,
            config.ab,
            project.candidate(checkpoint),
            project.released(one.anchor.checkpoint_id),
            project.suite,
            _suite_sampling(project),
            config.guard.samples_per_prompt,
            labelled_by=taught_by(store, checkpoint),
            purpose="cumulative",
        )
        for one in promote.standings(
            store, config.promote, checkpoint, (scorer.id, version_of(scorer))
        )
        if one.is_due
    }


def todays_reports(project: Project, checkpoint: Checkpoint) -> dict[str, Report]:
    """The reports on a checkpoint that speak for today's settings, prompts, items and champion."""
    config, suite, champion = project.config, project.suite, project.store.champion()
    scorer = resolve(config.ab.scorer, endpoint=config.ab.endpoint, suite=suite)
    gold = evaluate.read_gold(project.folder / config.evaluate.gold)
    drawn = config.guard.samples_per_prompt
    settings = {
        "guard": guard.settings(config.guard, suite, guard_beside(project, checkpoint)),
        "evaluate": evaluate.settings(
            config.evaluate, gold, evaluate.gold_judge(project.store, config.evaluate, gold)
        ),
        "ab": ab.settings(config.ab, scorer, suite, _suite_sampling(project), drawn),
    }
    against = champion.weights if champion else checkpoint.base_weights
    return promote.reports_for(project.store, checkpoint, against, settings)


def _suite_sampling(project: Project) -> Sampling:
    """How answers to the held-out prompts are drawn."""
    drawn = project.config.guard
    return Sampling(temperature=1.0, max_tokens=drawn.max_tokens, seed=drawn.seed)


GATES = {"guard": guard_gate, "evaluate": evaluate_gate, "ab": ab_gate}
"""Cheap and strict first: what one refuses costs the next nothing."""


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


def taught_by(store: Store, checkpoint: Checkpoint) -> list[str]:
    """Everybody whose judgement a checkpoint has learned from since the champion: who labelled
    its pairs, replayed ones too, who scored its own answers, and whoever is behind those; then the
    same of the checkpoint it started from."""
    champion, found = store.champion(), set[str]()
    link: Checkpoint | None = checkpoint
    while link and not (champion and link.weights == champion.weights):
        run = store.get(TrainingRun, link.run_id)
        found.update(_annotators(store, store.get(Dataset, run.dataset_id)))
        found.update(link.metrics.get("replay", {}).get("annotators", ()))
        if rewarded_by := run.config.get("rewarded_by"):
            found.add(rewarded_by)
        link = _made_before(store, run.start_weights, link)
    return sorted({one for name in found for one in behind(store, name)})


def scored_by(store: Store, config: train.TrainConfig) -> list[str]:
    """What an online method would learn from: its reward, and whoever is behind that."""
    reward = config.online.reward
    if config.method not in train.ONLINE or not reward:
        return []
    if reward.startswith(f"{Checkpoint.tag}_"):
        return behind(store, f"reward:{store.get(Checkpoint, reward).weights}")
    return behind(store, resolve(reward, endpoint=config.online.endpoint).id)


def behind(store: Store, annotator: str) -> list[str]:
    """An annotator, the members of a panel and, where one is a reward model, who labelled what that
    was trained on, and so on down to those who are no models of ours."""
    found, waiting = set[str](), [annotator]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        waiting += members_of(one)
        if one.startswith("reward:"):
            for trained in store.each(Checkpoint, weights=one.split(":")[1]):
                run = store.get(TrainingRun, trained.run_id)
                waiting += _annotators(store, store.get(Dataset, run.dataset_id))
                waiting += trained.metrics.get("replay", {}).get("annotators", ())
    return sorted(found)


def _made_before(store: Store, weights: str, link: Checkpoint) -> Checkpoint | None:
    """The newest checkpoint of these weights that is older than the one that started from it; the
    same weights may have been made again since."""
    older = [c for c in store.each(Checkpoint, weights=weights) if c.created_at < link.created_at]
    return max(older, key=lambda c: c.created_at, default=None)


def _annotators(store: Store, dataset: Dataset) -> list[str]:
    """Who labelled the pairs of a data set."""
    pairs = store.get_all(PreferencePair, dataset.pair_ids)
    ids = {one for p in pairs for one in p.label_ids} | set(dataset.label_ids)
    return sorted({one.annotator for one in store.get_all(Label, ids)})


def held_out(project: Project, *, required: bool = True) -> pair.HeldOut:
    """Every prompt that measures: the suite, the gold set, and what the settings name.

    Args:
        required: False lets a project without those files train on a file of pairs; its
            candidate still cannot pass the gates.
    """
    config, folder = project.config, project.folder
    named = config.pair.held_out
    prompts = [
        p.messages for name in named for p in read_suite(folder / name, setting="pair.held_out")
    ]
    if required or (folder / config.ab.prompts).is_file():
        prompts += [p.messages for p in project.suite]
    if required or (folder / config.evaluate.gold).is_file():
        prompts += [i.messages for i in evaluate.read_gold(folder / config.evaluate.gold)]
    return pair.HeldOut(prompts)


def _people(project: Project) -> dict[str, int]:
    """How many tasks wait for people, where people label."""
    if project.config.label.judge != label.PEOPLE:
        return {}
    weighed = label.weigh(project.store, project.config.label)
    return {"tasks waiting": len(weighed.waiting), "tasks unsettled": len(weighed.unsettled)}


def _pending(have: int, need: int) -> Verdict:
    return Verdict(
        gate="train",
        status="pending",
        reason=f"{have} new pairs of the {need} that train.min_new_pairs asks for",
        figures={"new_pairs": float(have), "min_new_pairs": float(need)},
    )
