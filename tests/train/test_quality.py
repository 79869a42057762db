"""What pairs are worth: every figure against a slow version, known truths recovered by simulation.

Public preference data are read where they lie beside the project; nothing of them is kept here.
"""

import json
import math
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit

from trueup.errors import ConfigError, DataError
from trueup.records import Completion, Label, Message, Messages, PreferencePair
from trueup.stats import wilson
from trueup.train.quality import (
    Coefficient,
    Estimate,
    Quality,
    label_noise,
    length_coefficient,
    mix_replay,
    quality,
    raise_short_share,
    similarity,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
WHEN = "2026-01-01T00:00:00+00:00"


def asked(text: str) -> Messages:
    return (Message(role="user", content=text),)


def pair(
    prompt: str = "Why?", chosen: str = "So.", rejected: str = "Well.", margin: float = 1.0
) -> PreferencePair:
    return PreferencePair(
        prompt=asked(prompt),
        chosen=Completion(text=chosen),
        rejected=Completion(text=rejected),
        margin=margin,
        label_ids=("label_1",),
        created_at=WHEN,
    )


def label(prompt: str, scores: Sequence[float], annotator: str, *, created_at: str = WHEN) -> Label:
    """Scores of the answers a, b, c…"""
    return Label(
        prompt=asked(prompt),
        candidates=tuple(Completion(text="abcdefgh"[n]) for n in range(len(scores))),
        scores=tuple(scores),
        annotator=annotator,
        annotator_kind="human",
        created_at=created_at,
    )


def words(one: PreferencePair) -> tuple[int, int]:
    return len(one.chosen.text.split()), len(one.rejected.text.split())


def rows(name: str) -> list[dict[str, Any]]:
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"{file} is not there: public data are read, not shipped")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def fitted(differences: Sequence[float], pairs: Sequence[PreferencePair]) -> Coefficient:
    lengths = {p.id: (round(d), 0) for p, d in zip(pairs, differences, strict=True)}
    found = length_coefficient(pairs, lengths)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def many() -> list[PreferencePair]:
    """Three hundred pairs whose lengths a test says."""
    return [pair(f"{n}?") for n in range(300)]


# --- the whole ------------------------------------------------------------------------------------


def test_a_set_of_pairs_in_figures() -> None:
    story = "one two three four five six seven eight nine ten"
    some = [
        pair("1", "a b c", "a", 0.1),
        pair("2", "a", "b c", 0.2),
        pair("3", "a b", "c d", 0.3),
        pair("4", f"{story}.", f"{story}!", 0.4),
        pair("5", "x y z u", "v", 0.9),
    ]
    found = quality(some, [], words)
    assert found == Quality(
        num_pairs=5,
        margins=(0.2, 0.3, 0.4),
        near_identical_rate=0.2,
        near_identical=(some[3].id,),
        chosen_longer_rate=0.4,
        chosen_shorter_rate=0.2,
        mean_chosen_tokens=4.0,
        mean_rejected_tokens=3.2,
        label_noise=None,
        length_coefficient=found.length_coefficient,
    )
    assert found.length_coefficient == length_coefficient(some, words)
    assert Quality.model_validate(json.loads(found.model_dump_json())) == found


def test_of_no_pairs_nothing_is_known() -> None:
    found = quality([], [], words).model_dump()
    assert found.pop("num_pairs") == 0
    assert found.pop("near_identical") == ()
    assert set(found.values()) == {None}


def test_lengths_may_come_as_a_mapping_and_a_missing_one_is_named() -> None:
    some = [pair("1", "a b c", "a"), pair("2", "a", "b c")]
    known = {p.id: words(p) for p in some}
    assert quality(some, [], known) == quality(some, [], words)
    with pytest.raises(DataError, match="has no lengths") as caught:
        quality([*some, pair("3")], [], known)
    assert caught.value.got == pair("3").id


# --- similarity -----------------------------------------------------------------------------------


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The textbook's table."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
            )
    return table[-1][-1]


