"""Off-policy pairs on the toy language: own samples, a higher temperature, another writer. The
other writer's chance of every answer is known in closed form."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from trueup.models.backbone import Backbone
from trueup.models.embedder import lexical
from trueup.models.stored import StoredModel
from trueup.records import Completion, Interaction, Message, Messages, PreferencePair, Sampling
from trueup.shift import Shift, ShiftConfig, advice, measure, prompt_drift, warning
from trueup.shift.weights import LogRatio, effective_share, shares
from trueup.store import Store
from trueup.toy import prompts
from trueup.toy.language import FILLERS, MAX_TOKENS, TOPICS, foreign_writer, topics_of

CONFIG = ShiftConfig(num_pairs=200, max_tokens=MAX_TOKENS, permutations=60)


@pytest.fixture(scope="module")
def champion(toy: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoredModel]:
    store = Store(tmp_path_factory.mktemp("shift"))
    yield StoredModel.serving(store, toy)
    store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def pairs_of(asked: Sequence[Messages], drawn: Sequence[Sequence[Completion]]) -> list:
    return [
        PreferencePair(prompt=p, chosen=a, rejected=b, margin=1.0, label_ids=("label_1",))
        for p, (a, b) in zip(asked, drawn, strict=True)
    ]


def sampled(champion: StoredModel, temperature: float) -> list[PreferencePair]:
    asked = prompts(CONFIG.num_pairs, seed=1)
    how = Sampling(temperature=temperature, max_tokens=MAX_TOKENS, seed=5)
    return pairs_of(asked, champion.complete(asked, how, num_samples=2))


def foreign_logp(prompt: Messages, text: str) -> float:
    """The log of the chance that the foreign writer says this: over its choice of keywords, and of
    which of them are replaced by strays."""
    on = [k for topic in topics_of(prompt) for k in TOPICS[topic]]
    said = text.split()[1:-1]
    num = len(said)
    num_off = sum(len(words) for words in TOPICS.values()) - len(on)
    kept = [(place, word) for place, word in enumerate(said) if word in on]
    stray = num - len(kept)
    fitting = sum(
        all(chosen[place] == word for place, word in kept) for chosen in combinations(on, num)
    )
    # the strays are the places' own entries of one ordered draw without replacement
    strays = 1 / math.perm(num_off, stray)
    chance = fitting / math.comb(len(on), num) * 0.75 ** len(kept) * 0.25**stray * strays
    return math.log(chance / 3)


def foreign(champion: StoredModel) -> list[PreferencePair]:
    """Answers of the foreign writer with the log-probs that it wrote them with."""
    chance, asked = random.Random(2), prompts(CONFIG.num_pairs, seed=1)
    tokenizer = champion.backbone.tokenizer
    ids = tokenizer.get_vocab()

    def answer(prompt: Messages) -> Completion:
        text = foreign_writer(prompt, chance)
        tokens = [ids[w] for w in text.split()] + [int(tokenizer.eos_token_id)]
        each = foreign_logp(prompt, text) / len(tokens)
        return Completion(
            text=text, token_ids=tuple(tokens), logprobs=(each,) * len(tokens), weights="foreign"
        )

    return pairs_of(asked, [(answer(p), answer(p)) for p in asked])


def look(store: Store, pairs: Sequence[PreferencePair], champion: StoredModel) -> Shift:
    found = measure(store, CONFIG, pairs, champion, lexical())
    assert found is not None
    return found


# --- the three sets -------------------------------------------------------------------------------


def test_own_samples_weigh_one_and_cost_no_drawing(store: Store, champion: StoredModel) -> None:
    found = look(store, sampled(champion, 1.0), champion)
    assert (found.own_rate, found.ess, found.ess_per_token, found.auc) == (1.0, 1.0, 1.0, None)
    assert warning(found, CONFIG) is None


def test_own_samples_under_another_name_still_look_like_own(
    store: Store, champion: StoredModel
) -> None:
    """Without the weights' name a forward pass finds the ratios, and the classifier nothing."""
    pairs = [
        p.model_copy(
            update={
                side: getattr(p, side).model_copy(update={"weights": "somebody"})
                for side in ("chosen", "rejected")
            }
        )
        for p in sampled(champion, 1.0)
    ]
    found = look(store, pairs, champion)
    assert found.ess is not None and found.ess > 0.999
    assert found.auc_low is not None and found.auc_high is not None
    assert found.auc_low < 0.5 < found.auc_high
    assert found.mmd_p_value is not None and found.mmd_p_value > 0.05
    assert warning(found, CONFIG) is None


def test_a_higher_temperature_shows_and_does_not_warn(store: Store, champion: StoredModel) -> None:
    found = look(store, sampled(champion, 1.4), champion)
    # its stored log-probs are those of temperature 1, so there is no weight to compute
    assert (found.ess, found.num_weighed) == (None, 0)
    assert found.auc is not None and 0.53 < found.auc < 0.75
    assert warning(found, CONFIG) is None


