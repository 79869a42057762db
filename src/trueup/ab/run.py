"""The third gate: is the candidate better, by a scorer that had no part in its training?"""

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from trueup import stats
from trueup.ab.config import ABConfig
from trueup.ab.contests import past_votes
from trueup.ab.sequence import next_place
from trueup.ab.verdict import POINTS, findings, gate_verdict, standing_verdict
from trueup.errors import ConfigError
from trueup.judges import Judge, compare, members_of, resolve, version_of
from trueup.judges.audit import check_audited
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import ABReport, Completion, Messages, Sampling, content_hash
from trueup.store import Store
from trueup.suite import SuitePrompt

__all__ = ["Purpose", "check_scorer", "run", "settings"]

Purpose = Literal["gate", "cumulative"]


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
    purpose: Purpose = "gate",
) -> ABReport:
    """Judge candidate against champion on every held-out prompt, in both orders.

    Reads:   the held-out prompts; answers already drawn by either model (the guard drew them);
             earlier contests by this scorer, for what it gives for length; the ledger.
    Writes:  one ABReport with every vote, the evidence and the confidence sequence after each
             prompt, and its place in the ledger.
    Again:   the same candidate, champion, prompts and config return the same report.
    Killed:  answers drawn so far are kept; votes are cast again.
    Stops:   ConfigError if the scorer labelled, or failed its newest audit.
    Refuses: see `gate_verdict`; as `cumulative`, with an earlier release in the champion's place
             and none in the ledger, see `standing_verdict`.
    Cost:    no sampling after guard; with `llm`, two judge calls a vote.
    Next:    promote.run
    """
    assert candidate.checkpoint is not None, "a candidate is a checkpoint"
    scorer = resolve(config.scorer, endpoint=config.endpoint, suite=suite)
    check_scorer(scorer, labelled_by)
    check_audited(store, scorer)
    wanted = settings(config, scorer, suite, sampling, samples_per_prompt, purpose)
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
    votes = _votes(scorer, suite, ours, theirs)
    found = findings(config, votes, past_votes(store, (scorer.id, version_of(scorer))))
    details: dict[str, Any] = {"votes": votes, **_paths(votes), "slices": found.slices}
    if purpose == "gate":
        place = next_place(store, config)
        details["ledger"] = place.as_detail()
        verdict = gate_verdict(config, found, place)
    else:
        verdict = standing_verdict(found)
    report = ABReport(
        checkpoint_id=candidate.checkpoint.id,
        champion=champion.weights,
        config=wanted,
        verdict=verdict,
        details=details,
    )
    store.add(report)
    return report


def settings(
    config: ABConfig,
    scorer: Judge,
    suite: Sequence[SuitePrompt],
    sampling: Sampling,
    samples_per_prompt: int,
    purpose: Purpose = "gate",
) -> dict[str, Any]:
    """What a report must have been made with to speak for these settings and prompts."""
    version = version_of(scorer)
    return {
        **config.model_dump(mode="json"),
        "scorer_id": scorer.id,
        **({"scorer_version": version} if version else {}),
        "suite": content_hash([p.model_dump(mode="json") for p in suite]),
        "sampling": sampling.model_dump(mode="json"),
        "samples_per_prompt": samples_per_prompt,
        "purpose": purpose,
    }


def _votes(
    scorer: Judge,
    suite: Sequence[SuitePrompt],
    ours: Sequence[Sequence[Completion]],
    theirs: Sequence[Sequence[Completion]],
) -> list[dict[str, Any]]:
    """One entry a prompt, in a shuffled, fixed order: the evidence is a sequence, and a file
    sorted by topic would make its path look like a trend."""
    order = list(range(len(suite)))
    random.Random(0).shuffle(order)
    votes = []
    with task("judge", len(suite)) as advance:
        for i in order:
            votes.append(_vote(scorer, suite[i], ours[i], theirs[i]))
            advance(1)
    return votes


def _vote(
    scorer: Judge, prompt: SuitePrompt, ours: Sequence[Completion], theirs: Sequence[Completion]
) -> dict[str, Any]:
    """Each sample's outcome and how much longer it is, both mean scores, and the first answers."""
    asked: Messages = prompt.messages
    pairs = list(zip(ours, theirs, strict=True))
    outcomes = [compare(scorer, asked, a, b) for a, b in pairs]
    ranking = scorer.rank(asked, [*ours, *theirs]).scores
    return {
        "prompt": asked[-1].content,
        "prompt_hash": content_hash([m.model_dump() for m in asked]),
        "stratum": prompt.stratum,
        "points": fmean(POINTS[o] for o in outcomes),
        "outcomes": outcomes,
        "length_differences": [len(a.text) - len(b.text) for a, b in pairs],
        "score": fmean(ranking[: len(ours)]),
        "champion_score": fmean(ranking[len(ours) :]),
        "answer": ours[0].text,
        "champion_answer": theirs[0].text,
    }


def _paths(votes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was known after each prompt: the e-value, and the ends of the confidence sequence."""
    points = [v["points"] for v in votes]
    sequence = [[one.low, one.high] for one in stats.confidence_sequence(points)]
    return {"evidence": stats.evidence_path(points), "sequence": sequence}