def test_similarity_counts_the_words_in_common_in_order() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        first, second = (
            [chr(97 + c) for c in random.integers(0, 4, random.integers(0, 90))] for _ in range(2)
        )
        total = len(first) + len(second)
        expected = 2 * longest_common(first, second) / total if total else 1.0
        found = similarity(" ".join(first), " ".join(second))
        assert found == expected == similarity(" ".join(second), " ".join(first))
        # difflib looks for blocks and may miss some of what is common
        assert found >= SequenceMatcher(None, first, second, autojunk=False).ratio() - 1e-12


def test_similarity_of_texts() -> None:
    assert similarity("", "") == similarity("the same", "the same") == 1.0
    assert similarity("", "words") == 0.0
    assert similarity("It is 40.", "It is 45.") == 0.75
    assert similarity("f(a+b)", "f(a-b)") == pytest.approx(5 / 6), "punctuation says something"
    assert similarity("天空是蓝色的", "天空是绿色的") == pytest.approx(5 / 6)


def test_near_identical_pairs_are_named_the_most_similar_first() -> None:
    base = [f"w{n}" for n in range(40)]
    some = [pair(str(n), " ".join(base), " ".join([*base[: 40 - n], *["x"] * n])) for n in range(7)]
    other_order = pair("order", " ".join(base), " ".join(base[20:] + base[:20]))
    found = quality([other_order, *reversed(some)], [], words)
    assert found.near_identical == tuple(p.id for p in some[:5]), "4 of 40 is the last at 0.9"
    assert found.near_identical_rate == 5 / 8


# --- label noise ----------------------------------------------------------------------------------


def test_noise_is_what_two_annotators_contradictions_imply() -> None:
    """Of 40 prompts 8 are contested: d = 0.2, e = (1 - sqrt(0.6)) / 2."""
    labels = [label(str(n), (1, 0), "ann") for n in range(40)]
    labels += [label(str(n), (0, 3) if n < 8 else (9, 5), "bob") for n in range(40)]
    found = label_noise(labels)
    around = wilson(8, 40)
    assert found and around
    expected = [(1 - math.sqrt(1 - 2 * d)) / 2 for d in around]
    assert [found.estimate, found.low, found.high] == pytest.approx(expected, abs=1e-12)
    assert found.num_comparisons == 40
    d, e = 0.2, found.estimate
    assert 2 * e * (1 - e) == pytest.approx(d)


def test_too_few_repeated_comparisons_say_nothing() -> None:
    def twice(num: int) -> list[Label]:
        return [label(str(n), (1, 0), who) for n in range(num) for who in ("ann", "bob")]

    once = [label(f"once {n}", (1, 0), "ann") for n in range(100)]
    assert label_noise([]) is None
    assert label_noise(twice(19) + once) is None
    found = label_noise(twice(20) + once)
    assert found and (found.estimate, found.low, found.num_comparisons) == (0.0, 0.0, 20)
    assert found.high > 0.05, "twenty agreements are no proof"


def test_labels_that_know_nothing_are_half_wrong() -> None:
    labels = [label(str(n), (1, 0), "ann") for n in range(30)]
    labels += [label(str(n), (n % 2, 1 - n % 2), "bob") for n in range(30)]
    found = label_noise(labels)
    assert found and found.estimate == found.high == 0.5


def test_one_annotators_repetitions_are_no_evidence() -> None:
    """Equal labels are one record; the contradictions alone would be left."""
    labels = [label(str(n), scores, "ann") for n in range(30) for scores in ((1, 0), (0, 1))]
    assert label_noise(labels) is None


def test_an_annotators_last_word_counts() -> None:
    labels = [label(str(n), (1, 0), "bob") for n in range(30)]
    labels += [label(str(n), (0, 1), "ann", created_at="2026-01-02") for n in range(30)]
    changed = [label(str(n), (1, 0), "ann", created_at="2026-01-03") for n in range(30)]
    agreed, contested = label_noise([*changed, *labels]), label_noise(labels)
    assert agreed and agreed.estimate == 0.0
    assert contested and contested.estimate == 0.5


