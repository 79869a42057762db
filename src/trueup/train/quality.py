"""What a set of pairs is worth, before it is trained on; and two ways to change its make-up.

Three figures set a loss: the share of labels that are wrong is cDPO's and rDPO's label smoothing,
and what one token of length is worth to the labels is R-DPO's alpha. The others tell a person
whether the pairs say anything at all: a margin, two different answers, lengths that do not give
the verdict away. What cannot be known is None, never zero.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, cycle, islice
from statistics import NormalDist
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from scipy.special import expit

from trueup.errors import ConfigError, DataError
from trueup.records import Label, Messages, PreferencePair, Value, content_hash

__all__ = [
    "Coefficient",
    "Estimate",
    "Lengths",
    "Mix",
    "Quality",
    "label_noise",
    "length_coefficient",
    "mix_replay",
    "quality",
    "raise_short_share",
    "similarity",
]

NEAR_IDENTICAL = 0.9
NUM_EXAMPLES = 5
MIN_COMPARISONS = 20
"""Repeated comparisons below which label noise is unknown."""

Z95 = NormalDist().inv_cdf(0.975)

# a word, or one mark of punctuation; scripts without spaces count each character as a word
_NO_SPACES = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+|[^\w\s]")


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=_HasId)
Lengths = Callable[[Item], Sequence[int]] | Mapping[str, Sequence[int]]
"""Tokens of (chosen, rejected): a function of the pair, or a mapping from its id."""


class Estimate(Value):
    """A share in [0, 0.5] with its 95 % interval, and the number of comparisons behind it."""

    estimate: float
    low: float
    high: float
    num_comparisons: int


class Coefficient(Value):
    """What one token of length is worth to the labels: log-odds of being chosen, in nats."""

    estimate: float
    standard_error: float
    num_pairs: int

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval (Wald)."""
        return self.estimate - Z95 * self.standard_error

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval (Wald)."""
        return self.estimate + Z95 * self.standard_error

    @property
    def rdpo_alpha(self) -> float:
        """R-DPO's alpha that cancels the labels' own length preference, in nats a token, >= 0.

        R-DPO (Park et al. 2024, arXiv:2403.19159) maximises E[r - alpha |y|] - beta KL. The
        optimal policy has r = beta log(policy / ref) + alpha |y| + a function of the prompt; in
        the Bradley-Terry likelihood of the labels that is

            loss = -log sigmoid(beta * h + alpha * d),   d = |chosen| - |rejected|

        Labels that follow r = q + b |y|, with q what the answer says, are fitted by alpha = b and
        beta * h = the difference of q: nothing of length is left for the policy to learn. With
        the estimated b this holds of the pairs at hand: where the policy starts at its reference
        and learns of length alone, beta * h = c * d, the loss has at c = 0 the slope

            -sum_i d_i sigmoid(-alpha d_i)

        which is zero exactly at alpha = b, the fit's own score equation.

        Labels that prefer the shorter answer give 0: a negative alpha would pay for length.
        """
        return max(0.0, self.estimate)


class Quality(Value):
    """What can be said of a set of pairs without training on it. Rates are in [0, 1]."""

    num_pairs: int
    margins: tuple[float, float, float] | None
    """Quartiles of the margin, in the labels' own unit."""
    near_identical_rate: float | None
    """Pairs whose answers have a `similarity` of at least 0.9."""
    near_identical: tuple[str, ...]
    """Ids of the most similar of them, at most five."""
    chosen_longer_rate: float | None
    chosen_shorter_rate: float | None
    """With the one above less than 1 where answers are equally long."""
    mean_chosen_tokens: float | None
    mean_rejected_tokens: float | None
    label_noise: Estimate | None
    """Share of labels that are wrong: `label_smoothing`."""
    length_coefficient: Coefficient | None
    """The labels' length preference; its `rdpo_alpha` is R-DPO's `alpha`."""


