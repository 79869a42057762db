"""What is asked of a vLLM server, and what must hold of its answers.

Each scenario runs twice: against the real server (`live.py`), which is when its answers are
recorded, and against the recording, with every other test. Prompts are given as tokens and models
are random with fixed seeds, so both runs ask the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from trueup.errors import UpstreamError
from trueup.models.backbone import Backbone
from trueup.models.chat import decode
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.sampler import Drawn, SampleRequest, sample
from trueup.models.tiny import save_tiny
from trueup.models.vllm import VLLMServer
from trueup.records import Sampling

__all__ = ["BASE", "SCENARIOS", "World", "make_world", "save_adapter", "save_model"]

BASE = "base"
TOLERANCE = 1e-4
"""Nats a token, both sides in float32: what the identity check allows."""
RANK = 8
LETTERS = "yRnW"  # the likeliest there; a request has at most 4 stop strings
PROMPTS = ([5, 80, 81, 90], list(range(60, 110)), [70] * 17 + [99])
NO_END = frozenset((256,))
"""A token that random models hardly draw."""


class World(NamedTuple):
    """A base model here, with two adapters; a server runs the same base."""

    url: str
    backbone: Backbone
    adapters: tuple[Path, Path]

    @property
    def server(self) -> VLLMServer:
        return VLLMServer(self.url, max_retries=0, timeout_s=120)


def save_model(folder: Path) -> Path:
    """A random model with heads of 64, as vLLM's attention on CPUs has them, whose answers are not
    noise: 1.8 million weights."""
    from safetensors.torch import load_file, save_file

    save_tiny(folder, seed=0, hidden_size=256, num_layers=2)
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if "proj" in name:
            weight *= 3  # the layers drown the last token, which the tied head would repeat
    tokens = weights["model.embed_tokens.weight"]
    tokens[-1] = 1.5 * tokens[65]  # the end token, whose row is zero: it is the pad token, too
    weights["model.norm.weight"] *= 8  # logits with a deviation of 2.6 in place of 0.3
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def save_adapter(backbone: Backbone, folder: Path, *, seed: int) -> Path:
    """One that changes what the model says."""
    backbone.new_adapter("made", rank=RANK, alpha=16.0, targets=["all-linear"], seed=seed)
    random = torch.Generator().manual_seed(seed)
    for name, one in backbone.model.named_parameters():
        if "lora_B.made" in name:
            one.data.copy_(0.05 * torch.randn(one.shape, generator=random))
    backbone.save_adapter("made", folder, card={})
    backbone.detach("made")
    return folder


def make_world(folder: Path, model: Path) -> World:
    """Without a server yet."""
    backbone = Backbone.load(model, device="cpu", dtype="float32")
    first = save_adapter(backbone, folder / "first", seed=1)
    second = save_adapter(backbone, folder / "second", seed=2)
    backbone.attach("first", first)
    backbone.attach("second", second)
    return World("", backbone, (first, second))


def gap(world: World, role: str | None, prompt: Sequence[int], drawn: Sequence[Drawn]) -> float:
    """The largest difference from the trainer's log-probs, in nats."""
    row = Branches(prompt, [one.token_ids for one in drawn])
    with torch.no_grad(), world.backbone.acting_as(role) as model:
        (ours,) = completion_logprobs(model, [row])
    return max(
        float((a - torch.tensor(b.logprobs)).abs().max()) for a, b in zip(ours, drawn, strict=True)
    )


def asked(prompt: Sequence[int], num_samples: int = 1, **sampling: object) -> SampleRequest:
    given = {"max_tokens": 16, "seed": 11} | sampling
    return SampleRequest(prompt, Sampling.model_validate(given), num_samples)


def draw(
    world: World,
    requests: Sequence[SampleRequest],
    model: str = BASE,
    *,
    eos_ids: frozenset[int] = NO_END,
    salt: str = "one",
) -> list[list[Drawn]]:
    return world.server.sample(model, requests, eos_ids=eos_ids, salt=salt)


def draws_have_the_trainers_logprobs(world: World) -> None:
    requests = [asked(prompt, 3) for prompt in PROMPTS]
    for request, group in zip(requests, draw(world, requests), strict=True):
        assert len(group) == 3
        assert len({tuple(one.token_ids) for one in group}) == 3, "samples of one prompt differ"
        assert all(len(one.token_ids) == 16 for one in group)
        assert {one.finish_reason for one in group} == {"length"}
        assert gap(world, None, request.prompt_ids, group) < TOLERANCE


def an_end_token_is_kept_with_its_logprob(world: World) -> None:
    ends = frozenset(range(60, 120))
    request = asked(PROMPTS[0], 6, max_tokens=12)
    (group,) = draw(world, [request], eos_ids=ends)
    ended = [one for one in group if one.finish_reason == "stop"]
    assert ended
    for one in group:
        assert not ends & {*one.token_ids[:-1]}
        assert (one.token_ids[-1] in ends) == (one.finish_reason == "stop")
    assert gap(world, None, request.prompt_ids, group) < TOLERANCE


