"""The sampler draws what the model says: the same tokens in any company, and honest log-probs."""

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MinPLogitsWarper,
    MistralConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    set_seed,
)

from trueup.models.backbone import Backbone
from trueup.models.drawing import drawn_from
from trueup.models.kv_cache import ATTENTION
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.sampler import SPARE, Batch, Drawn, SampleRequest, sample
from trueup.records import Message, Sampling

NEVER = frozenset([-1])
"""No token ends a completion."""


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> Backbone:
    return Backbone.load(tiny_model)


@pytest.fixture(scope="module")
def dice() -> torch.nn.Module:
    """A random model with a vocabulary of eleven tokens."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()


def ids(size: int, seed: int, vocabulary: int = 250) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (size,), generator=random).tolist()


def request(prompt: list[int], num_samples: int = 1, **sampling: object) -> SampleRequest:
    settings: dict = {"seed": 0, "max_tokens": 12, **sampling}
    return SampleRequest(prompt, Sampling(**settings), num_samples)


def tokens(drawn: list[list[Drawn]]) -> list[list[list[int]]]:
    return [[one.token_ids for one in group] for group in drawn]


def close(one: Drawn, other: Drawn, atol: float = 1e-4) -> bool:
    return one.token_ids == other.token_ids and np.allclose(one.logprobs, other.logprobs, atol=atol)


MIXED = [
    request(ids(3, 1), 3, seed=7),
    request(ids(40, 2), 1, seed=8, temperature=0.0),
    request(ids(90, 3), 2, seed=9, temperature=0.7, top_p=0.9, max_tokens=30),
    request(ids(40, 2)[:30] + ids(9, 4), 2, seed=10, max_tokens=1),
    request(ids(3, 1), 1, seed=11, temperature=3.0, max_tokens=25),
]
"""Short and long, greedy and hot, two with a long common beginning, one prompt twice."""


# --- log-probs ------------------------------------------------------------------------------------


def test_log_probs_equal_a_recomputation_over_the_whole_sequence(backbone: Backbone) -> None:
    """Those of the model itself, whatever temperature and top-p drew the token."""
    drawn = sample(backbone.model, MIXED, eos_ids=NEVER)
    for asked, group in zip(MIXED, drawn, strict=True):
        row = Branches(asked.prompt_ids, [one.token_ids for one in group])
        with torch.no_grad():
            again = completion_logprobs(backbone.model, [row])[0]
        for one, expected in zip(group, again, strict=True):
            assert len(one.logprobs) == len(one.token_ids)
            assert np.allclose(one.logprobs, expected.numpy(), atol=1e-4)


def test_greedy_tokens_equal_those_of_transformers(backbone: Backbone) -> None:
    prompts = [ids(5, 1), ids(60, 2), ids(23, 3)]
    drawn = sample(
        backbone.model,
        [request(p, temperature=0.0, max_tokens=40) for p in prompts],
        eos_ids=frozenset([backbone.tokenizer.eos_token_id]),
    )
    plain = AutoModelForCausalLM.from_pretrained(backbone.folder, dtype=torch.float32).eval()
    for prompt, (one,) in zip(prompts, drawn, strict=True):
        out = plain.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=40,
            do_sample=False,
        )
        assert one.token_ids == out[0, len(prompt) :].tolist()


# --- company --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(len(MIXED)))
def test_a_seeded_request_draws_the_same_alone_and_in_any_company(
    backbone: Backbone, place: int
) -> None:
    together = sample(backbone.model, MIXED, eos_ids=NEVER)[place]
    backwards = sample(backbone.model, MIXED[::-1], eos_ids=NEVER)[-1 - place]
    alone = sample(backbone.model, [MIXED[place]], eos_ids=NEVER)[0]
    for one, other, third in zip(alone, together, backwards, strict=True):
        assert close(one, other) and close(one, third)


def test_the_first_samples_of_a_request_do_not_depend_on_how_many_follow(
    backbone: Backbone,
) -> None:
    few = sample(backbone.model, [request(ids(9, 5), 2)], eos_ids=NEVER)
    many = sample(backbone.model, [request(ids(9, 5), 6)], eos_ids=NEVER)
    assert tokens(many)[0][:2] == tokens(few)[0]
    assert len({tuple(t) for t in tokens(many)[0]}) == 6, "each sample has its own randomness"


def test_left_padding_changes_nothing(backbone: Backbone) -> None:
    """A prompt of 3 tokens beside one of 200, in both orders, sampled and greedy."""
    for temperature in (0.0, 1.0):
        short = request(ids(3, 1), 2, temperature=temperature, max_tokens=20)
        alone = sample(backbone.model, [short], eos_ids=NEVER)[0]
        beside = sample(
            backbone.model, [request(ids(200, 6)), short, request(ids(120, 7))], eos_ids=NEVER
        )[1]
        assert all(close(a, b) for a, b in zip(alone, beside, strict=True))


def test_a_common_beginning_changes_nothing(backbone: Backbone) -> None:
    """Prompts that begin alike are run together; one is the beginning of the others."""
    start = ids(60, 8)
    ends = [[], [9], ids(30, 9)]
    prompts = [*(start + end for end in ends), start[:40] + ids(5, 10), ids(4, 11)]
    requests = [request(p, 2, seed=n) for n, p in enumerate(prompts)]
    together = sample(backbone.model, requests, eos_ids=NEVER)
    for asked, group in zip(requests, together, strict=True):
        alone = sample(backbone.model, [asked], eos_ids=NEVER)[0]
        assert all(close(a, b) for a, b in zip(alone, group, strict=True))


def test_a_window_counts_no_padding_between_a_common_beginning_and_its_ends() -> None:
    """A window of 40 tokens; every log-prob against one plain forward pass."""
    set_seed(3)
    config = MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        sliding_window=40,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    start = ids(30, 1, 97)
    prompts = [start + ids(size, size, 97) for size in (3, 20, 5)]
    drawn = sample(model, [request(p, max_tokens=20) for p in prompts], eos_ids=NEVER)
    for prompt, (one,) in zip(prompts, drawn, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *one.token_ids]])).logits[0, len(prompt) - 1 :]
        chosen = torch.tensor(one.token_ids)[:, None]
        expected = logits[:-1].log_softmax(-1).gather(1, chosen)[:, 0]
        assert np.allclose(one.logprobs, expected, atol=1e-4)


# --- refilling ------------------------------------------------------------------------------------


RAGGED = [
    request(ids(size, seed), samples, seed=seed, temperature=heat, max_tokens=limit)
    for seed, (size, samples, heat, limit) in enumerate(
        [
            (30, 1, 1.0, 40), (5, 2, 1.0, 3), (70, 1, 0.0, 9), (4, 3, 1.5, 1), (12, 1, 0.0, 60),
            (90, 2, 1.0, 5), (8, 1, 1.0, 50), (31, 2, 0.7, 17), (3, 1, 1.0, 2), (60, 1, 1.0, 33),
        ]
    )
]  # fmt: skip
"""Answers of 1 to 60 tokens behind prompts of 3 to 90."""


class Passes:
    """What went through a model while it is watched: rows, columns and new tokens of each pass."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.shapes: list[tuple[int, int, int]] = []
        self._hook = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: object, __: object, kwargs: dict) -> None:
        self.shapes.append((*kwargs["attention_mask"].shape, kwargs["input_ids"].shape[1]))

    def __enter__(self) -> "Passes":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Rows and columns of the passes that fed one token a row."""
        return [(rows, columns) for rows, columns, new in self.shapes if new == 1]


@pytest.mark.parametrize(("max_rows", "max_places"), [(1, 10_000), (3, 10_000), (5, 400), (8, 900)])
def test_refilled_places_change_nothing(backbone: Backbone, max_rows: int, max_places: int) -> None:
    """Against each request alone, and every log-prob against a plain recomputation."""
    with Passes(backbone.model) as seen:
        drawn = sample(
            backbone.model, RAGGED, eos_ids=NEVER, max_rows=max_rows, max_places=max_places
        )
    assert max(rows for rows, _ in seen.steps) <= max_rows
    for asked, group in zip(RAGGED, drawn, strict=True):
        alone = sample(backbone.model, [asked], eos_ids=NEVER)[0]
        assert all(close(a, b) for a, b in zip(alone, group, strict=True))
        with torch.no_grad():
            row = Branches(asked.prompt_ids, [one.token_ids for one in group])
            again = completion_logprobs(backbone.model, [row])[0]
        for one, expected in zip(group, again, strict=True):
            assert np.allclose(one.logprobs, expected.numpy(), atol=1e-4)


def test_a_finished_row_makes_room_at_once(backbone: Backbone) -> None:
    """One long answer and fifteen short ones on two places: as many passes as the long one has."""
    long = request(ids(9, 1), max_tokens=61)
    short = [request(ids(9, n), max_tokens=4) for n in range(2, 17)]
    with Passes(backbone.model) as seen:
        drawn = sample(backbone.model, [long, *short], eos_ids=NEVER, max_rows=2)
    assert [len(group[0].token_ids) for group in drawn] == [61] + [4] * 15
    assert len(seen.steps) == 60


def test_room_is_bounded_and_shifted_rows_leave_no_empty_columns(backbone: Backbone) -> None:
    """Forty answers one after the other on four places need no more columns than the longest."""
    requests = [request(ids(20, n), max_tokens=20 + n % 23) for n in range(40)]
    with Passes(backbone.model) as seen:
        drawn = sample(backbone.model, requests, eos_ids=NEVER, max_rows=4, max_places=260)
    assert max(rows for rows, _ in seen.steps) == 4
    assert max(columns for _, columns in seen.steps) <= 62 + SPARE
    for n in (7, 22, 39):
        assert close(drawn[n][0], sample(backbone.model, [requests[n]], eos_ids=NEVER)[0][0])


def test_a_long_prompt_that_has_left_takes_its_columns_with_it(backbone: Backbone) -> None:
    requests = [request(ids(400, 1), max_tokens=4), request(ids(5, 2), max_tokens=40)]
    with Passes(backbone.model) as seen:
        both = sample(backbone.model, requests, eos_ids=NEVER)
    assert seen.steps[0][1] > 400 and seen.steps[-1][1] <= 45 + SPARE
    assert close(both[1][0], sample(backbone.model, requests[1:], eos_ids=NEVER)[0][0])


def test_newcomers_share_their_beginning_and_their_prompt(backbone: Backbone) -> None:
    """Of three that join with two samples each, a common beginning of 60 tokens runs as one row."""
    start = ids(60, 8)
    first = [request(ids(9, n), seed=n, max_tokens=30 if n == 3 else 3) for n in range(8)]
    later = [request(start + ids(3 + n, n), 2, seed=n, max_tokens=6) for n in range(3)]
    with Passes(backbone.model) as seen:
        drawn = sample(backbone.model, first + later, eos_ids=NEVER, max_rows=8, max_places=900)
    prompts = [(rows, new) for rows, _, new in seen.shapes if new > 1]
    assert prompts == [(8, 9), (1, 60), (3, 5)]
    for asked, group in zip(later, drawn[8:], strict=True):
        alone = sample(backbone.model, [asked], eos_ids=NEVER)[0]
        assert all(close(a, b) for a, b in zip(alone, group, strict=True))


def test_more_samples_than_there_are_places_are_those_of_one_large_batch(
    backbone: Backbone,
) -> None:
    asked = request(ids(9, 5), 11)
    few = sample(backbone.model, [asked], eos_ids=NEVER, max_rows=4)[0]
    many = sample(backbone.model, [asked], eos_ids=NEVER)[0]
    assert all(close(a, b) for a, b in zip(many, few, strict=True))


def test_a_window_is_not_refilled() -> None:
    """Its columns are counted, so a batch ends before the next begins; the log-probs hold."""
    set_seed(3)
    config = MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        sliding_window=16,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    requests = [request(ids(12, n, 97), seed=n, max_tokens=8 + 9 * (n % 2)) for n in range(6)]
    with Passes(model) as seen:
        drawn = sample(model, requests, eos_ids=NEVER, max_rows=2)
    assert len(seen.steps) == 3 * 16
    for asked, (one,) in zip(requests, drawn, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*asked.prompt_ids, *one.token_ids]])).logits[0, 11:]
        chosen = torch.tensor(one.token_ids)[:, None]
        expected = logits[:-1].log_softmax(-1).gather(1, chosen)[:, 0]
        assert np.allclose(one.logprobs, expected, atol=1e-4)


def test_what_fails_before_it_joins_leaves_the_batch_as_it_was(backbone: Backbone) -> None:
    ended: dict[int, Drawn] = {}
    batch = Batch(
        backbone.model, eos_ids=NEVER, on_done=lambda key, _, drawn: ended.update({key: drawn})
    )
    batch.join(batch.prefill([(7, request(ids(9, 1)))]))
    batch.step()
    with pytest.raises(IndexError):
        batch.prefill([(8, request([backbone.num_tokens + 5]))])
    while batch.num_rows:
        batch.step()
    assert list(ended) == [7]
    assert close(ended[7], sample(backbone.model, [request(ids(9, 1))], eos_ids=NEVER)[0][0])


# --- randomness -----------------------------------------------------------------------------------


def test_another_seed_draws_other_tokens_and_no_seed_is_fresh_each_time(backbone: Backbone) -> None:
    def drawn(seed: int | None) -> list:
        return tokens(sample(backbone.model, [request(ids(9, 5), seed=seed)], eos_ids=NEVER))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


def test_drawing_leaves_the_global_randomness_alone(backbone: Backbone) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample(backbone.model, [request(ids(9, 5), 3)], eos_ids=NEVER)
    assert torch.equal(torch.rand(3), expected)


# --- where a completion ends ----------------------------------------------------------------------


def test_the_end_token_is_kept_with_its_log_prob(backbone: Backbone) -> None:
    end = backbone.tokenizer.eos_token_id
    prompts = [(Message(role="user", content=f"{thing}?"),) for thing in ("sky", "coal", "rose")]
    answers = backbone.complete(
        prompts, Sampling(max_tokens=60, seed=3), role=None, weights="w", num_samples=6
    )
    stopped = [c for group in answers for c in group if c.finish_reason == "stop"]
    assert len(stopped) > 10, "the model was taught to stop"
    for one in stopped:
        assert one.token_ids and one.logprobs
        assert one.token_ids[-1] == end
        assert end not in one.token_ids[:-1]
        assert len(one.logprobs) == len(one.token_ids)
        assert "<|im_end|>" not in one.text


@pytest.mark.parametrize("max_tokens", [1, 2, 17])
def test_max_tokens_is_honoured_to_the_token(backbone: Backbone, max_tokens: int) -> None:
    requests = [request(ids(9, n), 3, max_tokens=max_tokens) for n in range(3)]
    for group in sample(backbone.model, requests, eos_ids=NEVER):
        for one in group:
            assert len(one.token_ids) == max_tokens
            assert one.finish_reason == "length"


def test_an_end_token_on_the_last_place_is_a_stop(dice: torch.nn.Module) -> None:
    every = frozenset(range(11))
    (one,) = sample(dice, [request(ids(3, 1, 11), max_tokens=1)], eos_ids=every)[0]
    assert (len(one.token_ids), one.finish_reason) == (1, "stop")


def test_each_request_has_its_own_limit(backbone: Backbone) -> None:
    limits = [1, 30, 7, 12]
    requests = [request(ids(9, n), 2, max_tokens=limit) for n, limit in enumerate(limits)]
    drawn = sample(backbone.model, requests, eos_ids=NEVER)
    assert [[len(t) for t in group] for group in tokens(drawn)] == [[n, n] for n in limits]


def test_listeners_hear_every_token_in_order_and_every_end_once(backbone: Backbone) -> None:
    heard: dict[tuple[int, int], list[tuple[int, float]]] = {}
    ended: list[tuple[int, int]] = []
    drawn = sample(
        backbone.model,
        MIXED,
        eos_ids=NEVER,
        on_token=lambda r, s, token, logprob: heard.setdefault((r, s), []).append((token, logprob)),
        on_done=lambda r, s, _: ended.append((r, s)),
    )
    for r, group in enumerate(drawn):
        for s, one in enumerate(group):
            assert heard[r, s] == list(zip(one.token_ids, one.logprobs, strict=True))
    assert sorted(ended) == sorted(heard)


def test_a_listener_may_end_one_completion_and_the_others_go_on(backbone: Backbone) -> None:
    requests = [request(ids(9, 1)), request(ids(9, 2))]
    whole = sample(backbone.model, requests, eos_ids=NEVER)
    counts: Counter[int] = Counter()

    def give_up(r: int, s: int, token: int, logprob: float) -> Literal["unknown"] | None:
        counts[r] += 1
        return "unknown" if r == 0 and counts[0] == 4 else None

    cut, other = sample(backbone.model, requests, eos_ids=NEVER, on_token=give_up)
    assert (cut[0].token_ids, cut[0].finish_reason) == (whole[0][0].token_ids[:4], "unknown")
    assert close(other[0], whole[1][0])


def test_a_listener_may_call_an_end_a_stop(backbone: Backbone) -> None:
    """On the last place too: the text had reached its stop string."""
    for limit in (4, 12):
        heard: list[int] = []

        def listen(_: int, __: int, token: int, ___: float) -> Literal["stop"] | None:
            heard.append(token)  # noqa: B023
            return "stop" if len(heard) == 4 else None  # noqa: B023

        asked = request(ids(9, 1), max_tokens=limit)
        (one,) = sample(backbone.model, [asked], eos_ids=NEVER, on_token=listen)[0]
        assert (len(one.token_ids), one.finish_reason) == (4, "stop")


def test_complete_ends_the_text_before_a_stop_string(backbone: Backbone) -> None:
    prompts = [(Message(role="user", content=f"{thing}?"),) for thing in ("sky", "coal", "rose")]
    plain = Sampling(max_tokens=60, seed=3)
    stopping = plain.model_copy(update={"stop": ("the ", "um")})
    ask = {"role": None, "weights": "w", "num_samples": 6}
    whole = [c for g in backbone.complete(prompts, plain, **ask) for c in g]
    cut = [c for g in backbone.complete(prompts, stopping, **ask) for c in g]
    assert sum("the " in c.text or "um" in c.text for c in whole) > 3
    for one, other in zip(whole, cut, strict=True):
        ends = [one.text.find(stop) for stop in stopping.stop if stop in one.text]
        assert other.text == one.text[: min(ends, default=len(one.text))]
        assert other.finish_reason == ("stop" if ends else one.finish_reason)
        assert one.token_ids and other.token_ids == one.token_ids[: len(other.token_ids)]
        assert not ends or len(other.token_ids) < len(one.token_ids)
        assert other.logprobs == pytest.approx(one.logprobs[: len(other.token_ids)], abs=1e-4)


def test_progress_counts_every_prompt_once(backbone: Backbone) -> None:
    told: list[int] = []
    prompts = [(Message(role="user", content="x" * n),) for n in range(1, 8)]
    backbone.complete(
        prompts, Sampling(max_tokens=5), role=None, weights="w", num_samples=3,
        on_progress=told.append,
    )  # fmt: skip
    assert sum(told) == 7


# --- the distribution -----------------------------------------------------------------------------


def next_probs(model: torch.nn.Module, prompt: list[int]) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1).numpy()


def drawn_counts(
    model: torch.nn.Module, prompt: list[int], n: int, **sampling: float
) -> np.ndarray:
    asked = request(prompt, n, max_tokens=1, **sampling)
    first = [one.token_ids[0] for one in sample(model, [asked], eos_ids=NEVER)[0]]
    return np.bincount(first, minlength=11)


def fits(counts: np.ndarray, probs: np.ndarray) -> bool:
    """Pearson's chi-square at one in a thousand; seeds are fixed, so this passes or fails for
    good."""
    possible = probs > 0
    assert counts[~possible].sum() == 0, "a token was drawn that cannot be"
    expected = counts.sum() * probs[possible]
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    return bool(statistic < chi2.ppf(0.999, possible.sum() - 1))


PROMPT = [1, 5, 2, 8]


def test_tokens_come_as_often_as_the_model_says(dice: torch.nn.Module) -> None:
    probs = next_probs(dice, PROMPT)
    assert probs.min() > 0.001 and probs.max() < 0.7, "a die worth throwing"
    assert fits(drawn_counts(dice, PROMPT, 4000), probs)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens_as_it_should(
    dice: torch.nn.Module, temperature: float
) -> None:
    probs = next_probs(dice, PROMPT) ** (1 / temperature)
    counts = drawn_counts(dice, PROMPT, 4000, temperature=temperature)
    assert fits(counts, probs / probs.sum())
    assert not fits(counts, next_probs(dice, PROMPT))


@pytest.mark.parametrize("top_p", [0.4, 0.6, 0.9])
def test_top_p_keeps_the_smallest_set_that_reaches_it(dice: torch.nn.Module, top_p: float) -> None:
    probs = next_probs(dice, PROMPT)
    kept, total = np.zeros_like(probs), 0.0
    for token in np.argsort(-probs):
        if total >= top_p:
            break
        kept[token], total = probs[token], total + probs[token]
    assert 1 < (kept > 0).sum() < 11
    assert fits(drawn_counts(dice, PROMPT, 4000, top_p=top_p), kept / kept.sum())


def test_top_p_close_to_nothing_is_greedy(dice: torch.nn.Module) -> None:
    counts = drawn_counts(dice, PROMPT, 50, top_p=1e-6)
    assert counts.argmax() == next_probs(dice, PROMPT).argmax()
    assert counts.max() == 50


def test_temperature_comes_before_top_p(dice: torch.nn.Module) -> None:
    probs = next_probs(dice, PROMPT) ** (1 / 2.0)
    probs /= probs.sum()
    order = np.argsort(-probs)
    reached = int(np.searchsorted(np.cumsum(probs[order]), 0.6)) + 1
    kept = np.where(np.isin(np.arange(11), order[:reached]), probs, 0)
    assert fits(drawn_counts(dice, PROMPT, 4000, temperature=2.0, top_p=0.6), kept / kept.sum())


@pytest.mark.parametrize("top_k", [1, 3, 11, 500])
def test_top_k_keeps_the_k_likeliest(dice: torch.nn.Module, top_k: int) -> None:
    probs = next_probs(dice, PROMPT)
    kept = np.where(np.isin(np.arange(11), np.argsort(-probs)[:top_k]), probs, 0)
    counts = drawn_counts(dice, PROMPT, 2000, top_k=top_k)
    assert (counts > 0).sum() == min(top_k, 11)
    if top_k > 1:
        assert fits(counts, kept / kept.sum())


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(dice: torch.nn.Module) -> None:
    probs = next_probs(dice, PROMPT) ** (1 / 2.0)  # of the tempered distribution
    kept = np.where(probs >= 0.4 * probs.max(), probs, 0)
    assert 1 < (kept > 0).sum() < 11
    counts = drawn_counts(dice, PROMPT, 2000, temperature=2.0, min_p=0.4)
    assert fits(counts, kept / kept.sum())


WARPED = [
    {},
    {"top_k": 5},
    {"top_p": 0.5},
    {"min_p": 0.2},
    {"temperature": 0.6, "top_k": 40, "top_p": 0.8},
    {"temperature": 1.7, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 2.5, "top_p": 0.95, "min_p": 0.3},
    {"temperature": 0.8, "top_k": 1, "min_p": 0.9},
    {"top_k": 10_000, "top_p": 0.3},
]


def test_every_cut_equals_that_of_transformers_warpers() -> None:
    """Temperature, top-k, top-p, min-p in that order, each row with its own settings."""
    torch.manual_seed(0)
    logits = torch.randn(len(WARPED), 997) * 3
    logits[:, :4] = logits[:, 4:5]  # ties
    samplings = [Sampling(**settings) for settings in WARPED]  # type: ignore[arg-type]
    ours = drawn_from(logits.log_softmax(-1), samplings)
    for row, sampling in enumerate(samplings):
        warpers: list = [TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_k:
            warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            warpers.append(MinPLogitsWarper(sampling.min_p))
        scores = logits[row : row + 1]
        for warper in warpers:
            scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
        expected = scores.softmax(-1)[0]
        assert torch.equal(ours[row] > 0, expected > 0), WARPED[row]
        assert torch.allclose(ours[row] / ours[row].sum(), expected, atol=1e-6)
        alone = drawn_from(logits.log_softmax(-1)[row : row + 1], [sampling])[0]
        assert torch.allclose(ours[row], alone, rtol=1e-5, atol=0)


def test_log_probs_stay_the_models_own_whatever_was_cut(dice: torch.nn.Module) -> None:
    asked = request(PROMPT, 40, max_tokens=1, temperature=1.5, top_k=3, top_p=0.9, min_p=0.1)
    expected = np.log(next_probs(dice, PROMPT))
    for one in sample(dice, [asked], eos_ids=NEVER)[0]:
        assert one.logprobs[0] == pytest.approx(expected[one.token_ids[0]], abs=1e-5)


def test_the_second_token_follows_the_first(dice: torch.nn.Module) -> None:
    """Of the samples that drew the likeliest first token, the second is as the model says."""
    group = sample(dice, [request(PROMPT, 6000, max_tokens=2)], eos_ids=NEVER)[0]
    first = int(next_probs(dice, PROMPT).argmax())
    second = [one.token_ids[1] for one in group if one.token_ids[0] == first]
    assert len(second) > 1000
    assert fits(np.bincount(second, minlength=11), next_probs(dice, [*PROMPT, first]))


@pytest.mark.parametrize("temperature", [1e-46, 1e-9])
def test_a_temperature_of_nearly_nothing_is_greedy(backbone: Backbone, temperature: float) -> None:
    prompt = ids(20, 3)
    asked = [request(prompt, temperature=t, seed=1, max_tokens=6) for t in (temperature, 0.0)]
    found = sample(backbone.model, asked, eos_ids=NEVER)
    assert found[0][0].token_ids == found[1][0].token_ids


def test_a_stop_string_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="stop"):
        Sampling(stop=("",))