def quality(
    pairs: Sequence[PreferencePair], labels: Iterable[Label], lengths: Lengths[PreferencePair]
) -> Quality:
    """Measure a set of pairs before training on it.

    Args:
        pairs: each once; a repeated pair counts as often as it stands there.
        labels: every label of these prompts, see `label_noise`.
        lengths: tokens of (chosen, rejected), as they will be trained on.

    Raises:
        DataError: `lengths` is a mapping and lacks a pair.
    """
    sizes = np.array([_measure(pair, lengths) for pair in pairs], float).reshape(-1, 2)
    differences = sizes[:, 0] - sizes[:, 1]
    near = _near_identical(pairs)
    return Quality(
        num_pairs=len(pairs),
        margins=_quartiles([pair.margin for pair in pairs]),
        near_identical_rate=len(near) / len(pairs) if pairs else None,
        near_identical=tuple(near[:NUM_EXAMPLES]),
        chosen_longer_rate=_mean(differences > 0),
        chosen_shorter_rate=_mean(differences < 0),
        mean_chosen_tokens=_mean(sizes[:, 0]),
        mean_rejected_tokens=_mean(sizes[:, 1]),
        label_noise=label_noise(labels),
        length_coefficient=_fit(differences),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _quartiles(values: Sequence[float]) -> tuple[float, float, float] | None:
    if not values:
        return None
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def _measure(item: Item, lengths: Lengths[Item]) -> Sequence[int]:
    """Tokens of (chosen, rejected)."""
    if not isinstance(lengths, Mapping):
        return lengths(item)
    if item.id not in lengths:
        raise DataError(
            "A pair has no lengths",
            got=item.id,
            expected="the tokens of both answers for every pair",
            next="leave out the pairs that were skipped when they were encoded",
        )
    return lengths[item.id]


# --- label noise ----------------------------------------------------------------------------------


def label_noise(labels: Iterable[Label]) -> Estimate | None:
    """The share of labels that are wrong, from how often two annotators contradict each other.

        d = 2 e (1 - e)      two independent labels, each flipped with probability e, disagree
        e = (1 - sqrt(1 - 2 d)) / 2

    Compared is what pairs are made of: a label's best answer against its worst, as other
    annotators of the same prompt ordered the same two. d is the mean over such comparisons of
    the share of annotator pairs that contradict each other; its Wilson interval is carried
    through the second line, which rises with d. At d >= 1/2 the labels know nothing: e is 0.5.

    Only different annotators count, each with the last order they gave; a tie orders nothing.
    One annotator's repetitions are no evidence: identical labels are one record, so only the
    contradictions among them would be seen. Three annotators of a comparison make the interval
    wider than it need be.

    Pass every label there is, not those that pairs were kept of: where annotators agree one pair
    is kept, where they contradict each other both are, and only contradictions would be seen.

    Watch: what all annotators get wrong together leaves no trace, and where some comparisons are
    harder than others e errs low. Where annotators differ, 1 - 2 e is the geometric mean of
    theirs.

    Returns:
        e in [0, 0.5]; None below 20 repeated comparisons.
    """
    rates = _disagreement(labels)
    if len(rates) < MIN_COMPARISONS:
        return None
    mean = sum(rates) / len(rates)
    low, high = _wilson(mean, len(rates))
    return Estimate(
        estimate=_flip_rate(mean),
        low=_flip_rate(low),
        high=_flip_rate(high),
        num_comparisons=len(rates),
    )


class _Comparison(NamedTuple):
    """Two answers to a prompt, in alphabetical order."""

    prompt: Messages
    first: str
    second: str


def _disagreement(labels: Iterable[Label]) -> list[float]:
    """For each repeated comparison the share of annotator pairs that contradict each other."""
    votes: defaultdict[_Comparison, dict[str, bool | None]] = defaultdict(dict)
    best_to_worst: set[_Comparison] = set()
    for label in sorted(labels, key=lambda one: (one.created_at, one.id)):
        texts = [candidate.text.strip() for candidate in label.candidates]
        scored = sorted(zip(label.scores, texts, strict=True))
        best_to_worst.add(_comparison(label.prompt, scored[0][1], scored[-1][1]))
        for (low, worse), (high, better) in combinations(scored, 2):
            found = _comparison(label.prompt, worse, better)
            votes[found][label.annotator] = None if low == high else found.first == better
    known = [
        [vote for vote in by_annotator.values() if vote is not None]
        for found, by_annotator in votes.items()
        if found in best_to_worst and found.first != found.second
    ]
    return [
        sum(some) * (len(some) - sum(some)) / math.comb(len(some), 2)
        for some in known
        if len(some) >= 2
    ]


def _comparison(prompt: Messages, one: str, other: str) -> _Comparison:
    return _Comparison(prompt, min(one, other), max(one, other))


def _flip_rate(disagreement: float) -> float:
    return (1 - math.sqrt(max(0.0, 1 - 2 * disagreement))) / 2


def _wilson(mean: float, n: int) -> tuple[float, float]:
    """Wilson's interval for the mean of n independent values in [0, 1].

    Of 0 and 1 alone it is the proportion's; other values vary less, and it is wider than need be.
    """
    centre = mean + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


# --- length ---------------------------------------------------------------------------------------


def length_coefficient(
    pairs: Sequence[PreferencePair], lengths: Lengths[PreferencePair]
) -> Coefficient | None:
    """How much the labels prefer length: logistic regression of the preference on it.

        P(chosen over rejected) = sigmoid(b * d),   d = tokens of chosen - tokens of rejected

    No intercept: which answer is called the first is arbitrary. By maximum likelihood in Newton
    steps. The standard error is the model's, for independent pairs; many pairs of one prompt
    make it too small.

    b is what length alone explains of the verdicts. Longer answers that are preferred for what
    they say raise it; preferences that have nothing to do with length draw it towards 0.

    Returns:
        b in nats a token; None where length decides every verdict (b would be infinite), decides
        none (all answers equally long), or there are no pairs.

    Raises:
        DataError: `lengths` is a mapping and lacks a pair.

    Worked example: four pairs, answers 10 tokens apart, the longer chosen in three: log(3) / 10.
    """
    return _fit(np.array([c - r for c, r in (_measure(p, lengths) for p in pairs)], float))


def _fit(differences: np.ndarray) -> Coefficient | None:
    """The b that maximises sum log sigmoid(b d): concave, so damped Newton steps find it."""
    if not len(differences) or not differences.min() < 0 < differences.max():
        return None
    scale = float(np.abs(differences).max())
    d, b = differences / scale, 0.0
    for _ in range(200):
        flipped = expit(-b * d)
        step = float((d * flipped).sum() / (d**2 * flipped * (1 - flipped)).sum())
        # a full step may leap over the top into the flat
        while _loglik(b + step, d) < _loglik(b, d):
            step /= 2
        b += step
        if abs(step) <= 1e-12 * (1 + abs(b)):
            break
    flipped = expit(-b * d)
    information = float((d**2 * flipped * (1 - flipped)).sum())
    return Coefficient(
        estimate=b / scale,
        standard_error=1 / math.sqrt(information) / scale,
        num_pairs=len(differences),
    )


def _loglik(b: float, d: np.ndarray) -> float:
    return -float(np.logaddexp(0.0, -b * d).sum())


# --- near-identical answers -----------------------------------------------------------------------


def similarity(first: str, second: str) -> float:
    """The share of two texts' words that they have in common, in order: 2 LCS / (n + m), in [0, 1].

    1 less the edit distance (insertions and deletions) over n + m. Punctuation counts as words
    do; two empty texts are the same.
    """
    return _similarity(_WORD.findall(first), _WORD.findall(second))


def _near_identical(pairs: Sequence[PreferencePair]) -> list[str]:
    """Ids of pairs whose answers hardly differ, the most similar first. Training on them lowers
    the log-prob of both (Pal et al. 2024, arXiv:2402.13228)."""
    found = []
    for pair in pairs:
        chosen, rejected = (_WORD.findall(c.text) for c in (pair.chosen, pair.rejected))
        if _most_similar(chosen, rejected) >= NEAR_IDENTICAL:
            found.append((_similarity(chosen, rejected), pair.id))
    near = [(-ratio, pair_id) for ratio, pair_id in found if ratio >= NEAR_IDENTICAL]
    return [pair_id for _, pair_id in sorted(near)]


def _most_similar(first: Sequence[str], second: Sequence[str]) -> float:
    """What the similarity could be at most, whatever the words' order. Cheap."""
    total = len(first) + len(second)
    if not total:
        return 1.0
    if 2 * min(len(first), len(second)) < NEAR_IDENTICAL * total:
        return 0.0
    return 2 * (Counter(first) & Counter(second)).total() / total


def _similarity(first: Sequence[str], second: Sequence[str]) -> float:
    total = len(first) + len(second)
    return 2 * _common(first, second) / total if total else 1.0


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence: a row of the table is one integer's bits
    (Hyyrö 2004, "Bit-parallel LCS-length computation revisited")."""
    places: defaultdict[str, int] = defaultdict(int)
    for place, word in enumerate(first):
        places[word] |= 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(first) - row.bit_count()


# --- another make-up ------------------------------------------------------------------------------


def raise_short_share(
    rows: Sequence[Item], share: float, seed: int, lengths: Lengths[Item]
) -> list[Item]:
    """Repeat pairs whose chosen answer is the shorter one until they are `share` of all.

    The rows as they stand, then the copies: every short row equally often, give or take one, the
    seed deciding which. Nothing is dropped, and where the share is reached nothing is added. The
    least number of copies that reaches it.

    Watch: a handful of short pairs is then seen many times an epoch.

    Args:
        rows: pairs, or rows of tokens; a row with a single answer is not a short one.
        share: in [0, 1).
        lengths: tokens of (chosen, rejected).

    Raises:
        ConfigError: a share outside [0, 1).
        DataError: there is no such pair to repeat, or `lengths` is a mapping and lacks a pair.
    """
    _check_share(share)
    short = [row for row in rows if _is_short(_measure(row, lengths))]
    # (short + copies) / (rows + copies) >= share; rounding must not call for one more
    copies = math.ceil((share * len(rows) - len(short)) / (1 - share) - 1e-9)
    if copies <= 0 and (short or not share):
        return list(rows)
    if not short:
        raise DataError(
            "No pair's chosen answer is shorter than its rejected one, so none can be repeated",
            got=f"0 of {len(rows)} pairs",
            expected=f"at least one, to make up a share of {share:g}",
            next="set train.short_share to 0, or label answers of other lengths",
        )
    return [*rows, *islice(cycle(_shuffled(short, seed)), copies)]


def _is_short(sizes: Sequence[int]) -> bool:
    return len(sizes) == 2 and sizes[0] < sizes[1]


class Mix(NamedTuple):
    """New pairs and, after them, replayed ones."""

    pairs: list[PreferencePair]
    num_replayed: int
    num_wanted: int
    """Replayed pairs that the share called for; more than `num_replayed` where too few exist."""


def mix_replay(
    new: Sequence[PreferencePair], old: Iterable[PreferencePair], share: float, seed: int
) -> Mix:
    """Add pairs of earlier data sets, so that they make up `share` of the whole.

    The same pairs and seed give the same mix in whatever order `old` comes; a larger share only
    adds to it. An old pair about the same two answers to the same prompt as a new one is left
    out, whichever of them it preferred; of several old ones the newest stays. What must not be
    trained on any more, such as prompts held out since, is the caller's to leave out.

    Args:
        share: in [0, 1), rounded to the nearest whole pair.

    Raises:
        ConfigError: a share outside [0, 1).
    """
    _check_share(share)
    num_wanted = round(share * len(new) / (1 - share))
    known = {_about(pair) for pair in new}
    by_age = sorted(old, key=lambda pair: (pair.created_at, pair.id))
    usable = {_about(pair): pair for pair in by_age if _about(pair) not in known}
    replayed = _shuffled(usable.values(), seed)[:num_wanted]
    return Mix([*new, *replayed], len(replayed), num_wanted)


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ConfigError(
            "This is not a share of a whole that other pairs belong to",
            got=share,
            expected="a number from 0 to below 1",
            next="set train.short_share or train.replay_share to such a number",
        )


def _shuffled(items: Iterable[Item], seed: int) -> list[Item]:
    """In an order that is a function of the seed and the ids alone, on every machine."""
    return sorted(items, key=lambda item: content_hash([seed, item.id]))


def _about(pair: PreferencePair) -> tuple[Messages, frozenset[str]]:
    """What a pair compares, whichever side it prefers."""
    return pair.prompt, frozenset((pair.chosen.text.strip(), pair.rejected.text.strip()))
