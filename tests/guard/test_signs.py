"""What the guard measures, against figures worked by hand and a KL divergence computed exactly."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from trueup.guard.answers import entropy, length
from trueup.guard.diversity import same_answer_rate
from trueup.guard.drift import _k3, sequence_kl
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Completion, Message, Sampling
from trueup.store import Store

PROMPTS = [(Message(role="user", content=text),) for text in ("sky?", "leaf? leaf?")]


def answer(text: str = "", *, logprobs: tuple[float, ...] = ()) -> Completion:
    return Completion(text=text, token_ids=tuple(range(len(logprobs))), logprobs=logprobs)


# --- length, entropy, sameness --------------------------------------------------------------------


def test_length_is_the_mean_number_of_tokens_for_each_prompt() -> None:
    answers = [[answer(logprobs=(-1.0,) * n) for n in sizes] for sizes in ((1, 3), (4,), (0, 5))]
    assert length(answers) == [2.0, 4.0, 2.5]


def test_entropy_is_minus_the_mean_log_prob_over_tokens_not_over_answers() -> None:
    long, short = answer(logprobs=(-0.5, -0.5, -0.5)), answer(logprobs=(-2.5,))
    assert entropy([[long, short], [short]]) == [(3 * 0.5 + 2.5) / 4, 2.5]


def test_the_same_answer_is_the_same_words() -> None:
    given = ["It is blue.", "it is BLUE", "It is green.", "“It is blue!”"]
    assert same_answer_rate([[answer(text)] for text in given]) == 3 / 4


def test_a_prompt_counts_once_however_often_it_got_the_answer() -> None:
    often = [[answer("Yes."), answer("yes"), answer("Yes!")], [answer("No."), answer("It is.")]]
    assert same_answer_rate(often) == 1 / 2
    assert same_answer_rate([*often, [answer("Who knows?"), answer("Yes")]]) == 2 / 3


def test_empty_answers_are_the_same_answer_and_no_answers_are_the_worst_case() -> None:
    assert same_answer_rate([[answer("")], [answer(" \n")], [answer("Blue.")]]) == 2 / 3
    assert same_answer_rate([]) == 1.0


# --- drift, on a toy chain ------------------------------------------------------------------------


def k3(ours: list[float], theirs: list[float]) -> float:
    return _k3([answer(logprobs=tuple(ours))], [torch.tensor(theirs, dtype=torch.float64)])


def test_the_estimate_of_one_token_by_hand() -> None:
    # r = 0.25 / 0.5: r - 1 - log r = -0.5 + log 2
    assert k3([math.log(0.5)], [math.log(0.25)]) == pytest.approx(math.log(2) - 0.5)
    assert k3([math.log(0.25)], [math.log(0.5)]) == pytest.approx(1 - math.log(2))
    assert k3([-1.0, -2.0], [-1.0, -2.0]) == 0.0


def test_an_estimate_sums_over_tokens_and_averages_over_answers() -> None:
    pair = [answer(logprobs=(-1.0, -2.0)), answer(logprobs=(-3.0,))]
    theirs = [torch.tensor([-1.5, -1.0]), torch.tensor([-2.0])]
    apart = [k3([-1.0], [-1.5]), k3([-2.0], [-1.0]), k3([-3.0], [-2.0])]
    assert _k3(pair, theirs) == pytest.approx(sum(apart) / 2)


class Chain:
    """A language of two letters and an end, each step with a distribution of its own."""

    def __init__(self, seed: int) -> None:
        self.random, self.known = random.Random(seed), {}

    def logprobs(self, said: str) -> dict[str, float]:
        if said not in self.known:
            weights = {token: self.random.uniform(0.05, 1) for token in "ab."}
            total = sum(weights.values())
            self.known[said] = {t: math.log(w / total) for t, w in weights.items()}
        return self.known[said]

    def of(self, said: str) -> list[float]:
        return [self.logprobs(said[:n])[token] for n, token in enumerate(said)]


def texts(longest: int, said: str = "") -> Iterator[str]:
    """Every text: ended by itself, or cut off."""
    if said.endswith(".") or len(said) == longest:
        yield said
    else:
        for token in "ab.":
            yield from texts(longest, said + token)


@pytest.mark.parametrize("seed", range(5))
def test_over_all_answers_the_estimate_is_the_divergence_itself(seed: int) -> None:
    ours, theirs = Chain(seed), Chain(seed + 100)
    share, exact, estimate = 0.0, 0.0, 0.0
    for said in texts(longest=4):
        chance = math.exp(sum(ours.of(said)))
        share += chance
        exact += chance * (sum(ours.of(said)) - sum(theirs.of(said)))
        one = k3(ours.of(said), theirs.of(said))
        assert one >= 0
        estimate += chance * one
    assert share == pytest.approx(1)
    assert exact > 0.05
    assert estimate == pytest.approx(exact)


# --- drift, on real models ------------------------------------------------------------------------


class Two(NamedTuple):
    champion: StoredModel
    candidate: StoredModel


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """A taught base, and an adapter on it that makes a clearly other model."""
    backbone = Backbone.load(tiny_model)
    store = Store(tmp_path_factory.mktemp("guard"))
    champion = StoredModel.serving(store, backbone)
    backbone.new_adapter("scratch", rank=2, alpha=4.0, targets=["all-linear"], seed=1)
    chance = torch.Generator().manual_seed(1)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B.scratch" in name:
            torch.nn.init.normal_(parameter, std=0.4, generator=chance)
    folder = store.folder / "checkpoints" / "one"
    folder.mkdir(parents=True)
    weights = backbone.save_adapter("scratch", folder, card={})
    backbone.detach("scratch")
    checkpoint = Checkpoint(
        run_id="run_1", path="checkpoints/one", weights=weights, base_weights=backbone.base_weights
    )
    store.add(checkpoint)
    yield Two(champion, StoredModel(store, backbone, checkpoint.id, role="candidate"))
    store.close()


def first_token(model: StoredModel, prompt: tuple[Message, ...]) -> list[float]:
    """Log-prob of every token of the vocabulary as the answer's first."""
    tokenizer = model.backbone.tokenizer
    row = Branches(chat.prompt_ids(tokenizer, prompt), [[v] for v in range(len(tokenizer))])
    with torch.no_grad(), model.acting() as network:
        return torch.cat(completion_logprobs(network, [row])[0]).tolist()


