"""The third gate: is the candidate better, by a scorer that had no part in its training?"""

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from trueup import stats
from trueup.ab.config import ABConfig
from trueup.errors import ConfigError
from trueup.judges import Judge, compare, members_of, resolve
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import ABReport, Completion, Messages, Sampling, Verdict, content_hash
from trueup.store import Store
from trueup.suite import SuitePrompt

__all__ = ["check_scorer", "run", "settings"]

POINTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def check_scorer(scorer: Judge, labelled_by: Sequence[str]) -> None:
    """Stop before anything is spent if what labelled would also promote.

    Raises:
        ConfigError: the scorer is among the annotators.
    """
    taught = {member for one in labelled_by for member in members_of(one)}
    if taught & {*members_of(scorer.id)}:  # a panel is all of its members
        raise ConfigError(
            "The scorer that promotes is the judge that labelled: a hack would promote itself",
            got=scorer.id,
            expected="another scorer in ab.scorer",
            next="set ab.scorer in trueup.toml",
        )


def run(
    store: Store,
    config: ABConfig,
    candidate: StoredModel,
    champion: StoredModel,
    suite: Sequence[SuitePrompt],
    sampling: Sampling,
    samples_per_prompt: int,
    labelled_by: Sequence[str] = (),
) -> ABReport:
    """Judge candidate against champion on every held-out prompt, in both orders.

    Reads:   the held-out prompts; answers already drawn by either model (the guard drew them).
    Writes:  one ABReport with every vote and the evidence after each prompt.
    Again:   the same candidate, champion, prompts and config return the same report.
    Killed:  answers drawn so far are kept; votes are cast again.
    Stops:   ConfigError if the scorer labelled.
    Refuses: when the evidence never reached `min_evidence` times the tries this candidate has
             had, or the 95 % interval of the win rate does not lie above one half.
    Cost:    no sampling after guard; with `llm`, two judge calls a vote.
    Next:    promote.run
    """
    assert candidate.checkpoint is not None, "a candidate is a checkpoint"
    scorer = resolve(config.scorer, endpoint=config.endpoint, suite=suite)
    check_scorer(scorer, labelled_by)
    wanted = settings(config, scorer, suite, sampling, samples_per_prompt)
    before = store.all(ABReport, checkpoint_id=candidate.checkpoint.id, champion=champion.weights)
    for report in reversed(before):
        if report.config == wanted:
            return report
    prompts = [p.messages for p in suite]
    ours, theirs = (
        model.samples(
            store, prompts, sampling, num_samples=samples_per_prompt, name=f"{name} answers"
        )
        for name, model in (("candidate", candidate), ("champion", champion))
    )
    votes = _votes(scorer, prompts, ours, theirs)
    report = ABReport(
        checkpoint_id=candidate.checkpoint.id,
        champion=champion.weights,
        config=wanted,
        verdict=_verdict(config, votes, tries=len(before) + 1),
        details={"votes": votes, "evidence": _evidence(votes)},
    )
    store.add(report)
    return report


def settings(
    config: ABConfig,
    scorer: Judge,
    suite: Sequence[SuitePrompt],
    sampling: Sampling,
    samples_per_prompt: int,
) -> dict[str, Any]:
    """What a report must have been made with to speak for these settings and prompts."""
    return {
        **config.model_dump(mode="json"),
        "scorer_id": scorer.id,
        "suite": content_hash([p.model_dump(mode="json") for p in suite]),
        "sampling": sampling.model_dump(mode="json"),
        "samples_per_prompt": samples_per_prompt,
    }


def _votes(
    scorer: Judge,
    prompts: Sequence[Messages],
    ours: Sequence[Sequence[Completion]],
    theirs: Sequence[Sequence[Completion]],
) -> list[dict[str, Any]]:
    """One entry a prompt: the mean of its samples' outcomes, both scores, and the first answers.

    Prompts come in a shuffled, fixed order: the evidence is a sequence, and a file sorted by
    topic would make its path look like a trend.
    """
    order = list(range(len(prompts)))
    random.Random(0).shuffle(order)
    votes = []
    with task("judge", len(prompts)) as advance:
        for i in order:
            outcomes = [
                compare(scorer, prompts[i], a, b) for a, b in zip(ours[i], theirs[i], strict=True)
            ]
            ranking = scorer.rank(prompts[i], [*ours[i], *theirs[i]]).scores
            votes.append(
                {
                    "prompt": prompts[i][-1].content,
                    "points": fmean(POINTS[o] for o in outcomes),
                    "outcomes": outcomes,
                    "score": fmean(ranking[: len(ours[i])]),
                    "champion_score": fmean(ranking[len(ours[i]) :]),
                    "answer": ours[i][0].text,
                    "champion_answer": theirs[i][0].text,
                }
            )
            advance(1)
    return votes


def _evidence(votes: Sequence[dict[str, Any]]) -> list[float]:
    """The e-value after each prompt."""
    points = [v["points"] for v in votes]
    return [stats.betting_evalue(points[: t + 1]) for t in range(len(points))]


def _verdict(config: ABConfig, votes: Sequence[dict[str, Any]], *, tries: int = 1) -> Verdict:
    points = [v["points"] for v in votes]
    rate, evidence = stats.mean_interval(points), max(_evidence(votes), default=1.0)
    # other answers or another scorer are another draw from the urn: each try costs evidence
    needed = config.min_evidence * tries
    outcomes = [o for v in votes for o in v["outcomes"]]
    figures = {
        "win_rate": rate and rate.estimate,
        "win_rate_low": rate and rate.low,
        "win_rate_high": rate and rate.high,
        "evidence": evidence,
        "evidence_needed": needed,
        "prompts": float(len(votes)),
        **{f"{name}_votes": float(outcomes.count(name)) for name in POINTS},
        "score": fmean(v["score"] for v in votes) if votes else None,
        "champion_score": fmean(v["champion_score"] for v in votes) if votes else None,
    }
    if rate is None:
        return Verdict(
            gate="ab", status="refused", reason="unknown: fewer than two prompts", figures=figures
        )
    shown = (
        f"win rate {rate.estimate:.1%} [{rate.low:.1%}, {rate.high:.1%}], evidence {evidence:.3g}"
    )
    if rate.low > 0.5 and evidence >= needed:
        return Verdict(gate="ab", status="passed", reason=f"better: {shown}", figures=figures)
    wanted = f"needs an interval above 50 % and evidence of {needed:g}"
    return Verdict(
        gate="ab",
        status="refused",
        reason=f"not shown to be better: {shown}; {wanted}",
        figures=figures,
    )