def test_another_writer_is_found_where_mean_log_prob_would_pass_it(
    store: Store, champion: StoredModel
) -> None:
    found = look(store, foreign(champion), champion)
    assert found.auc is not None and found.auc > 0.97
    # its answers keep to a corner that the champion seldom visits: that is the overlap's to see
    assert found.overlap is not None and found.overlap < 0.05
    assert found.ess is not None and found.ess < 0.5
    assert found.mmd_p_value == pytest.approx(1 / 61)
    own = sampled(champion, 1.0)
    logprobs = [v for p in own for c in (p.chosen, p.rejected) for v in c.logprobs or ()]
    # the metric that would have passed it: about as likely as the model's own, token for token
    assert found.mean_logprob is not None
    assert found.mean_logprob > float(np.mean(logprobs)) - 0.3
    said = warning(found, CONFIG) or ""
    assert "AUC" in said and "overlap" in said
    assert any("train.weighting=wpo" in line for line in advice("dataset_1"))
    assert len(found.furthest) == 10
    assert all(f is not None and f > 0.5 for one in found.furthest for f in one.foreign[:1])


def test_the_foreign_writers_chances_are_those_it_writes_with() -> None:
    """The closed form of this file against counting, on the answers of two keywords."""
    prompt = (Message(role="user", content="about sea sky oh oh oh oh"),)
    chance, drawn = random.Random(0), 4000
    counts: dict[str, int] = {}
    for _ in range(drawn):
        text = foreign_writer(prompt, chance)
        counts[text] = counts.get(text, 0) + 1
    short = [t for t in counts if len(t.split()) == 4]
    expected = sum(math.exp(foreign_logp(prompt, t)) for t in short)
    # nearly every answer of two keywords was seen, and a third of all are of two
    assert sum(counts[t] for t in short) / drawn == pytest.approx(1 / 3, abs=0.03)
    assert expected == pytest.approx(1 / 3, abs=0.03)


def test_too_few_pairs_say_nothing(store: Store, champion: StoredModel) -> None:
    assert measure(store, CONFIG, sampled(champion, 1.0)[:19], champion, lexical()) is None
    assert warning(None, CONFIG) is None


# --- weights --------------------------------------------------------------------------------------


def test_the_effective_share_by_hand() -> None:
    assert effective_share([0.0, 0.0, 0.0]) == 1.0
    # weights 1 and 3: 16 / (2 * 10)
    assert effective_share([0.0, math.log(3)]) == pytest.approx(0.8)
    assert effective_share([-800.0, 0.0]) == pytest.approx(0.5)
    assert effective_share([]) is None and shares([]) is None


def test_the_share_of_gaussian_weights_is_the_known_one() -> None:
    """log w normal with variance s2: E[w]^2 / E[w^2] = exp(-s2)."""
    draws = np.random.default_rng(0).normal(0, 0.7, 200_000)
    assert effective_share(draws.tolist()) == pytest.approx(math.exp(-0.49), rel=0.02)


def test_kinder_weights_are_no_harder() -> None:
    ratios = [LogRatio(float(x), 5) for x in np.random.default_rng(1).normal(0, 3, 500)]
    found = shares(ratios)
    assert found is not None
    assert found.plain < found.clipped < 1 and found.plain < found.per_token < 1


def test_the_overlap_of_two_gaussians_is_the_known_one() -> None:
    """N(0, 1) and N(1, 1) have 2 Phi(-1/2) = 0.6171 in common."""
    draws = np.random.default_rng(2).normal(0, 1, 50_000)
    found = shares([LogRatio(float(x) - 0.5, 1) for x in draws])
    assert found is not None and found.overlap == pytest.approx(0.6171, abs=0.01)


# --- prompts --------------------------------------------------------------------------------------


def traffic(topic: Sequence[str], day: int, seed: int) -> list[Interaction]:
    chance = random.Random(seed)
    return [
        Interaction(
            prompt=(Message(role="user", content=" ".join(chance.choices(topic, k=6))),),
            completion=Completion(text="ok"),
            source="gateway",
            request_id=f"{day}-{i}",
            created_at=f"2026-03-{day:02d}T10:{i % 60:02d}:00+00:00",
        )
        for i in range(60)
    ]


def test_prompts_of_two_weeks_are_alike_until_the_topic_moves() -> None:
    sea, farm = [*TOPICS["sea"], *FILLERS], [*TOPICS["farm"], *FILLERS]
    config = ShiftConfig(permutations=60)
    still = prompt_drift([*traffic(sea, 3, 1), *traffic(sea, 10, 2)], lexical(), config)
    moved = prompt_drift([*traffic(sea, 3, 1), *traffic(farm, 10, 2)], lexical(), config)
    assert still is not None and still.auc_low < 0.5 < still.auc_high
    assert still.mmd_p_value > 0.05
    assert moved is not None and moved.auc > 0.95 and moved.mmd_p_value < 0.02
    assert (moved.num_newest, moved.num_before) == (60, 60)
    assert prompt_drift(traffic(sea, 3, 1), lexical(), config) is None
    assert prompt_drift([], lexical(), config) is None
