"""All paths give what separate rows give, on four architectures, values and gradients alike.

The oracle is transformers' ordinary forward pass, one prompt and completion at a time, in eager
attention, with no padding and a full softmax.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    set_seed,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from trueup.models import kv_cache, shared_prompt
from trueup.models.checkpointing import checkpointed
from trueup.models.kv_cache import ATTENTION
from trueup.models.logprobs import Branches, completion_collisions, completion_logprobs, end_hidden
from trueup.models.shared_prompt import cheaper_path

SIZES = {"vocab_size": 97, "max_position_embeddings": 256}
LAYERS = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, **LAYERS, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(**SIZES, **LAYERS, num_key_value_heads=2),
    "gpt2": lambda: GPT2Config(vocab_size=97, n_positions=256, n_embd=32, n_layer=2, n_head=4),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, **LAYERS),
}
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


def make(family: str, attention: str) -> torch.nn.Module:
    set_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "wpe" not in name:
            torch.nn.init.normal_(parameter, std=0.15)  # the default is too flat to show an error
    return model.eval()


@pytest.fixture(params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> torch.nn.Module:
    return make(family, ATTENTION)


@pytest.fixture
def oracle(family: str) -> torch.nn.Module:
    return make(family, "eager")


def ids(size: int, seed: int) -> list[int]:
    return torch.randint(0, 97, (size,), generator=torch.Generator().manual_seed(seed)).tolist()


ROWS = [
    Branches(ids(11, 1), [ids(5, 2), ids(9, 3)]),
    Branches(ids(1, 4), [ids(1, 5), ids(1, 6), ids(17, 7)]),
    Branches(ids(30, 8), [ids(3, 9)]),
    Branches(ids(6, 10), [ids(4, 11)] * 2),
]
BRANCHES = [(list(r.prompt_ids), list(c)) for r in ROWS for c in r.completions]


def separate(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> Tensor:
    logprobs = torch.log_softmax(model(torch.tensor([[*prompt, *completion]])).logits[0], dim=-1)
    return torch.stack([logprobs[len(prompt) - 1 + i, t] for i, t in enumerate(completion)])


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def uneven(flat: Tensor) -> Tensor:
    """A loss that weighs every token differently, so that no error can cancel."""
    return (flat * torch.linspace(-1, 1, len(flat))).sum()


@pytest.mark.parametrize("path", ["tree", "cache", "alone"])
def test_every_path_gives_the_values_and_gradients_of_separate_rows(
    model: torch.nn.Module, oracle: torch.nn.Module, path: shared_prompt.Path
) -> None:
    shared = torch.cat([b for row in completion_logprobs(model, ROWS, path=path) for b in row])
    slow = torch.cat([separate(oracle, *branch) for branch in BRANCHES])
    assert float(slow.detach().std()) > 0.5
    assert torch.allclose(shared, slow, **TOLERANCE)
    ours, theirs = gradients(model, uneven(shared)), gradients(oracle, uneven(slow))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize("path", ["tree", "cache", "alone"])
def test_a_frozen_head_gives_the_rest_the_same_gradient(
    model: torch.nn.Module, oracle: torch.nn.Module, path: shared_prompt.Path
) -> None:
    """Its gradient is taken in the forward pass, another piece of code than a learning head's."""
    for one in (model, oracle):
        one.get_output_embeddings().requires_grad_(False)
    shared = torch.cat([b for row in completion_logprobs(model, ROWS, path=path) for b in row])
    slow = torch.cat([separate(oracle, *branch) for branch in BRANCHES])
    ours, theirs = gradients(model, uneven(shared)), gradients(oracle, uneven(slow))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=1e-4, rtol=1e-4), name


def test_checkpointing_changes_nothing_but_memory(model: torch.nn.Module) -> None:
    plain = torch.cat([b for row in completion_logprobs(model, ROWS, path="tree") for b in row])
    before = gradients(model, uneven(plain))
    calls = []
    hook = next(m for m in model.modules() if "MLP" in type(m).__name__).register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    with checkpointed(model):
        assert cheaper_path(model, ROWS) == "tree"
        again = torch.cat([b for row in completion_logprobs(model, ROWS) for b in row])
        after = gradients(model, uneven(again))
    hook.remove()
    assert len(calls) == 2, "the layer ran a second time in the backward pass"
    assert torch.equal(plain, again)
    for name, gradient in before.items():
        assert torch.allclose(after[name], gradient, atol=1e-6), name
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("path", ["tree", "cache", "alone"])
def test_collisions_are_the_log_of_the_sum_of_squares(
    model: torch.nn.Module, oracle: torch.nn.Module, path: shared_prompt.Path
) -> None:
    logprobs, collisions = completion_collisions(model, ROWS, path=path)
    assert torch.equal(logprobs[0][0], completion_logprobs(model, ROWS, path=path)[0][0])
    prompt, completion = BRANCHES[0]
    probs = torch.softmax(oracle(torch.tensor([[*prompt, *completion]])).logits[0], dim=-1)
    expected = (probs**2).sum(-1).log()[len(prompt) - 1 : -1]
    assert torch.allclose(collisions[0][0], expected, **TOLERANCE)
    assert not collisions[0][0].requires_grad


