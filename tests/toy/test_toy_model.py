"""The toy model is an ordinary model folder, comes out the same every time, and hits its figures.

Also what makes the foreign writer foreign: the base finds its answers as likely as its own, and a
counter of words tells them apart.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.records import Completion, Message, Messages
from trueup.toy.language import VOCABULARY, foreign_writer, gold, prompts, words
from trueup.toy.measure import Figures, figures, sampling
from trueup.toy.model import save_toy, toy_folder

NUM_PROMPTS = 300


@pytest.fixture(scope="module")
def measured(toy: Backbone) -> Figures:
    return figures(toy)


@pytest.fixture(scope="module")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(save_toy(tmp_path_factory.mktemp("untaught") / "model", steps=0))


# --- the folder -------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first = files(save_toy(tmp_path / "first", seed=3, steps=4))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert files(save_toy(tmp_path / "second", seed=3, steps=4)) == first
    assert torch.equal(torch.get_rng_state(), before)
    other = files(save_toy(tmp_path / "other", seed=4, steps=4))
    assert other["model.safetensors"] != first["model.safetensors"]
    assert other["tokenizer.json"] == first["tokenizer.json"]


def test_a_folder_is_made_once_though_two_ask_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: toy_folder(tmp_path / "cache", steps=1), range(2)))
    assert made[0] == made[1]
    written = (made[0] / "model.safetensors").stat().st_mtime_ns
    assert toy_folder(tmp_path / "cache", steps=1) == made[0]
    assert (made[0] / "model.safetensors").stat().st_mtime_ns == written
    left = {path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"}
    assert left == {made[0]}


def test_another_seed_or_length_of_training_is_another_folder(tmp_path: Path) -> None:
    made = {
        toy_folder(tmp_path, seed=seed, steps=steps) for seed, steps in ((0, 0), (1, 0), (0, 1))
    }
    assert len({(folder / "model.safetensors").read_bytes() for folder in made}) == 3


def test_it_has_some_sixty_thousand_weights_and_a_token_a_word(untaught: Backbone) -> None:
    assert sum(p.numel() for p in untaught.model.parameters()) == pytest.approx(61_000, rel=0.05)
    ids = chat.completion_ids(untaught.tokenizer, Completion(text=" ".join(VOCABULARY)))
    assert len(ids) == len(set(ids)) == len(VOCABULARY) + 1
    assert chat.decode(untaught.tokenizer, ids) == " ".join(VOCABULARY)


def test_the_template_marks_turns_and_a_user_cannot(untaught: Backbone) -> None:
    tokenizer = untaught.tokenizer
    talk = (Message(role="user", content="about sea sky"),)
    shown = tokenizer.convert_ids_to_tokens(chat.prompt_ids(tokenizer, talk))
    assert shown == ["<user>", "about", "sea", "sky", "<end>", "<assistant>"]
    typed = (Message(role="user", content="so <end> <assistant> oh"),)
    said = tokenizer.convert_ids_to_tokens(chat.prompt_ids(tokenizer, typed))
    assert (said.count("<end>"), said.count("<assistant>")) == (1, 1)


# --- the figures ------------------------------------------------------------------------------


def test_the_base_hits_its_figures(measured: Figures) -> None:
    assert 0.4 <= measured.gold.mean <= 0.8
    assert 5.5 <= measured.length.mean <= 8
    assert 2.7 <= measured.entropy.mean <= 3.1
    assert measured.unique >= 0.95
    assert measured.copy.mean >= 0.95
    assert measured.kl.mean == pytest.approx(0.0, abs=1e-3)


def test_errors_are_of_the_size_that_the_answers_spread(measured: Figures) -> None:
    assert 0.02 < measured.gold.error < 0.12  # answers spread by 1.3: 1.3 / sqrt(128 * 4) = 0.06
    assert 0.05 < measured.length.error < 0.25
    assert 0.003 < measured.entropy.error < 0.05


def test_measuring_again_gives_the_same_and_other_answers_agree(
    toy: Backbone, measured: Figures
) -> None:
    assert figures(toy) == measured
    other = figures(toy, seed=1)
    assert other != measured
    gap = abs(other.gold.mean - measured.gold.mean)
    assert gap < 4 * (other.gold.error**2 + measured.gold.error**2) ** 0.5


def test_a_role_is_measured_against_the_base_below_it(toy_base: Path) -> None:
    backbone = Backbone.load(toy_base)
    backbone.new_adapter("policy", rank=4, alpha=8.0, targets=["all-linear"], seed=0)
    unchanged = figures(backbone, "policy", num_prompts=32)
    assert unchanged.kl.mean == pytest.approx(0.0, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in backbone.model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    changed = figures(backbone, "policy", num_prompts=32)
    assert changed.kl.mean > 2 * changed.kl.error > 0
    assert figures(backbone, num_prompts=32).kl.mean == pytest.approx(0.0, abs=1e-3)


def test_a_model_that_learnt_nothing_is_measured_as_such(
    toy: Backbone, untaught: Backbone, measured: Figures
) -> None:
    poor = figures(untaught, base=toy, num_prompts=32)
    assert poor.copy.mean == 0
    assert poor.gold.mean < measured.gold.mean - 4 * poor.gold.error
    assert poor.kl.mean > 4 * poor.kl.error > 0


# --- foreign answers --------------------------------------------------------------------------


def own_answers(toy: Backbone, asked: list[Messages], seed: int) -> list[str]:
    drawn = toy.complete(asked, sampling(seed), role=None, weights=toy.base_weights)
    return [group[0].text for group in drawn]


def foreign_answers(asked: list[Messages]) -> list[str]:
    dice = random.Random(0)
    return [foreign_writer(prompt, dice) for prompt in asked]


def logprob_per_token(toy: Backbone, asked: list[Messages], texts: list[str]) -> float:
    tokenizer = toy.tokenizer
    rows = [
        Branches(
            chat.prompt_ids(tokenizer, prompt),
            [chat.completion_ids(tokenizer, Completion(text=text))],
        )
        for prompt, text in zip(asked, texts, strict=True)
    ]
    with torch.no_grad():
        found = completion_logprobs(toy.model, rows)
    return float(torch.cat([branch for row in found for branch in row]).mean())


def counts(texts: list[str]) -> np.ndarray:
    return np.array([[words(text).count(word) for word in VOCABULARY] for text in texts], float)


def auc_of_word_counts(ours: list[str], theirs: list[str]) -> float:
    """Naive Bayes on which words occur, fitted on even answers: its AUC on the odd ones."""
    ours_NV, theirs_NV = counts(ours) > 0, counts(theirs) > 0
    rates = [(x[::2].sum(0) + 1) / (len(x[::2]) + 2) for x in (ours_NV, theirs_NV)]
    there, absent = (np.log(q / p) for p, q in (rates, [1 - rate for rate in rates]))
    lower, upper = (x[1::2] @ there + ~x[1::2] @ absent for x in (ours_NV, theirs_NV))
    above = upper[:, None] > lower[None, :]
    equal = upper[:, None] == lower[None, :]
    return float((above + 0.5 * equal).mean())


def test_foreign_answers_are_better_and_as_likely_and_yet_another_distribution(
    toy: Backbone,
) -> None:
    asked = prompts(NUM_PROMPTS, 11)
    own, again, foreign = (
        own_answers(toy, asked, 0),
        own_answers(toy, asked, 1),
        foreign_answers(asked),
    )
    golds = [
        np.array([gold(p, t) for p, t in zip(asked, texts, strict=True)])
        for texts in (own, foreign)
    ]
    assert golds[1].mean() > golds[0].mean() + 0.8
    likely = [logprob_per_token(toy, asked, texts) for texts in (own, foreign)]
    assert likely[1] == pytest.approx(likely[0], abs=0.1)
    assert 0.38 < auc_of_word_counts(own, again) < 0.62
    assert auc_of_word_counts(own, foreign) > 0.95
