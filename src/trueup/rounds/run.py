"""Iterative DPO: the model answers, a judge ranks, the model learns, again.

    M_0 ─ N answers a prompt ─ ranked ─ pairs ─ train ─ gates ─ M_1 ─ N answers a prompt ─ …

Between one offline run and online RL: a round's pairs are the model's own, yet each step of it is
a stage that can be looked at. The reference is M_t, which drew the answers, so its log-probs are
free; `train.reference = "base"` holds all rounds to the model without any adapter.
"""

from dataclasses import dataclass, field
from statistics import fmean

from trueup import ab, loop, pair, train
from trueup.errors import ConfigError
from trueup.judges import resolve
from trueup.models.stored import StoredModel
from trueup.project import Project
from trueup.records import Checkpoint, Dataset, Label, Messages, Report, Verdict
from trueup.rounds.answers import pairs_of, prompts_of, rank_answers, reward_of
from trueup.rounds.config import RoundsConfig
from trueup.train.online.rewards import Reward

__all__ = ["Round", "Rounds", "run"]

ROLE = "generator"
PAIRWISE = ("kto", "sft", "reward")


@dataclass
class Round:
    """What one round did."""

    number: int
    """From 1."""
    start: str
    """Weights that answered."""
    dataset: Dataset
    checkpoint: Checkpoint
    mean_score: float
    """Of all answers that `start` gave, by what ranked them."""
    best_score: float
    """Of each prompt's best answer."""
    skipped: dict[str, int]
    reports: list[Report] = field(default_factory=list)

    @property
    def refused(self) -> Verdict | None:
        """The verdict that stops the rounds: the guard's, or the gold set's. An A/B test that does
        not yet show a win stops nothing: rounds are there to add up to one."""
        return next(
            (r.verdict for r in self.reports if r.verdict.gate != "ab" and not r.verdict.passed),
            None,
        )


@dataclass
class Rounds:
    """All rounds of a call, and what came of them."""

    rounds: list[Round]
    verdict: Verdict
    champion: str

    @property
    def best(self) -> Round | None:
        """The last round that no gate refused: the candidate to promote."""
        return next((one for one in reversed(self.rounds) if not one.refused), None)


def run(project: Project, config: RoundsConfig | None = None) -> Rounds:
    """As many rounds as the settings say, each from what the last one gave.

    Reads:   prompts of the traffic or of a file; the champion's weights.
    Writes:  for each round the answers, one Label a prompt, its pairs, a Dataset, a TrainingRun, a
             Checkpoint and three reports against the champion.
    Skips:   prompts without room for an answer, answers without a score, ties; counted.
    Again:   the same settings, prompts and champion return the same rounds; nothing is done twice.
    Killed:  answers, labels and saved steps are kept; the next call goes on from there.
    Stops:   at the first round that guard or gold set refuse; what it gave is kept, and the round
             before is the best.
    Cost:    N answers and one score each a prompt and round, one training run, and the gates.
    Next:    promote.run
    """
    config = config or project.config.rounds
    with project.store.exclusive():
        return _run(project, config)


def _run(project: Project, config: RoundsConfig) -> Rounds:
    champion, held_out = project.champion(), loop.held_out(project)
    reward = reward_of(project, config, champion)
    try:
        return _rounds(project, config, champion, reward, held_out)
    finally:
        reward.end()
        project.backbone.detach(ROLE)


def _rounds(
    project: Project,
    config: RoundsConfig,
    champion: StoredModel,
    reward: Reward,
    held_out: pair.HeldOut,
) -> Rounds:
    store = project.store
    _check(project, reward)
    prompts, too_long = prompts_of(project, config, held_out, champion)
    done = Rounds([], Verdict(gate="train", status="pending", reason=""), champion.weights)
    model = champion
    for number in range(1, config.rounds + 1):
        asked = _asked(prompts, number, config)
        ranked = rank_answers(store, config, model, reward, asked)
        pairs, without = pairs_of(ranked.labels, config, min_margin=project.config.pair.min_margin)
        skipped = too_long + ranked.skipped + without
        store.add_all(pairs)
        if not pairs:
            done.verdict = _no_pairs(number, dict(skipped))
            return done
        # what a reward happened to miss is no part of what the data set is
        dataset = pair.freeze(store, pairs, source="rounds", skipped=without)
        checkpoint = train.run(
            store, training(project, config), dataset, model, is_held_out=held_out.contains
        )
        if config.merge < 1:
            checkpoint = train.merge(store, checkpoint, model, share=config.merge)
        one = Round(
            number=number,
            start=model.weights,
            dataset=dataset,
            checkpoint=checkpoint,
            mean_score=_mean(ranked.labels),
            best_score=_best(ranked.labels),
            skipped=dict(skipped),
        )
        done.rounds.append(one)
        _gate(project, one)
        done.verdict = one.refused or one.reports[-1].verdict
        if one.refused:
            return done
        model = StoredModel(store, project.backbone, checkpoint.id, role=ROLE)
    return done


def training(project: Project, config: RoundsConfig) -> train.TrainConfig:
    """How a round trains: as `[train]` says, at the rounds' own rate."""
    rate = config.learning_rate or project.config.train.learning_rate
    return project.config.train.model_copy(update={"learning_rate": rate})


def _check(project: Project, reward: Reward) -> None:
    """What is forbidden shows before anything is drawn."""
    config = project.config
    scorer = resolve(config.ab.scorer, endpoint=config.ab.endpoint, suite=project.suite)
    ab.check_scorer(scorer, loop.behind(project.store, reward.id))
    if config.train.method in (*PAIRWISE, *train.ONLINE):
        raise ConfigError(
            "Rounds train on pairs",
            got=f"train.method = {config.train.method!r}",
            expected="a method on pairs, such as 'dpo' or 'rpo'",
            next="set train.method; online methods have 'trueup train', best-of-N its own command",
        )


def _asked(prompts: list[Messages], number: int, config: RoundsConfig) -> list[Messages]:
    """A round's prompts: all of them, or the next ones, beginning again at the end."""
    if config.max_prompts is None or config.max_prompts >= len(prompts):
        return prompts
    start = (number - 1) * config.max_prompts % len(prompts)
    return (prompts[start:] + prompts[:start])[: config.max_prompts]


def _gate(project: Project, one: Round) -> None:
    for gate in loop.GATES.values():
        one.reports.append(gate(project, one.checkpoint))
        if one.refused:
            return


def _no_pairs(number: int, skipped: dict[str, int]) -> Verdict:
    said = ", ".join(f"{count} {why}" for why, count in skipped.items())
    return Verdict(
        gate="train", status="pending", reason=f"round {number} gave no pair to train on: {said}"
    )


def _mean(labels: list[Label]) -> float:
    return fmean(score for one in labels for score in one.scores)


def _best(labels: list[Label]) -> float:
    return fmean(max(one.scores) for one in labels)