@pytest.mark.parametrize("path", ["tree", "cache", "alone"])
def test_the_state_on_the_last_token_is_a_separate_rows_last_state(
    model: torch.nn.Module, oracle: torch.nn.Module, path: shared_prompt.Path
) -> None:
    found = end_hidden(model, ROWS, path=path)
    assert found.shape == (len(BRANCHES), 32)
    network = shared_prompt.decoder(oracle)
    for state, (prompt, completion) in zip(found, BRANCHES, strict=True):
        alone = network(torch.tensor([[*prompt, *completion]])).last_hidden_state[0, -1]
        assert torch.allclose(state, alone, **TOLERANCE)


def test_other_attentions_send_long_completions_through_the_cache() -> None:
    """They compute the tree's whole square; ours only the parts that meet."""
    long_prompt = [Branches(ids(192, 1), [ids(64, 2), ids(64, 3)])]
    long_answers = [Branches(ids(64, 1), [ids(192, 2), ids(192, 3)])]
    for attention, paths in ((ATTENTION, ("tree", "tree")), ("sdpa", ("tree", "cache"))):
        model = make("llama", attention)
        model.config.hidden_size, model.config.intermediate_size = 576, 1536
        assert (cheaper_path(model, long_prompt), cheaper_path(model, long_answers)) == paths


def test_the_trees_attention_is_used_and_computes_less(
    family: str, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = kv_cache.tree_attention
    monkeypatch.setattr(
        kv_cache, "tree_attention", lambda *args: seen.append(len(args[3])) or real(*args)
    )
    completion_logprobs(model, ROWS, path="tree")
    assert seen == [len(ROWS)] * model.config.num_hidden_layers


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_mask_alone_gives_the_same_to_another_attention(
    family: str, model: torch.nn.Module, attention: str
) -> None:
    ours = completion_logprobs(model, ROWS, path="tree")
    theirs = completion_logprobs(make(family, attention), ROWS, path="tree")
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(torch.cat(one), torch.cat(other), **TOLERANCE)


def test_an_architecture_that_may_not_honour_the_mask_goes_through_the_cache() -> None:
    model = make("llama", ATTENTION)
    rows = [Branches(ids(192, 1), [ids(6, 2)])]
    assert cheaper_path(model, rows) == "tree"
    for said in ({"sliding_window": 198}, {"model_type": "unheard_of"}):
        other = make("llama", ATTENTION)
        for name, value in said.items():
            setattr(other.config, name, value)
        assert cheaper_path(other, rows) == "cache"


WINDOWED = {
    "mistral": lambda: MistralConfig(**SIZES, **LAYERS, num_key_value_heads=2, sliding_window=8),
    "qwen2": lambda: Qwen2Config(
        **SIZES,
        **LAYERS,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        **LAYERS,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


@pytest.mark.parametrize("with_checkpoints", [False, True])
@pytest.mark.parametrize("family", WINDOWED)
def test_a_layer_that_looks_back_over_a_window_counts_no_padding(
    monkeypatch: pytest.MonkeyPatch, family: str, with_checkpoints: bool
) -> None:
    """Prompts of 1 to 30 tokens in one batch, a window of 8."""
    monkeypatch.setitem(CONFIGS, family, WINDOWED[family])
    model, oracle = make(family, ATTENTION), make(family, "eager")
    with checkpointed(model, enabled=with_checkpoints):
        assert cheaper_path(model, ROWS) == "alone"
        found = torch.cat([b for row in completion_logprobs(model, ROWS) for b in row])
        ours = gradients(model, uneven(found))
    slow = torch.cat([separate(oracle, *branch) for branch in BRANCHES])
    assert torch.allclose(found, slow, **TOLERANCE)
    for name, gradient in gradients(oracle, uneven(slow)).items():
        assert torch.allclose(ours[name], gradient, atol=1e-4, rtol=1e-4), name


def test_what_fits_into_the_window_may_share_its_prompt() -> None:
    model = make("llama", ATTENTION)
    model.config.sliding_window = 40
    assert cheaper_path(model, [Branches(ids(30, 1), [ids(10, 2)])]) == "cache"
    assert cheaper_path(model, [Branches(ids(30, 1), [ids(11, 2)])]) == "alone"
    # padding counts: neither row is longer than the window, both together are
    rows = [Branches(ids(30, 1), [ids(2, 2)]), Branches(ids(3, 3), [ids(12, 4)])]
    assert cheaper_path(model, rows) == "alone"


def test_a_layer_of_an_unknown_kind_shares_nothing() -> None:
    model = make("llama", ATTENTION)
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert cheaper_path(model, [Branches(ids(3, 1), [ids(2, 2)])]) == "alone"


def test_a_checkpointed_layer_keeps_no_cache_so_nothing_goes_through_it() -> None:
    """transformers drops a checkpointed layer's cache and goes on: answers without their prompt."""
    model = make("llama", ATTENTION)
    plain = torch.cat([b for row in completion_logprobs(model, ROWS) for b in row])
    model.config.model_type = "unheard_of"
    assert cheaper_path(model, ROWS) == "cache"
    with checkpointed(model):
        assert cheaper_path(model, ROWS) == "alone"
        found = torch.cat([b for row in completion_logprobs(model, ROWS) for b in row])
        with torch.no_grad():
            assert cheaper_path(model, ROWS) == "alone"
    assert torch.allclose(found, plain, **TOLERANCE)