def test_ties_and_single_answers_order_nothing() -> None:
    labels = [label(str(n), (1, 0), "ann") for n in range(30)]
    labels += [label(str(n), (1, 1), "bob") for n in range(30)]
    labels += [label(str(n), (1,), "cat") for n in range(30)]
    assert label_noise(labels) is None


def test_the_order_in_which_answers_stand_is_no_disagreement() -> None:
    labels = [label(str(n), (1, 0), "ann") for n in range(30)]
    turned = [
        one.model_copy(update={"candidates": one.candidates[::-1], "scores": (0.2, 0.7)})
        for one in labels
    ]
    found = label_noise(labels + [one.model_copy(update={"annotator": "bob"}) for one in turned])
    assert found and found.estimate == 0.0


def test_of_a_ranking_the_best_against_the_worst_counts() -> None:
    """What pairs are made of; the answers between may change places."""
    labels = [label(str(n), (4, 3, 2, 1), "ann") for n in range(30)]
    agree = [label(str(n), (9, 3, 5, 0), "bob") for n in range(30)]
    found = label_noise(labels + agree)
    assert found and (found.estimate, found.num_comparisons) == (0.0, 30)
    two_ends = [label(str(n), (1, 2), "cat") for n in range(30)]
    other = label_noise(labels + two_ends)
    assert other and other.estimate == 0.5, "cat's two are ends of cat's own"


def noisy_labels(
    random: np.random.Generator, flip_rate: float, *, prompts: int, annotators: int
) -> list[Label]:
    flips = random.random((prompts, annotators)) < flip_rate
    return [
        LABELS[n, who, bool(flips[n, who])] for n in range(prompts) for who in range(annotators)
    ]


LABELS = {
    (n, who, flipped): label(str(n), (0, 1) if flipped else (1, 0), f"annotator {who}")
    for n in range(60)
    for who in range(4)
    for flipped in (False, True)
}


@pytest.mark.parametrize(("flip_rate", "annotators"), [(0.1, 2), (0.25, 2), (0.1, 4)])
def test_the_interval_of_the_noise_covers_the_truth(flip_rate: float, annotators: int) -> None:
    """Sixty comparisons, 300 times. With four annotators it is wider than it need be."""
    random = np.random.default_rng(0)
    found = [
        label_noise(noisy_labels(random, flip_rate, prompts=60, annotators=annotators))
        for _ in range(300)
    ]
    covered = sum(bool(f and f.low <= flip_rate <= f.high) for f in found) / len(found)
    assert covered >= 0.92
    assert covered <= (0.98 if annotators == 2 else 1.0)


# --- length ---------------------------------------------------------------------------------------


def test_the_coefficient_in_closed_form(many: list[PreferencePair]) -> None:
    """Answers always L tokens apart: b = log(longer chosen / shorter chosen) / L."""
    found = fitted([10, 10, 10, -10], many[:4])
    assert found.estimate == pytest.approx(math.log(3) / 10, rel=1e-12)
    assert found.standard_error == pytest.approx(1 / (10 * math.sqrt(4 * 0.75 * 0.25)), rel=1e-9)
    assert found.num_pairs == 4
    assert (found.high + found.low) / 2 == pytest.approx(found.estimate)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * found.standard_error, rel=1e-6)


@pytest.mark.parametrize("scale", [1, 50, 4000])
def test_the_coefficient_is_the_maximum_that_a_slow_search_finds(
    many: list[PreferencePair], scale: int
) -> None:
    random = np.random.default_rng(scale)
    d = np.round(scale * random.standard_t(2, 300) + 0.3 * scale)  # heavy tails
    found = fitted(d.tolist(), many)
    slow: Any = minimize_scalar(
        lambda b: float(np.logaddexp(0, -b * d).sum()),
        bracket=(-1 / scale, 1 / scale),
        options={"xtol": 1e-12},
    )
    assert found.estimate == pytest.approx(slow.x, rel=1e-5, abs=1e-9 / scale)
    h = 1e-3 / scale
    losses = [float(np.logaddexp(0, -(found.estimate + k * h) * d).sum()) for k in (-1, 0, 1)]
    curvature = (losses[0] - 2 * losses[1] + losses[2]) / h**2
    assert found.standard_error == pytest.approx(curvature**-0.5, rel=1e-3)


