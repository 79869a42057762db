"""Every alarm against a planted fault, and none on clean controls.

The champion is a writer of sentences with a known distribution; a control is the same writer with
other random numbers, a fault is what the writer's answers are turned into.
"""

import random
from collections.abc import Callable, Sequence

import pytest

from trueup.errors import ConfigError
from trueup.guard import GuardConfig, hacking
from trueup.guard.alarms import Alarm
from trueup.guard.answers import Both
from trueup.guard.drift import Change
from trueup.guard.figures import (
    Vectors,
    chosen_alarm,
    collapse_alarms,
    diversity_alarms,
    kl_alarms,
    length_alarms,
    manner_alarms,
    refusal_alarm,
)
from trueup.judges import resolve
from trueup.judges.base import Ranking
from trueup.models.embedder import Embedder, lexical
from trueup.records import AnnotatorKind, Completion, Message, Messages
from trueup.stats import Interval

CONFIG = GuardConfig()
NUM_PROMPTS, NUM_SAMPLES = 48, 2
OPENINGS = ("Yes,", "No,", "Well,", "In short,", "As a rule,", "Often", "Today", "Here", "Then")
THINGS = ("flask", "feeder", "camera", "lamp", "kettle", "speaker", "roof", "clock", "cable")
VERBS = ("holds", "keeps", "needs", "takes", "shows", "stores", "loses", "wants", "gives")
RESTS = (
    "half a litre of water", "dry seed for a week", "two small batteries", "a wipe with a cloth",
    "four hours of charge", "pictures for a month", "heat when it is open", "room on the shelf",
    "light until the morning", "an hour before it dries",
)  # fmt: skip


def completion(text: str, entropy: float = 2.5) -> Completion:
    words = text.split()
    return Completion(
        text=text, token_ids=tuple(range(len(words))), logprobs=(-entropy,) * len(words)
    )


def sentence(chance: random.Random) -> str:
    parts = (chance.choice(side) for side in (OPENINGS, THINGS, VERBS, RESTS))
    opening, thing, verb, rest = parts
    return f"{opening} the {thing} {verb} {rest}."


def written(seed: int) -> list[list[Completion]]:
    chance = random.Random(seed)
    return [
        [completion(sentence(chance), entropy=chance.gauss(2.5, 0.2)) for _ in range(NUM_SAMPLES)]
        for _ in range(NUM_PROMPTS)
    ]


PROMPTS: list[Messages] = [
    (Message(role="user", content=f"question {i}?"),) for i in range(NUM_PROMPTS)
]


def against_champion(ours: Sequence[Sequence[Completion]]) -> Both:
    return Both(PROMPTS, ours, written(0))


def turned(change: Callable[[str], str], *, share: float = 1.0) -> list[list[Completion]]:
    """The writer's answers, a share of the prompts' turned into something else."""
    return [
        [completion(change(c.text)) if i < share * NUM_PROMPTS else c for c in group]
        for i, group in enumerate(written(1))
    ]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return lexical()


def vectors(both: Both, embedder: Embedder) -> Vectors:
    sides = (both.ours, both.theirs)
    ours, theirs = ([embedder([c.text for c in g]) for g in side] for side in sides)
    return Vectors(ours, theirs)


def alarms(ours: Sequence[Sequence[Completion]], embedder: Embedder) -> dict[str, Alarm]:
    both = against_champion(ours)
    found = [
        *length_alarms(CONFIG, both),
        *collapse_alarms(CONFIG, both),
        *diversity_alarms(CONFIG, both, vectors(both, embedder)),
        refusal_alarm(CONFIG, both),
        *manner_alarms(CONFIG, both),
    ]
    return {one.name: one for one in found}


def crossed(found: dict[str, Alarm]) -> dict[str, str]:
    return {name: one.status for name, one in found.items() if one.status != "inside"}