def the_models_own_end_token_ends_only_where_asked(world: World) -> None:
    """The server knows `<|im_end|>` as the end; our request decides."""
    end = world.backbone.tokenizer.eos_token_id
    request = asked([6, 97, 114, 255], 8, max_tokens=24, seed=5)  # ends at once every third time
    (with_end,) = draw(world, [request], eos_ids=frozenset((end,)))
    (without,) = draw(world, [request], eos_ids=NO_END - {end})
    for cut, whole in zip(with_end, without, strict=True):
        assert len(whole.token_ids) == 24
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
        assert (cut.token_ids[-1] == end) == (cut.finish_reason == "stop")
    assert any(end in one.token_ids for one in without), "nothing was shown"


def a_stop_string_ends_with_its_tokens(world: World) -> None:
    request = asked([75, 221, 40, 0], 6, stop=[*LETTERS], max_tokens=12)
    (group,) = draw(world, [request])

    def is_in(token_ids: Sequence[int]) -> bool:
        return bool({*LETTERS} & {*decode(world.backbone.tokenizer, token_ids)})

    stopped = [one for one in group if is_in(one.token_ids)]
    assert len(stopped) > 1
    for one in group:
        assert not is_in(one.token_ids[:-1])
        ended = one.token_ids[-1] in NO_END
        assert (one.finish_reason == "stop") == (ended or one in stopped)
    assert gap(world, None, request.prompt_ids, group) < TOLERANCE


def greedy_answers_are_our_own(world: World) -> None:
    requests = [asked(prompt, 2, temperature=0) for prompt in PROMPTS]
    theirs = draw(world, requests)
    with world.backbone.acting_as(None) as model:
        ours = sample(model, requests, eos_ids=NO_END)
    for request, a, b in zip(requests, theirs, ours, strict=True):
        assert [one.token_ids for one in a] == [one.token_ids for one in b]
        assert gap(world, None, request.prompt_ids, a) < TOLERANCE


def what_cuts_the_distribution_leaves_the_logprobs_alone(world: World) -> None:
    cuts = [{"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.3}, {"temperature": 0.5}]
    requests = [asked(PROMPTS[1], 4, **cut) for cut in cuts]
    for cut, request, group in zip(cuts, requests, draw(world, requests), strict=True):
        assert gap(world, None, request.prompt_ids, group) < TOLERANCE, cut
    (whole,) = draw(world, [asked(PROMPTS[1], 4)])
    likely = [sum(sum(one.logprobs) for one in group) for group in draw(world, requests[:1])]
    assert likely[0] > sum(sum(one.logprobs) for one in whole)


def a_seed_says_what_is_drawn(world: World) -> None:
    (one,), (again,), (other,) = (
        draw(world, [asked(PROMPTS[2], 3, seed=seed)]) for seed in (21, 21, 2**40 + 1)
    )
    assert [x.token_ids for x in one] == [x.token_ids for x in again]
    assert [x.token_ids for x in one] != [x.token_ids for x in other]


def adapters_are_served_beside_the_base_and_replaced(world: World) -> None:
    server, request = world.server, asked(PROMPTS[1], 2)
    first, second = world.adapters

    def role_of(model: str, salt: str) -> str | None:
        """Which of our models the server's answers are of."""
        (group,) = draw(world, [request], model, salt=salt)
        roles = [r for r in (None, "first", "second") if gap(world, r, PROMPTS[1], group) < 1e-4]
        assert len(roles) == 1, "the answers are of no model, or of several"
        return roles[0]

    server.load_adapter("champion", first)
    server.load_adapter("candidate", second)
    assert server.models() == [BASE, "champion", "candidate"]
    assert role_of("champion", "first") == "first"
    assert role_of("candidate", "second") == "second"
    assert role_of(BASE, "base") is None
    server.load_adapter("champion", second)
    assert role_of("champion", "second again") == "second"
    server.load_adapter("champion", first)
    assert role_of("champion", "first again") == "first"
    server.unload_adapter("champion")
    with pytest.raises(UpstreamError, match="404"):
        draw(world, [request], "champion")
    server.unload_adapter("candidate")
    assert server.models() == [BASE]


def what_the_server_refuses_is_said(world: World) -> None:
    server = world.server
    with pytest.raises(UpstreamError, match=r"HTTP 404.*nobody.*base model"):
        draw(world, [asked(PROMPTS[0])], "nobody")
    with pytest.raises(UpstreamError, match=r"HTTP 400.*max-model-len"):
        draw(world, [asked([70] * 600)])
    with pytest.raises(UpstreamError, match=r"HTTP 404.*/nowhere/adapter.*same path"):
        server.load_adapter("lost", Path("/nowhere/adapter"))
    with pytest.raises(UpstreamError, match=r"HTTP 404.*cannot be found"):
        server.unload_adapter("lost")
    assert server.models() == [BASE]


SCENARIOS = {
    one.__name__: one
    for one in (
        draws_have_the_trainers_logprobs,
        an_end_token_is_kept_with_its_logprob,
        the_models_own_end_token_ends_only_where_asked,
        a_stop_string_ends_with_its_tokens,
        greedy_answers_are_our_own,
        what_cuts_the_distribution_leaves_the_logprobs_alone,
        a_seed_says_what_is_drawn,
        adapters_are_served_beside_the_base_and_replaced,
        what_the_server_refuses_is_said,
    )
}