def test_swapping_every_pair_turns_the_sign(many: list[PreferencePair]) -> None:
    d = np.random.default_rng(1).normal(10, 40, 300).round()
    there, back = fitted(d.tolist(), many), fitted((-d).tolist(), many)
    assert there.estimate == pytest.approx(-back.estimate)
    assert there.standard_error == pytest.approx(back.standard_error)


@pytest.mark.parametrize("differences", [[], [0, 0], [3, 5, 0], [-1, -2, -9]])
def test_where_length_decides_everything_or_nothing_there_is_no_coefficient(
    many: list[PreferencePair], differences: list[int]
) -> None:
    lengths = {p.id: (100 + d, 100) for p, d in zip(many, differences, strict=False)}
    assert length_coefficient(many[: len(differences)], lengths) is None


@pytest.mark.parametrize("truth", [0.0, 0.02, 0.05])
def test_the_interval_of_the_coefficient_covers_the_truth(
    many: list[PreferencePair], truth: float
) -> None:
    """Labels that follow sigmoid(b * difference), 300 pairs, 200 times."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        gap = random.normal(0, 60, 300).round()
        first_is_chosen = random.random(300) < expit(truth * gap)
        found.append(fitted(np.where(first_is_chosen, gap, -gap).tolist(), many))
    covered = sum(f.low <= truth <= f.high for f in found) / len(found)
    assert 0.91 <= covered <= 0.985
    spread = float(np.std([f.estimate for f in found]))
    assert np.mean([f.standard_error for f in found]) == pytest.approx(spread, rel=0.2)


def test_preferences_apart_from_length_draw_the_coefficient_to_zero_never_past_it(
    many: list[PreferencePair],
) -> None:
    """What one says of it: 0.03 nats a token, and a quality of two nats besides."""
    random = np.random.default_rng(3)
    estimates = []
    for _ in range(50):
        gap, quality_gap = random.normal(0, 60, 300).round(), random.normal(0, 2, 300)
        first_is_chosen = random.random(300) < expit(0.03 * gap + quality_gap)
        estimates.append(fitted(np.where(first_is_chosen, gap, -gap).tolist(), many).estimate)
    assert 0.01 < np.mean(estimates) < 0.03


def test_alpha_leaves_no_slope_along_length_and_is_the_only_one(many: list[PreferencePair]) -> None:
    """R-DPO's loss at the reference, moved by c nats for each token of length: flat at c = 0."""
    random = np.random.default_rng(5)
    gap = random.normal(0, 60, 300).round()
    d = np.where(random.random(300) < expit(0.02 * gap), gap, -gap)
    alpha = fitted(d.tolist(), many).rdpo_alpha

    def slope(alpha: float, c: float = 1e-6) -> float:
        """By differences of mean -log sigmoid(c * d + alpha * d), the first being beta * h."""
        losses = [np.logaddexp(0, -(s * c * d + alpha * d)).mean() for s in (1, -1)]
        return float(losses[0] - losses[1]) / (2 * c)

    assert alpha > 0
    assert slope(alpha) == pytest.approx(0, abs=1e-6)
    assert slope(0.0) < -0.5, "DPO would learn to write more"
    assert slope(2 * alpha) > 0.5


def test_alpha_is_never_negative(many: list[PreferencePair]) -> None:
    found = fitted([10, -10, -10, -10], many[:4])
    assert found.estimate < 0
    assert found.rdpo_alpha == 0.0


# --- short pairs ----------------------------------------------------------------------------------


def lengths_of(num_short: int, num_long: int) -> list[PreferencePair]:
    short = [pair(f"short {n}", "a", "b c") for n in range(num_short)]
    return short + [pair(f"long {n}", "a b c", "d") for n in range(num_long)]


def short_rate(some: Sequence[PreferencePair]) -> float:
    return sum(chosen < rejected for chosen, rejected in map(words, some)) / len(some)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1 / 3, 0.5, 0.7, 5 / 6, 0.95])