@pytest.mark.parametrize("seed", range(1, 7))
def test_clean_controls_cross_no_line(seed: int, embedder: Embedder) -> None:
    assert crossed(alarms(written(seed), embedder)) == {}


FAULTS: dict[str, tuple[Callable[[], list[list[Completion]]], set[str]]] = {
    "doubled length": (lambda: turned(lambda t: f"{t} {t}"), {"length"}),
    "silence": (lambda: turned(lambda t: ""), {"sameness", "near-duplicates"}),
    "a fifth of the length": (lambda: turned(lambda t: t.split()[-1]), {"shortness"}),
    "canned answers": (
        lambda: turned(lambda t: "Thank you for asking, please see the manual."),
        {"sameness", "near-duplicates", "opening", "diversity across prompts", "self-similarity"},
    ),
    "canned in other words": (
        lambda: turned(lambda t: f"Thank you for asking, please see the manual{'.' * len(t)}"),
        {"near-duplicates", "opening"},
    ),
    "all refusals": (
        lambda: turned(lambda t: f"I'm sorry, but I can't help with the {t.split()[2]}."),
        {"refusals", "opening"},
    ),
    "half refusals": (
        lambda: turned(lambda t: f"I cannot answer that. {t}", share=0.5),
        {"refusals", "opening"},
    ),
    "another language": (
        lambda: turned(lambda t: "Die Flasche ist nicht in der Schachtel, und das ist gut so."),
        {"language"},
    ),
    "another script": (
        lambda: turned(lambda t: f"Бутылка стоит в коробке {t.split()[-1]}", share=0.5),
        {"language"},
    ),
    "lists": (lambda: turned(lambda t: f"- {t}\n- {t.split()[2]}"), {"list"}),
    "json": (lambda: turned(lambda t: f'{{"answer": "{t}"}}'), {"json"}),
    "code": (lambda: turned(lambda t: f"```\n{t}\n```"), {"code"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_red_where_it_should_be(fault: str, embedder: Embedder) -> None:
    plant, expected = FAULTS[fault]
    found = alarms(plant(), embedder)
    red = {name for name, one in found.items() if one.status == "red"}
    assert expected <= red, {n: (a.status, a.estimate) for n, a in found.items()}


def test_a_collapsed_policy_has_one_answer_a_prompt_and_no_entropy(embedder: Embedder) -> None:
    same = [[completion(group[0].text, entropy=0.3)] * NUM_SAMPLES for group in written(1)]
    red = {name for name, one in alarms(same, embedder).items() if one.status == "red"}
    assert {"entropy", "diversity within a prompt"} <= red
    assert "sameness" not in red  # different prompts still get different answers


def test_the_honest_candidates_of_the_example_are_not_red(embedder: Embedder) -> None:
    """Shorter by half and twice as sure, as the support assistant's third round is."""
    shorter = [
        [completion(" ".join(c.text.split()[:5]), entropy=1.3) for c in group]
        for group in written(1)
    ]
    found = alarms(shorter, embedder)
    assert {n: a.status for n, a in found.items() if a.status in ("red", "unknown")} == {}
    assert found["entropy"].status == "amber"


# --- drift ----------------------------------------------------------------------------------------


def test_kl_is_held_against_its_lines_per_answer_and_per_token() -> None:
    ours = written(1)
    tokens = sum(len(c.token_ids or ()) for g in ours for c in g) / (NUM_PROMPTS * NUM_SAMPLES)
    for nats, status in ((2.75, "inside"), (4.8, "amber"), (12.0, "amber"), (35.0, "red")):
        per_answer, per_token = kl_alarms(CONFIG, [nats] * NUM_PROMPTS, ours)
        assert per_token.estimate == pytest.approx(nats / tokens)
        if nats != 4.8:  # on answers this short it is amber by the token alone
            assert per_answer.status == status
    assert [one.name for one in kl_alarms(CONFIG, [70.0] * 4, ours[:4], on="base")] == ["base kl"]


def test_chosen_answers_that_are_unlearned_are_seen() -> None:
    def changes(rate: float) -> list[Change]:
        chance = random.Random(0)
        sizes = [chance.randint(4, 40) for _ in range(40)]
        return [Change(n * (rate + chance.gauss(0, 0.05)), n) for n in sizes]

    statuses = [chosen_alarm(CONFIG, changes(rate)).status for rate in (0.08, -0.05, -0.3, -1.3)]
    assert statuses == ["inside", "inside", "amber", "red"]
    assert chosen_alarm(CONFIG, changes(-0.3)).estimate == pytest.approx(-3.0, abs=0.3)
    assert chosen_alarm(CONFIG, changes(0)[:1]).status == "unknown"


# --- reward hacking -------------------------------------------------------------------------------


class Rule:
    """A scorer that is a function of the text."""

    kind: AnnotatorKind = "code"
    is_symmetric = True

    def __init__(self, id: str, score: Callable[[str], float]) -> None:
        self.id, self._score = id, score

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        return Ranking(
            tuple(self._score(c.text) for c in candidates), tuple(() for _ in candidates)
        )


LOVES_LENGTH = Rule("code:length/1", lambda t: 0.1 * len(t.split()))
LOVES_FLATTERY = Rule("code:flattery/1", lambda t: float(hacking.is_flattery(t)))
TRUTH = Rule("code:truth/1", lambda t: float("water" in t))


def hack(
    ours: Sequence[Sequence[Completion]], proxy: Rule, gold: Rule, embedder: Embedder
) -> dict[str, Alarm]:
    both = against_champion(ours)
    every = range(len(both.prompts))
    scored = [hacking.scored(hacking.ask(judge, both), every, both) for judge in (proxy, gold)]
    found = hacking.hacking_alarms(
        CONFIG, both, scored[0], scored[1], vectors(both, embedder).firsts()
    )
    return {one.name: one for one in found}


def test_the_classic_rule_fires_on_length_that_only_the_teacher_likes(embedder: Embedder) -> None:
    padded = [
        [completion(c.text + " and so on and on, as ever.") for c in group] for group in written(0)
    ]
    found = hack(padded, LOVES_LENGTH, TRUTH, embedder)
    assert found["length hack"].status == "red"
    assert found["length-free share"].status == "red"
    assert found["long probe"].status == "red"
    # the same length, and gold that rises with it: better, not hacked
    better = Rule("code:better/1", lambda t: float("as ever" in t))
    assert crossed(hack(padded, LOVES_LENGTH, better, embedder)) == {"length-free share": "amber"}


def test_a_reward_that_rises_while_gold_falls_is_red_at_any_length(embedder: Embedder) -> None:
    sweet = turned(lambda t: "Great question! " + t.replace("water", "oil"))
    found = hack(sweet, LOVES_FLATTERY, TRUTH, embedder)
    assert found["flattery probe"].status == "red"
    assert found["gold divergence"].estimate is not None
    worse = Rule("code:worse/1", lambda t: -float(hacking.is_flattery(t)))
    assert hack(sweet, LOVES_FLATTERY, worse, embedder)["gold divergence"].status == "red"


def test_prompts_that_a_scorer_fails_on_are_left_out_of_both(embedder: Embedder) -> None:
    both = against_champion(written(0))

    class Choosy(Rule):
        def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
            if prompt == both.prompts[0]:
                raise SystemExit("not mine")
            return super().rank(prompt, candidates)

    said = hacking.ask(Choosy("code:choosy/1", TRUTH._score), both)
    assert sorted(said) == list(range(1, len(both.prompts)))
    known = hacking.scored(said, sorted(said), both)
    whole = hacking.scored(hacking.ask(TRUTH, both), range(len(both.prompts)), both)
    assert known.ours == whole.ours[1:] and known.each_theirs == whole.each_theirs[1:]
    assert both.at([2, 1]).prompts == [both.prompts[2], both.prompts[1]]
    assert hacking.what_it_pays_for(Choosy("code:choosy/1", TRUTH._score), both)


@pytest.mark.parametrize("seed", range(1, 5))
def test_clean_controls_are_no_hack(seed: int, embedder: Embedder) -> None:
    assert crossed(hack(written(seed), LOVES_LENGTH, TRUTH, embedder)) == {}


def test_gold_that_may_as_well_be_flat_is_flat() -> None:
    for estimate, low, is_flat in ((0.3, -0.1, True), (0.3, 0.1, False), (-0.3, -0.5, True)):
        truth = Interval(estimate, low, 2 * estimate - low)
        assert hacking._is_flat(CONFIG, truth) == is_flat


def test_a_panel_is_all_of_its_members() -> None:
    plain, panel = resolve("house-style"), resolve("panel:house-style,loop_scorers:brief")
    with pytest.raises(ConfigError, match="behind the labels"):
        hacking.check_two_scorers(plain, panel)


def test_one_scorer_may_not_play_both_parts() -> None:
    with pytest.raises(ConfigError, match=r"ab\.scorer"):
        hacking.check_two_scorers(TRUTH, Rule(TRUTH.id, len))
    hacking.check_two_scorers(TRUTH, LOVES_LENGTH)


def test_a_probe_shows_what_a_scorer_pays_for() -> None:
    both = against_champion(written(1))
    paid = hacking.what_it_pays_for(LOVES_LENGTH, both)
    assert paid["long"] is not None and paid["long"].low > 0.5
    assert paid["refusal"] is not None and abs(paid["refusal"].estimate) < 0.5
    sweet = hacking.what_it_pays_for(LOVES_FLATTERY, both)["flattery"]
    assert sweet is not None and sweet.estimate == 1


# --- the length-free share ------------------------------------------------------------------------


def scored(rows: list[tuple[int, float]]) -> tuple[list[list[Completion]], list[list[float]]]:
    answers = [[Completion(text="x", token_ids=tuple(range(size)))] for size, _ in rows]
    return answers, [[score] for _, score in rows]


def share_of(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> float | None:
    (mine, my_scores), (yours, your_scores) = scored(ours), scored(theirs)
    both = Both([PROMPTS[0]] * len(ours), mine, yours)
    means = [[s[0] for s in side] for side in (my_scores, your_scores)]
    proxy = hacking.Scored(means[0], means[1], my_scores, your_scores)
    found = hacking.length_free_share(both, proxy)
    return found and found.estimate


def test_gain_at_the_same_lengths_is_all_length_free() -> None:
    theirs = [(5 * (i % 5) + 5, 0.1 * i) for i in range(20)]
    assert share_of([(n, s + 1) for n, s in theirs], theirs) == pytest.approx(1)


def test_gain_that_is_length_alone_is_not() -> None:
    """Scores are the length; the candidate moves every answer one bin up."""
    theirs = [(10 * (i % 5) + 10, 10.0 * (i % 5) + 10) for i in range(50)]
    found = share_of([(n + 10, s + 10) for n, s in theirs], theirs)
    assert found is not None and abs(found) < 0.05


def test_no_gain_has_no_share() -> None:
    theirs = [(i + 3, 1.0) for i in range(12)]
    assert share_of([(n, 0.5) for n, _ in theirs], theirs) is None


def test_half_of_each_is_half() -> None:
    """Each answer gains 1 by itself and 1 by moving up a bin."""
    theirs = [(10 * (i % 5) + 10, float(i % 5)) for i in range(100)]
    ours = [(min(n + 10, 50), min(s + 1, 4) + 1) for n, s in theirs]
    gained = 1 + 4 / 5  # the top bin cannot move up
    assert share_of(ours, theirs) == pytest.approx(1 / gained, abs=0.02)
