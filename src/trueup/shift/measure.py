"""How far the answers of a data set are from what the champion writes, as a set and pair by pair.

own pairs          drawn by the champion itself at temperature 1: nothing to measure
stored log-probs   importance weights, from one forward pass
anything else      a classifier and MMD against answers that the champion draws to the same
                   prompts
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trueup.models.embedder import Embedder
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import Completion, PreferencePair, Sampling, Value
from trueup.shift.config import ShiftConfig
from trueup.shift.two_sample import TwoSample, classifier_test, mmd
from trueup.shift.weights import LogRatio, shares

if TYPE_CHECKING:
    from trueup.store import Store

__all__ = ["PairShift", "Shift", "advice", "measure", "warning"]

FEWEST = 20
FURTHEST = 10


class PairShift(Value):
    """One pair: what is known of (chosen, rejected)."""

    pair_id: str
    log_ratios: tuple[float | None, float | None]
    """Nats per token, policy less behaviour; None where no behaviour log-probs are stored."""
    foreign: tuple[float | None, float | None]
    """The chance, by a classifier that did not see this prompt, that the champion did not write
    it; None where the champion drew nothing to compare."""


class Shift(Value):
    """A set of pairs against the champion. What was not measured is None."""

    champion: str
    num_pairs: int
    """Looked at."""
    own_rate: float
    """Answers that the champion drew itself, from its own distribution."""
    num_weighed: int
    """Answers with stored log-probs of who drew them."""
    ess: float | None = None
    """Effective share of those; see `weights`."""
    ess_per_token: float | None = None
    ess_clipped: float | None = None
    overlap: float | None = None
    """Chance mass that champion and writers have in common, in [0, 1]."""
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    mmd_squared: float | None = None
    mmd_p_value: float | None = None
    mean_logprob: float | None = None
    """Nats per token under the champion, of weighed answers. It does not show a foreign writer."""
    embedder: str = ""
    furthest: tuple[PairShift, ...] = ()
    log_ratios: tuple[float, ...] = ()
    """Nats per token, policy less behaviour, of each weighed answer."""
    foreign: tuple[float, ...] = ()
    """Of each answer looked at, the chance that the champion did not write it, as in PairShift."""
    foreign_own: tuple[float, ...] = ()
    """The same of the answers that the champion drew to compare."""


def measure(
    store: "Store",
    config: ShiftConfig,
    pairs: Sequence[PreferencePair],
    champion: StoredModel,
    embedder: Embedder,
) -> Shift | None:
    """Look at some of the pairs.

    Reads:  answers the champion drew to these prompts before, with these settings.
    Writes: the missing ones, as SampleSets.
    Cost:   nothing where the champion drew all of them; else a forward pass for answers with
            foreign log-probs, and two samples a prompt.

    Returns:
        None for fewer than 20 pairs whose prompts the champion can read.
    """
    some = _some(_readable(pairs, champion, config), config)
    if len(some) < FEWEST:
        return None
    answers = [(p, c) for p in some for c in (p.chosen, p.rejected)]
    own = [is_own(c, champion) for _, c in answers]
    ratios = _log_ratios(answers, own, champion)
    weighed = [one for one in ratios if one is not None]
    found = shares(weighed)
    told, gap = None, None
    if not all(own):
        drawn = _drawn(store, config, some, champion)
        texts, groups = [c.text for _, c in answers], [i for i in range(len(some)) for _ in (0, 1)]
        told = classifier_test(texts, drawn, embedder, groups=groups * 2, seed=config.seed)
        gap = mmd(
            embedder(texts), embedder(drawn), permutations=config.permutations, seed=config.seed
        )
    return Shift(
        champion=champion.weights,
        num_pairs=len(some),
        own_rate=sum(own) / len(own),
        num_weighed=len(weighed),
        ess=found and found.plain,
        ess_per_token=found and found.per_token,
        ess_clipped=found and found.clipped,
        overlap=found and found.overlap,
        auc=told and told.auc.estimate,
        auc_low=told and told.auc.low,
        auc_high=told and told.auc.high,
        mmd_squared=gap and gap.squared,
        mmd_p_value=gap and gap.p_value,
        mean_logprob=_mean_logprob(answers, ratios),
        embedder=embedder.id if told else "",
        furthest=_furthest(some, ratios, told),
        log_ratios=tuple(_rate(one) for one in weighed),
        foreign=tuple(told.scores[: len(answers)]) if told else (),
        foreign_own=tuple(told.scores[len(answers) :]) if told else (),
    )


def is_own(completion: Completion, champion: StoredModel) -> bool:
    """True where these very weights drew it from their own distribution."""
    drawn = completion.sampling
    return completion.weights == champion.weights and drawn is not None and drawn.is_plain


def _some(pairs: Sequence[PreferencePair], config: ShiftConfig) -> list[PreferencePair]:
    """A pair a prompt, spread over the set."""
    by_prompt = list({one.prompt: one for one in pairs}.values())
    chance = random.Random(config.seed)
    places = chance.sample(range(len(by_prompt)), min(config.num_pairs, len(by_prompt)))
    return [by_prompt[i] for i in sorted(places)]


def _readable(
    pairs: Sequence[PreferencePair], champion: StoredModel, config: ShiftConfig
) -> list[PreferencePair]:
    return [one for one in pairs if champion.fits(one.prompt, config.max_tokens)]


def _log_ratios(
    answers: Sequence[tuple[PreferencePair, Completion]], own: Sequence[bool], champion: StoredModel
) -> list[LogRatio | None]:
    """None where nobody stored with which log-probs an answer was drawn."""
    import torch

    from trueup.models import chat
    from trueup.models.logprobs import Branches, completion_logprobs

    tokenizer = champion.backbone.tokenizer
    found: list[LogRatio | None] = []
    size = len(tokenizer)
    with torch.no_grad(), champion.acting() as network, task("weigh", len(answers)) as advance:
        for (pair, completion), is_ours in zip(answers, own, strict=True):
            behaviour = completion.logprobs or ()
            drawn = completion.sampling
            if is_ours:
                found.append(LogRatio(0.0, len(behaviour)))
            elif not behaviour or not _is_ours(completion, size) or (drawn and not drawn.is_plain):
                found.append(None)
            else:
                ids = chat.prompt_ids(tokenizer, pair.prompt)
                row = Branches(ids, [completion.token_ids or ()])
                policy = float(completion_logprobs(network, [row])[0][0].sum())
                found.append(LogRatio(policy - sum(behaviour), len(behaviour)))
            advance(1)
    return found


def _is_ours(completion: Completion, size: int) -> bool:
    """False for tokens that this vocabulary has not: another model drew them."""
    ids = completion.token_ids or ()
    return bool(ids) and len(ids) == len(completion.logprobs or ()) and max(ids) < size


def _mean_logprob(
    answers: Sequence[tuple[PreferencePair, Completion]], ratios: Sequence[LogRatio | None]
) -> float | None:
    nats, tokens = 0.0, 0
    for (_, completion), ratio in zip(answers, ratios, strict=True):
        if ratio and ratio.tokens:
            nats += ratio.nats + sum(completion.logprobs or ())
            tokens += ratio.tokens
    return nats / tokens if tokens else None


def _drawn(
    store: "Store", config: ShiftConfig, pairs: Sequence[PreferencePair], champion: StoredModel
) -> list[str]:
    """Two answers of the champion to each prompt, cut off where the pairs' were."""
    limits = Counter(
        c.sampling.max_tokens for p in pairs for c in (p.chosen, p.rejected) if c.sampling
    )
    most = limits.most_common(1)[0][0] if limits else config.max_tokens
    sampling = Sampling(temperature=1.0, max_tokens=most, seed=config.seed)
    groups = champion.samples(
        store, [p.prompt for p in pairs], sampling, num_samples=2, name="own answers"
    )
    return [c.text for group in groups for c in group]


