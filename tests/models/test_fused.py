"""LoRA layers, norms and the tied matrix as single functions, beside what they stand for."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from trueup.models import lora, norm, tied
from trueup.models.backbone import Backbone
from trueup.models.head import HEAD_CHUNK, token_scores

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


class Two(nn.Module):
    """Two layers, one with a bias, that peft can wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(12, 20)
        self.narrow = nn.Linear(20, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.tanh(self.wide(x)))  # type: ignore[no-any-return]


def adapted(seed: int = 0, **settings: Any) -> Any:
    """A peft model whose adapters do something."""
    torch.manual_seed(seed)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["wide", "narrow"], **settings)
    model: Any = get_peft_model(Two(), config)  # type: ignore[arg-type]
    model.add_adapter("other", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def both(model: Any) -> tuple[Any, Any]:
    fused = copy.deepcopy(model)
    lora.fuse(fused)
    return model, fused


def passed(model: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What comes out, and every gradient."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert x.grad is not None
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), found | {"x": x.grad}


def assert_same(plain: Any, fused: Any, x: Tensor) -> None:
    (out, grads), (fused_out, fused_grads) = passed(plain, x), passed(fused, x)
    torch.testing.assert_close(fused_out, out, **TOLERANCE)
    assert fused_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(fused_grads[name], grad, **TOLERANCE, msg=name)


# --- LoRA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12,), (4, 12), (2, 3, 12)])
def test_a_fused_lora_layer_is_pefts_own(shape: tuple[int, ...]) -> None:
    plain, fused = both(adapted())
    kinds = [type(m) for m in fused.modules()]
    assert kinds.count(lora.FusedLinear) == 2
    for role in ("default", "other"):
        for model in (plain, fused):
            model.set_adapter(role)
        assert_same(plain, fused, torch.randn(shape))


def test_a_fused_layer_computes_without_pefts_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above would pass as well if every call fell back."""
    _, fused = both(adapted())
    monkeypatch.setattr(lora.Linear, "forward", None)
    assert fused(torch.randn(2, 12)).shape == (2, 7)


def test_a_fresh_adapter_changes_nothing_to_the_bit() -> None:
    torch.manual_seed(0)
    base = Two()
    x = torch.randn(5, 12)
    before = base(x)
    config = LoraConfig(r=3, target_modules=["wide", "narrow"])
    model: Any = get_peft_model(base, config)  # type: ignore[arg-type]
    lora.fuse(model)
    assert torch.equal(model(x), before)


def test_switched_off_it_is_the_base() -> None:
    plain, fused = both(adapted())
    x = torch.randn(4, 12)
    with fused.disable_adapter():
        assert torch.equal(fused(x), _base(plain, x))


def _base(model: Any, x: Tensor) -> Tensor:
    with model.disable_adapter():
        return model(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "what", ["dropout", "dora", "base_learns", "two_at_once", "merged", "half_base"]
)
def test_what_is_not_plain_computes_as_peft_does(what: str) -> None:
    settings: dict[str, Any] = {"dropout": {"lora_dropout": 0.4}, "dora": {"use_dora": True}}.get(
        what, {}
    )
    plain, fused = both(adapted(**settings))
    for model in (plain, fused):
        if what == "base_learns":
            for parameter in model.parameters():
                parameter.requires_grad_(True)
        if what == "two_at_once":
            model.base_model.set_adapter(["default", "other"])
        if what == "merged":
            model.merge_adapter(["default"])
        if what == "half_base":
            for name, parameter in model.named_parameters():
                if "lora_" not in name:
                    parameter.data = parameter.data.bfloat16()
        if what == "dropout":
            model.train()
    x = torch.randn(6, 12)
    x = x.bfloat16() if what == "half_base" else x
    outs = []
    for model in (plain, fused):
        torch.manual_seed(1)
        outs.append(passed(model, x))
    assert torch.equal(outs[0][0], outs[1][0])
    assert all(torch.equal(outs[1][1][name], grad) for name, grad in outs[0][1].items())


def test_dropout_that_is_switched_off_is_fused() -> None:
    plain, fused = both(adapted(lora_dropout=0.4))
    assert_same(plain, fused, torch.randn(3, 12))


def test_an_adapter_that_joins_later_and_one_that_is_merged_away() -> None:
    plain, fused = both(adapted())
    for model in (plain, fused):
        model.delete_adapter("other")
        torch.manual_seed(7)
        model.add_adapter("third", LoraConfig(r=2, target_modules="all-linear"))
        model.set_adapter("third")
    lora.fuse(fused)
    assert_same(plain, fused, torch.randn(3, 12))
    x = torch.randn(2, 12)
    torch.testing.assert_close(fused.merge_and_unload()(x), plain.merge_and_unload()(x))


# --- norms ----------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
}
FAMILIES = [
    LlamaConfig(**SMALL, tie_word_embeddings=True),
    MistralConfig(**SMALL),
    Qwen2Config(**SMALL),
    Qwen3Config(**SMALL, head_dim=8),
]


def random_model(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@pytest.mark.parametrize("config", FAMILIES, ids=lambda one: one.model_type)
def test_fused_norms_give_the_model_its_own_logits_and_gradients(config: PreTrainedConfig) -> None:
    plain = random_model(config)
    fused = copy.deepcopy(plain)
    norm.fuse_norms(fused)
    changed = [type(m).__name__ for m in fused.modules()].count("Fused")
    per_layer = 4 if config.model_type == "qwen3" else 2
    assert changed == 2 * per_layer + 1
    ids = torch.randint(3, 64, (3, 9))
    found = []
    for model in (plain, fused):
        logits = model(ids).logits
        logits.sin().sum().backward()
        found.append((logits.detach(), {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], **TOLERANCE)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, atol=1e-4, rtol=1e-4, msg=name)


def test_a_norms_gradient_is_the_numerical_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *of: norm._RMSNorm.apply(*of, 1e-3), (x, weight))


def test_a_family_with_another_norm_keeps_it() -> None:
    model = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    )
    before = [type(m) for m in model.modules()]
    norm.fuse_norms(model)
    assert [type(m) for m in model.modules()] == before


# --- the head, and the matrix it shares with the embedding ----------------------------------------


def scored_slowly(model: Any, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, all logits at once."""
    head = model.get_output_embeddings()
    bias = None if head.bias is None else head.bias.double()
    logprobs = nn.functional.linear(hidden.double(), head.weight.double(), bias).log_softmax(-1)
    collisions = logprobs.exp().square().sum(-1).log()
    return logprobs.gather(1, targets[:, None])[:, 0], collisions


@pytest.mark.parametrize("learns", ["hidden", "head", "both"])
@pytest.mark.parametrize("size", [1, 7, HEAD_CHUNK, HEAD_CHUNK + 1, 3 * HEAD_CHUNK - 5])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_chunked_head_is_one_softmax_in_float64(learns: str, size: int, has_bias: bool) -> None:
    model = random_model(MistralConfig(**SMALL))
    if has_bias:
        model.lm_head.bias = nn.Parameter(torch.randn(64))
    head = model.get_output_embeddings()
    nn.init.normal_(head.weight, std=2.0)
    for parameter in head.parameters():
        parameter.requires_grad_(learns != "hidden")
    hidden = torch.randn(size, 32).requires_grad_(learns != "head")
    targets, pull = torch.randint(0, 64, (size,)), torch.randn(size)
    found = token_scores(model, hidden, targets, with_collisions=True)
    expected, collisions = scored_slowly(model, hidden, targets)
    torch.testing.assert_close(found.logprobs, expected.float(), **TOLERANCE)
    torch.testing.assert_close(found.collisions, collisions.float(), **TOLERANCE)
    learning = [one for one in (hidden, *head.parameters()) if one.requires_grad]
    ours = torch.autograd.grad(found.logprobs @ pull, learning)
    slow = torch.autograd.grad(expected @ pull.double(), learning)
    for one, other in zip(ours, slow, strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-4, rtol=1e-4)


def test_a_token_of_no_probability_has_a_finite_log_prob() -> None:
    """e^-300 is zero in float32; its logarithm is not looked for."""
    model = random_model(MistralConfig(**SMALL))
    nn.init.zeros_(model.lm_head.weight)
    with torch.no_grad():
        model.lm_head.weight[5] = 1.0
    hidden = torch.full((2, 32), 300 / 32).requires_grad_()
    found = token_scores(model, hidden, torch.tensor([5, 6]))
    assert found.logprobs.tolist() == pytest.approx([0.0, -300.0], abs=1e-4)
    found.logprobs.sum().backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_scores_between_forward_and_backward_do_not_spoil_the_gradient() -> None:
    """Both use the room for the logits."""
    model = random_model(MistralConfig(**SMALL))
    hidden, targets = torch.randn(9, 32), torch.randint(0, 64, (9,))
    weight = model.lm_head.weight
    alone = torch.autograd.grad(token_scores(model, hidden, targets).logprobs.sum(), weight)[0]
    first = token_scores(model, hidden, targets).logprobs.sum()
    with torch.no_grad():
        token_scores(model, torch.randn(30, 32), torch.randint(0, 64, (30,)))
    second = token_scores(model, hidden * 2, targets).logprobs.sum()
    torch.testing.assert_close(torch.autograd.grad(first, weight)[0], alone)
    doubled = torch.autograd.grad(second, weight)[0]
    assert not torch.allclose(doubled, alone)


def test_no_tokens_have_no_scores() -> None:
    model = random_model(MistralConfig(**SMALL))
    found = token_scores(model, torch.zeros(0, 32), torch.zeros(0, dtype=torch.long))
    assert found.logprobs.shape == (0,) and found.collisions is None


def test_a_tied_matrix_gets_both_its_gradients_in_place() -> None:
    """Two passes of one step; the padding row learns from the head alone, as in torch."""
    plain = random_model(FAMILIES[0])
    marked = copy.deepcopy(plain)
    tied.add_in_place(marked)
    ids = torch.randint(0, 64, (2, 7))
    ids[0, 2] = SMALL["pad_token_id"]
    for model in (plain, marked):
        for row in ids:
            hidden = model.model(row[None]).last_hidden_state[0]
            token_scores(model, hidden[:-1], row[1:]).logprobs.sum().backward()
    for (name, one), other in zip(plain.named_parameters(), marked.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_a_tied_matrix_under_autocast_gets_both_too() -> None:
    """There the head goes through autograd, and only the embedding adds in place."""
    found = []
    for marks in (False, True):
        model = random_model(FAMILIES[0])
        if marks:
            tied.add_in_place(model)
        row = torch.arange(3, 12)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(row[None]).last_hidden_state[0]
            token_scores(model, hidden[:-1], row[1:]).logprobs.sum().backward()
        found.append(model.get_output_embeddings().weight.grad)
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-3)


def test_an_untied_head_is_left_alone() -> None:
    model = random_model(MistralConfig(**SMALL))
    tied.add_in_place(model)
    assert not tied.is_marked(model.lm_head.weight)
    assert type(model.get_input_embeddings()) is nn.Embedding


def test_a_loaded_model_has_them(tiny_model: Path) -> None:
    backbone = Backbone.load(tiny_model)
    assert "Fused" in {type(m).__name__ for m in backbone.model.modules()}
    backbone.new_adapter("policy", rank=2, alpha=4.0, targets=["all-linear"], seed=0)
    layers = [m for m in backbone.model.modules() if isinstance(m, lora.Linear)]
    assert layers and all(type(m) is lora.FusedLinear for m in layers)
