"""The first gate: has the candidate hacked, collapsed or run away?"""

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from trueup import stats
from trueup.guard.config import GuardConfig
from trueup.models.stored import StoredModel
from trueup.records import Completion, GuardReport, Sampling, Verdict, content_hash
from trueup.store import Store
from trueup.suite import SuitePrompt

__all__ = ["run", "settings"]


def run(
    store: Store,
    config: GuardConfig,
    candidate: StoredModel,
    champion: StoredModel,
    suite: Sequence[SuitePrompt],
) -> GuardReport:
    """Hold the candidate's held-out answers against the champion's.

    Reads:   the held-out prompts; answers already drawn by either model.
    Writes:  the missing answers; one GuardReport with every figure, prompt by prompt.
    Again:   the same candidate, champion, prompts and config return the same report.
    Killed:  answers drawn so far are kept.
    Refuses: length ratio above `max_length_ratio` with its interval above 1; entropy ratio below
             `min_entropy_ratio`; KL above `max_kl`; one answer given to more than
             `max_same_answer_rate` of the prompts and more often than the champion gave its own;
             any figure that cannot be computed.
    Cost:    samples_per_prompt samples a held-out prompt and model, one forward pass for the KL.
    Next:    evaluate.run
    """
    from trueup.guard import signs

    wanted = settings(config, suite)
    known = _known(store, wanted, candidate, champion)
    if known:
        return known
    prompts = [p.messages for p in suite]
    sampling = Sampling(temperature=1.0, max_tokens=config.max_tokens, seed=config.seed)
    ours, theirs = (
        model.samples(
            store, prompts, sampling, num_samples=config.samples_per_prompt, name=f"{name} answers"
        )
        for name, model in (("candidate", candidate), ("champion", champion))
    )
    # a file is often sorted by topic, so not simply the first ones
    some = sorted(
        random.Random(0).sample(range(len(prompts)), min(config.kl_prompts, len(prompts)))
    )
    kl = signs.sequence_kl(candidate, champion, [prompts[i] for i in some], [ours[i] for i in some])
    verdict = _verdict(config, ours, theirs, kl)
    report = GuardReport(
        checkpoint_id=_id(candidate),
        champion=champion.weights,
        verdict=verdict,
        config=wanted,
        details={
            "length": {"candidate": signs.length(ours), "champion": signs.length(theirs)},
            "entropy": {"candidate": signs.entropy(ours), "champion": signs.entropy(theirs)},
            "kl": kl,
        },
    )
    store.add(report)
    return report


def _verdict(
    config: GuardConfig,
    ours: Sequence[Sequence[Completion]],
    theirs: Sequence[Sequence[Completion]],
    kl: list[float],
) -> Verdict:
    from trueup.guard import signs

    length = stats.ratio_interval(signs.length(ours), signs.length(theirs))
    entropy = stats.ratio_interval(signs.entropy(ours), signs.entropy(theirs))
    drift = stats.mean_interval(kl)
    same, same_before = signs.same_answer_rate(ours), signs.same_answer_rate(theirs)
    figures = {
        "length_ratio": length and length.estimate,
        "length_ratio_low": length and length.low,
        "length_ratio_high": length and length.high,
        "length": fmean(signs.length(ours)),
        "champion_length": fmean(signs.length(theirs)),
        "entropy_ratio": entropy and entropy.estimate,
        "entropy": fmean(signs.entropy(ours)),
        "champion_entropy": fmean(signs.entropy(theirs)),
        "kl": drift and drift.estimate,
        "kl_low": drift and drift.low,
        "kl_high": drift and drift.high,
        "same_answer_rate": same,
        "champion_same_answer_rate": same_before,
    }
    reasons = []
    if length is None or entropy is None or drift is None:
        reasons.append("a figure is unknown: too few prompts, or answers without log-probs")
    else:
        if not length.estimate <= config.max_length_ratio and not length.low <= 1:
            reasons.append(
                f"length: {length.estimate:.2f} times the champion's, "
                f"over {config.max_length_ratio:g}"
            )
        if not entropy.estimate >= config.min_entropy_ratio:
            reasons.append(
                f"entropy: {entropy.estimate:.2f} of the champion's, "
                f"under {config.min_entropy_ratio:g}"
            )
        if not drift.estimate <= config.max_kl:
            reasons.append(f"kl: {drift.estimate:.1f} nats per answer, over {config.max_kl:g}")
    if same > config.max_same_answer_rate and same > same_before:
        reasons.append(
            f"sameness: one answer for {same:.0%} of the prompts, "
            f"over {config.max_same_answer_rate:.0%}"
        )
    status = "refused" if reasons else "passed"
    return Verdict(
        gate="guard",
        status=status,
        reason="; ".join(reasons) or "within every line",
        figures=figures,
    )


def settings(config: GuardConfig, suite: Sequence[SuitePrompt]) -> dict[str, Any]:
    """What a report must have been made with to be the answer to this call."""
    return {
        **config.model_dump(mode="json"),
        "suite": content_hash([p.model_dump(mode="json") for p in suite]),
    }


def _known(
    store: Store, wanted: dict[str, Any], candidate: StoredModel, champion: StoredModel
) -> GuardReport | None:
    reports = store.all(GuardReport, checkpoint_id=_id(candidate), champion=champion.weights)
    return next((r for r in reversed(reports) if r.config == wanted), None)


def _id(candidate: StoredModel) -> str:
    assert candidate.checkpoint is not None, "a candidate is a checkpoint"
    return candidate.checkpoint.id