def _furthest(
    pairs: Sequence[PreferencePair], ratios: Sequence[LogRatio | None], told: TwoSample | None
) -> tuple[PairShift, ...]:
    """The pairs that the champion is least likely to have written."""

    def rate(at: int) -> float | None:
        ratio = ratios[at]
        return _rate(ratio) if ratio else None

    def chance(at: int) -> float | None:
        return told.scores[at] if told else None

    found = [
        PairShift(
            pair_id=pair.id,
            log_ratios=(rate(2 * i), rate(2 * i + 1)),
            foreign=(chance(2 * i), chance(2 * i + 1)),
        )
        for i, pair in enumerate(pairs)
    ]
    return tuple(sorted(found, key=_distance, reverse=True)[:FURTHEST])


def _rate(ratio: LogRatio) -> float:
    return ratio.nats / max(1, ratio.tokens)


def _distance(one: PairShift) -> tuple[float, float]:
    """By the classifier first, then by the weights."""
    foreign = max((f for f in one.foreign if f is not None), default=0.0)
    unlikely = max((-r for r in one.log_ratios if r is not None), default=0.0)
    return foreign, unlikely


def warning(shift: Shift | None, config: ShiftConfig) -> str | None:
    """Why not to train on these pairs as they are; None where nothing says so."""
    if shift is None:
        return None
    found = []
    if shift.auc is not None and shift.auc > config.max_auc:
        found.append(
            f"a classifier tells them from the champion's own with an AUC of {shift.auc:.2f} "
            f"[{shift.auc_low:.2f}, {shift.auc_high:.2f}], over {config.max_auc:g}"
        )
    if shift.ess is not None and shift.ess < config.min_ess:
        found.append(f"their effective share is {shift.ess:.3f}, under {config.min_ess:g}")
    if shift.overlap is not None and shift.overlap < config.min_overlap:
        found.append(f"their overlap is {shift.overlap:.3f}, under {config.min_overlap:g}")
    if not found:
        return None
    return f"The pairs are not such as the champion writes: {'; '.join(found)}"


def advice(dataset: str = "") -> list[str]:
    """What to do about it, as commands."""
    named = f" --dataset {dataset}" if dataset else ""
    return [
        f"trueup --set train.weighting=wpo train{named}    counts each pair by how likely the "
        "policy is to write it",
        "trueup rounds    draws answers from the champion itself, and pairs those",
    ]