@pytest.mark.parametrize(("num_short", "num_long"), [(1, 9), (3, 7), (5, 5), (4, 0), (7, 93)])
def test_short_pairs_are_repeated_as_often_as_it_takes_and_no_oftener(
    share: float, num_short: int, num_long: int
) -> None:
    some = lengths_of(num_short, num_long)
    raised = raise_short_share(some, share, 0, words)
    assert raised[: len(some)] == some, "no pair is dropped"
    assert short_rate(raised) >= share - 1e-9
    assert len(raised) == len(some) or short_rate(raised[:-1]) < share
    counts = [raised.count(p) for p in some]
    assert set(counts[num_short:]) <= {1}
    assert max(counts[:num_short]) - min(counts[:num_short]) <= 1, "spread evenly"


def test_the_seed_says_which_pair_is_repeated_once_more() -> None:
    some = lengths_of(8, 12)
    raised = {seed: raise_short_share(some, 0.45, seed, words) for seed in range(6)}
    assert len({len(one) for one in raised.values()}) == 1
    assert len({tuple(p.id for p in one) for one in raised.values()}) > 1
    assert raised[2] == raise_short_share(some, 0.45, 2, words)
    copies = raise_short_share(some[::-1], 0.45, 2, words)[len(some) :]
    assert copies == raised[2][len(some) :], "the order of the pairs plays no part"


def test_equal_lengths_are_not_short() -> None:
    some = [pair("1", "a", "b"), pair("2", "a", "b c")]
    raised = raise_short_share(some, 0.7, 0, {p.id: words(p) for p in some})
    assert [raised.count(p) for p in some] == [1, 3]


def test_a_single_answer_is_not_short_but_part_of_the_whole() -> None:
    some = [pair("single"), pair("short", "a", "b c")]
    lengths = {some[0].id: (1,), some[1].id: (1, 2)}
    assert raise_short_share(some, 0.75, 0, lengths) == [some[0], *[some[1]] * 3]


def test_with_no_short_pair_there_is_nothing_to_repeat() -> None:
    some = lengths_of(0, 6)
    assert raise_short_share(some, 0.0, 0, words) == some
    with pytest.raises(DataError, match=r"none can be repeated.*0 of 6.*share of 0\.2.*Next:"):
        raise_short_share(some, 0.2, 0, words)


@pytest.mark.parametrize("share", [-0.1, 1.0, 30, math.nan])
def test_a_share_is_a_fraction_of_something_larger(share: float) -> None:
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        raise_short_share(lengths_of(1, 1), share, 0, words)
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        mix_replay([pair()], [], share, 0)


# --- replay ---------------------------------------------------------------------------------------


def test_replay_makes_up_its_share() -> None:
    new = [pair(f"new {n}") for n in range(30)]
    old = [pair(f"old {n}") for n in range(100)]
    for share, expected in ((0.0, 0), (0.1, 3), (0.25, 10), (0.5, 30), (0.75, 90)):
        mix = mix_replay(new, old, share, 0)
        assert mix.num_replayed == mix.num_wanted == expected
        assert mix.pairs[:30] == new
        replayed = mix.pairs[30:]
        assert len({p.id for p in replayed}) == expected
        assert {p.id for p in replayed} <= {p.id for p in old}


def test_replay_never_makes_up_pairs_and_says_how_many_there_were() -> None:
    mix = mix_replay([pair(f"new {n}") for n in range(30)], [pair("old")], 0.5, 0)
    assert (len(mix.pairs), mix.num_replayed, mix.num_wanted) == (31, 1, 30)


def test_replay_is_a_function_of_the_seed_and_a_larger_share_only_adds() -> None:
    new = [pair(f"new {n}") for n in range(30)]
    old = [pair(f"old {n}") for n in range(100)]
    few, more = mix_replay(new, old, 0.2, 0), mix_replay(new, old[::-1], 0.4, 0)
    assert more.pairs[: len(few.pairs)] == few.pairs
    assert mix_replay(new, old, 0.2, 1).pairs != few.pairs


