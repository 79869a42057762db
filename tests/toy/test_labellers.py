"""Labellers follow Bradley-Terry, with as much bias and noise as they are told to have."""

import math
from itertools import permutations

import pytest

from trueup.judges import Judge, compare, resolve
from trueup.records import Completion, Message
from trueup.stats import wilson
from trueup.toy.labellers import GoldJudge, Labeller
from trueup.toy.language import gold, prompts

PROMPT = (Message(role="user", content="about sea sky oh um so so"),)
GOOD, POOR = "wave cloud", "wave"  # gold 2 and 1
LONG, SHORT = "wave so oh well", "wave"  # gold 1 both, four words and one
NUM_LOOKS = 3000


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def covers(wins: int, chance: float) -> bool:
    """True where the 99.9 % interval of an observed share holds the chance."""
    interval = wilson(wins, NUM_LOOKS, confidence=0.999)
    assert interval is not None
    return interval.low <= chance <= interval.high


def wins(labeller: Labeller, a: str, b: str) -> int:
    return sum(labeller.prefers(PROMPT, a, b, key) for key in range(NUM_LOOKS))


# --- how often --------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.0, 0.5, 1.5, 4.0])
def test_the_better_answer_wins_as_often_as_bradley_and_terry_say(sharpness: float) -> None:
    assert covers(wins(Labeller(sharpness), GOOD, POOR), sigmoid(sharpness * 1.0))


def test_length_bias_is_a_logit_a_word() -> None:
    fair, biased = Labeller(), Labeller(length_bias=0.35)
    assert covers(wins(fair, LONG, SHORT), 0.5)
    assert covers(wins(biased, LONG, SHORT), sigmoid(0.35 * 3))
    assert not covers(wins(biased, LONG, SHORT), 0.5)


def test_flips_turn_a_share_of_the_verdicts_round() -> None:
    chance = sigmoid(1.5)
    flipped = 0.75 * chance + 0.25 * (1 - chance)
    assert covers(wins(Labeller(flips=0.25), GOOD, POOR), flipped)
    assert not covers(wins(Labeller(flips=0.25), GOOD, POOR), chance)


def test_a_share_of_one_turns_every_verdict_round() -> None:
    right, wrong = Labeller(), Labeller(flips=1.0)
    for key in range(50):
        assert right.prefers(PROMPT, GOOD, POOR, key) != wrong.prefers(PROMPT, GOOD, POOR, key)


def test_the_first_of_three_follows_plackett_and_luce() -> None:
    texts = ("wave cloud", "wave", "so")  # gold 2, 1, 0 on sea and sky
    candidates = [Completion(text=text) for text in texts]
    firsts = [0, 0, 0]
    for seed in range(NUM_LOOKS):
        scores = Labeller(sharpness=1.0, seed=seed).rank(PROMPT, candidates).scores
        firsts[scores.index(max(scores))] += 1
    weights = [math.exp(gold(PROMPT, text)) for text in texts]
    for count, weight in zip(firsts, weights, strict=True):
        assert covers(count, weight / sum(weights))


# --- the same question gets the same answer -----------------------------------------------------


def test_a_verdict_belongs_to_seed_key_and_texts_and_not_to_their_order() -> None:
    one, other = Labeller(sharpness=0.5), Labeller(sharpness=0.5, seed=1)
    looks = [one.prefers(PROMPT, GOOD, POOR, key) for key in range(100)]
    assert looks == [one.prefers(PROMPT, GOOD, POOR, key) for key in range(100)]
    assert looks == [not one.prefers(PROMPT, POOR, GOOD, key) for key in range(100)]
    assert looks != [other.prefers(PROMPT, GOOD, POOR, key) for key in range(100)]


@pytest.mark.parametrize("judge", [GoldJudge(), Labeller(flips=0.5, length_bias=0.2)])
def test_ranking_does_not_see_the_order(judge: Judge) -> None:
    candidates = [Completion(text=text) for text in (GOOD, POOR, LONG, "cow")]
    scores = dict(zip(candidates, judge.rank(PROMPT, candidates).scores, strict=True))
    assert len(set(scores.values())) >= 3
    for shown in permutations(candidates):
        assert judge.rank(PROMPT, shown).scores == tuple(scores[one] for one in shown)


def test_ranking_a_pair_and_preferring_agree() -> None:
    labeller = Labeller(sharpness=0.3, flips=0.2)
    outcomes = set()
    for prompt in prompts(60, 0):
        first, second = labeller.rank(prompt, [Completion(text=t) for t in (GOOD, LONG)]).scores
        outcomes.add(first > second)
        assert labeller.prefers(prompt, GOOD, LONG) == (first > second)
    assert outcomes == {True, False}


def test_equal_texts_tie() -> None:
    same = Completion(text=GOOD)
    assert compare(Labeller(flips=0.5), PROMPT, same, same) == "tie"
    assert not Labeller().prefers(PROMPT, GOOD, GOOD)


# --- as judges --------------------------------------------------------------------------------


def test_the_gold_judge_gives_gold() -> None:
    texts = (GOOD, POOR, "cow", "")
    ranking = GoldJudge().rank(PROMPT, [Completion(text=text) for text in texts])
    assert ranking.scores == tuple(gold(PROMPT, text) for text in texts) == (2.0, 1.0, -0.5, 0.0)
    assert compare(GoldJudge(), PROMPT, Completion(text=GOOD), Completion(text=POOR)) == "win"


def test_the_settings_can_name_them() -> None:
    assert resolve("trueup.toy.labellers:GoldJudge").id == "code:toy-gold/1"
    assert resolve("trueup.toy.labellers:Labeller").id == Labeller().id


def test_whatever_makes_another_judge_makes_another_id() -> None:
    labellers: list[Judge] = [
        GoldJudge(),
        Labeller(),
        Labeller(sharpness=2.0),
        Labeller(length_bias=0.35),
        Labeller(flips=0.25),
        Labeller(seed=1),
    ]
    assert len({one.id for one in labellers}) == len(labellers)
    assert {one.kind for one in labellers} == {"code"}
    assert all(one.is_symmetric for one in labellers)