@pytest.mark.parametrize("prompt", PROMPTS, ids=["taught", "new"])
def test_over_the_whole_vocabulary_the_estimate_is_the_divergence_itself(
    models: Two, prompt: tuple[Message, ...]
) -> None:
    ours, theirs = first_token(models.candidate, prompt), first_token(models.champion, prompt)
    every = [[Completion(text="", token_ids=(v,), logprobs=(p,))] for v, p in enumerate(ours)]
    estimates = sequence_kl(models.candidate, models.champion, [prompt] * len(every), every)
    exact = sum(math.exp(p) * (p - q) for p, q in zip(ours, theirs, strict=True))
    assert exact > 0.05
    assert min(estimates) >= 0
    weighted = sum(math.exp(p) * k for p, k in zip(ours, estimates, strict=True))
    assert weighted == pytest.approx(exact, rel=1e-3)


def test_on_its_own_samples_the_candidate_drifted_and_the_champion_did_not(models: Two) -> None:
    plain = Sampling(max_tokens=12, seed=3)
    own = models.champion.complete(PROMPTS, plain, num_samples=3)
    still = sequence_kl(models.champion, models.champion, PROMPTS, own)
    assert still == pytest.approx([0.0, 0.0], abs=1e-6)
    drawn = models.candidate.complete(PROMPTS, plain, num_samples=3)
    drift = sequence_kl(models.candidate, models.champion, PROMPTS, drawn)
    assert len(drift) == len(PROMPTS) and min(drift) > 0.1


def test_the_two_models_come_back_as_they_were(models: Two) -> None:
    before = first_token(models.champion, PROMPTS[0]), first_token(models.candidate, PROMPTS[0])
    drawn = models.candidate.complete(PROMPTS, Sampling(max_tokens=4, seed=0))
    sequence_kl(models.candidate, models.champion, PROMPTS, drawn)
    again = first_token(models.champion, PROMPTS[0]), first_token(models.candidate, PROMPTS[0])
    assert again == before and before[0] != before[1]