def test_what_a_new_pair_says_is_not_replayed_nor_its_opposite() -> None:
    new = [pair("q", "yes", "no"), pair("r", "yes", "no")]
    old = [pair("q", "yes ", "no", 0.3), pair("r", "no", "yes"), pair("s", "yes", "no")]
    mix = mix_replay(new, old, 0.9, 0)
    assert mix.pairs == [*new, old[2]]


def test_of_old_pairs_about_the_same_the_newest_is_replayed() -> None:
    changed = pair("q", "no", "yes").model_copy(update={"created_at": "2026-03-01"})
    for old in ([pair("q", "yes", "no"), changed], [changed, pair("q", "yes", "no")]):
        assert mix_replay([pair()], old, 0.9, 0).pairs[1:] == [changed]


# --- real records ---------------------------------------------------------------------------------


def pandalm() -> list[dict[str, Any]]:
    """Rows with two different answers; one answer of the file is a boolean."""
    return [
        row
        for row in rows("pandalm-human.jsonl")
        if isinstance(row["response1"], str)
        and isinstance(row["response2"], str)
        and row["response1"].strip() != row["response2"].strip()
    ]


def pandalm_labels() -> list[Label]:
    """Three people's verdicts on two answers: 0 a tie, 1 the first, 2 the second."""
    return [
        Label(
            prompt=asked(f"{row['instruction']}\n{row['input']}"),
            candidates=(Completion(text=row["response1"]), Completion(text=row["response2"])),
            scores=((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))[row[f"annotator{n}"]],
            annotator=f"annotator{n}",
            annotator_kind="human",
        )
        for row in pandalm()
        for n in (1, 2, 3)
    ]


def test_the_noise_of_three_peoples_verdicts() -> None:
    found = label_noise(pandalm_labels())
    last: dict[tuple[str, ...], dict[int, str | None]] = {}
    for row in pandalm():  # some questions stand there several times
        answers = None, row["response1"].strip(), row["response2"].strip()
        key = row["instruction"], row["input"], *sorted(answers[1:])
        last.setdefault(key, {}).update({n: answers[row[f"annotator{n}"]] for n in (1, 2, 3)})
    said = [[text for text in votes.values() if text is not None] for votes in last.values()]
    differ = [[a != b for a, b in combinations(texts, 2)] for texts in said if len(texts) > 1]
    d = float(np.mean([np.mean(one) for one in differ]))
    assert isinstance(found, Estimate)
    assert found.num_comparisons == len(differ) > 300
    assert found.estimate == pytest.approx((1 - math.sqrt(1 - 2 * d)) / 2, abs=1e-12)
    assert 0.01 < found.low < found.estimate < found.high < 0.06


def test_people_prefer_the_longer_answer_in_pandalm() -> None:
    pairs = []
    for row in pandalm():
        said = [row[f"annotator{n}"] for n in (1, 2, 3)]
        best = next((v for v in (1, 2) if said.count(v) >= 2), None)
        if best:
            answers = row["response1"], row["response2"]
            asks = f"{row['instruction']}\n{row['input']}"
            pairs.append(pair(asks, answers[best - 1], answers[2 - best]))
    found = quality(pairs, [], words)
    assert found.chosen_longer_rate and found.chosen_shorter_rate
    decided = found.chosen_longer_rate + found.chosen_shorter_rate
    assert 0.6 < found.chosen_longer_rate / decided < 0.7
    assert found.length_coefficient and found.length_coefficient.low > 0
    assert found.length_coefficient.rdpo_alpha == found.length_coefficient.estimate


def test_published_pairs_are_measured_in_seconds() -> None:
    """LLaMA-Factory's demonstration pairs: distinct answers of like length."""
    pairs = [
        pair(row["conversations"][0]["value"], row["chosen"]["value"], row["rejected"]["value"])
        for row in rows("dpo-en.jsonl")
    ]
    found = quality(pairs, [], words)
    assert found.num_pairs == len(pairs)
    assert found.near_identical_rate is not None and found.near_identical_rate < 0.1
    assert found.chosen_longer_rate and 0.3 < found.chosen_longer_rate < 0.7
    raised = raise_short_share(pairs, 0.6, 0, words)
    assert short_rate(raised) >= 0.6
    assert {p.id for p in raised} == {p.id for p in pairs}
