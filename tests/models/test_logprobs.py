"""Log-probs with shared prompts equal plain separate rows, values and gradients alike.

The oracle is the ordinary forward pass of transformers, one prompt and completion at a time, with
no padding and a full softmax.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from trueup.models.backbone import Backbone
from trueup.models.head import HEAD_CHUNK
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.tiny import save_tiny

TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("random") / "model", seed=3, hidden_size=32)


@pytest.fixture
def model(folder: Path) -> LlamaForCausalLM:
    return Backbone.load(folder).model


@pytest.fixture(scope="module")
def oracle(folder: Path) -> LlamaForCausalLM:
    """The same weights as anybody would load them."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def ids(size: int, seed: int) -> list[int]:
    return torch.randint(0, 250, (size,), generator=torch.Generator().manual_seed(seed)).tolist()


def separate(model: LlamaForCausalLM, prompt: list[int], completion: list[int]) -> Tensor:
    """The slow version: one row, every logit."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0]
    logprobs = torch.log_softmax(logits, dim=-1)
    return torch.stack(
        [logprobs[len(prompt) - 1 + at, token] for at, token in enumerate(completion)]
    )


ROWS = [
    Branches(ids(11, 1), [ids(5, 2), ids(9, 3)]),
    Branches(ids(1, 4), [ids(1, 5), ids(1, 6), ids(17, 7)]),
    Branches(ids(30, 8), [ids(3, 9)]),
    Branches(ids(6, 10), [ids(4, 11)] * 2),
]


def test_a_shared_prompt_gives_the_values_of_separate_rows(
    model: LlamaForCausalLM, oracle: LlamaForCausalLM
) -> None:
    found = completion_logprobs(model, ROWS)
    assert [[len(branch) for branch in row] for row in found] == [
        [len(c) for c in row.completions] for row in ROWS
    ]
    for row, branches in zip(ROWS, found, strict=True):
        for completion, branch in zip(row.completions, branches, strict=True):
            expected = separate(oracle, list(row.prompt_ids), list(completion))
            assert torch.allclose(branch, expected, **TOLERANCE)


def gradients(model: LlamaForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_shared_prompt_gives_the_gradients_of_separate_rows(
    model: LlamaForCausalLM, oracle: LlamaForCausalLM
) -> None:
    """Of a loss that weighs every token differently, so that no error can cancel."""
    found = completion_logprobs(model, ROWS)
    flat = torch.cat([branch for row in found for branch in row])
    weights = torch.linspace(-1, 1, len(flat))
    shared = gradients(model, (flat * weights).sum())
    slow = torch.cat(
        [separate(oracle, list(r.prompt_ids), list(c)) for r in ROWS for c in r.completions]
    )
    apart = gradients(oracle, (slow * weights).sum())
    assert shared.keys() == apart.keys() and len(shared) > 10
    for name, gradient in apart.items():
        assert torch.allclose(shared[name], gradient, **TOLERANCE), name


def test_branches_do_not_see_each_other(model: LlamaForCausalLM) -> None:
    prompt, one, two = ids(8, 20), ids(6, 21), ids(12, 22)
    alone = completion_logprobs(model, [Branches(prompt, [one])])[0][0]
    for order in ([one, two], [two, one], [one, one, two]):
        found = completion_logprobs(model, [Branches(prompt, order)])[0]
        assert torch.allclose(found[order.index(one)], alone, **TOLERANCE)


def test_longer_company_and_its_padding_change_nothing(model: LlamaForCausalLM) -> None:
    alone = completion_logprobs(model, ROWS[:1])[0]
    company = completion_logprobs(model, [Branches(ids(90, 30), [ids(60, 31)]), ROWS[0]])[1]
    for before, after in zip(alone, company, strict=True):
        assert torch.allclose(before, after, **TOLERANCE)


def test_padding_adds_nothing_to_the_gradient(model: LlamaForCausalLM) -> None:
    long = Branches(ids(90, 30), [ids(60, 31)])
    alone = gradients(model, torch.cat(completion_logprobs(model, ROWS[:1])[0]).sum())
    beside = completion_logprobs(model, [long, ROWS[0]])[1]
    for name, gradient in gradients(model, torch.cat(beside).sum()).items():
        assert torch.allclose(gradient, alone[name], **TOLERANCE), name


@pytest.mark.parametrize("size", [HEAD_CHUNK - 1, HEAD_CHUNK, HEAD_CHUNK + 1, 2 * HEAD_CHUNK + 7])
def test_the_chunks_of_the_head_leave_no_seam(
    model: LlamaForCausalLM, oracle: LlamaForCausalLM, size: int
) -> None:
    prompt, completion = ids(5, 40), ids(size, 41)
    with torch.no_grad():
        found = completion_logprobs(model, [Branches(prompt, [completion])])[0][0]
        assert torch.allclose(found, separate(oracle, prompt, completion), **TOLERANCE)


def test_the_prompt_carries_no_loss(model: LlamaForCausalLM) -> None:
    """Only completion tokens come back: as many numbers as they have tokens, and all below 0."""
    flat = torch.cat([branch for row in completion_logprobs(model, ROWS) for branch in row])
    assert len(flat) == sum(len(c) for row in ROWS for c in row.completions)
    assert bool((flat < 0).all())


def test_a_completion_without_tokens_has_no_log_probs_and_moves_nobody_elses(
    model: LlamaForCausalLM,
) -> None:
    whole = completion_logprobs(model, [Branches(ids(8, 50), [ids(4, 51), ids(3, 52)])])[0]
    found = completion_logprobs(model, [Branches(ids(8, 50), [ids(4, 51), [], ids(3, 52)])])[0]
    assert [len(branch) for branch in found] == [4, 0, 3]
    assert torch.allclose(found[0], whole[0], **TOLERANCE)
    assert torch.allclose(found[2], whole[1], **TOLERANCE)


def test_it_is_the_same_through_an_adapter(
    model: LlamaForCausalLM, folder: Path, oracle: LlamaForCausalLM
) -> None:
    """Looking through peft's wrapper leaves the adapter's layers in, and only those learn."""
    backbone = Backbone.load(folder)
    backbone.new_adapter("policy", rank=2, alpha=4.0, targets=["all-linear"], seed=0)
    with backbone.acting_as("policy") as acting:
        for name, parameter in acting.named_parameters():
            parameter.requires_grad_(".policy." in name)
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        found = completion_logprobs(acting, ROWS[:1])[0]
        logits = acting(torch.tensor([[*ROWS[0].prompt_ids, *ROWS[0].completions[0]]])).logits[0]
        learned = gradients(acting, torch.cat(found).sum())
    prompt, completion = ROWS[0].prompt_ids, ROWS[0].completions[0]
    plain = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    expected = plain.gather(1, torch.tensor(completion)[:, None])[:, 0]
    assert torch.allclose(found[0], expected, **TOLERANCE)
    assert not torch.allclose(found[0], separate(oracle, list(prompt), list(completion)), atol=0.01)
    assert learned and all("lora_" in name for name in learned)
