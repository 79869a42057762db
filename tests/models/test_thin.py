"""Products of few rows: the same as torch's own, wherever they are turned round."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trueup.models import thin
from trueup.models.backbone import Backbone


@pytest.mark.parametrize("shape", [(1, 24), (3, 1, 24), (5, 7, 24), (128, 24), (129, 24), (0, 24)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_turned_product_is_the_product(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(40, 24)
    bias = torch.randn(40) if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.inference_mode():
        out = thin.linear(x, weight, bias)
    assert out.shape == (*shape[:-1], 40) and out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_column_of_a_larger_tensor_is_read_as_it_is() -> None:
    whole, weight = torch.randn(4, 6, 24), torch.randn(40, 24)
    with torch.inference_mode():
        out = thin.linear(whole[:, -1], weight)
    torch.testing.assert_close(out, whole[:, -1] @ weight.T)


@pytest.mark.parametrize("rows", [4, 400])
def test_gradients_and_other_formats_go_torchs_own_way(rows: int) -> None:
    layer = nn.Linear(24, 40)
    model = nn.Sequential(layer)
    thin.turn_thin_products(model)
    assert type(model[0]) is thin.ThinLinear and thin.is_plain(model[0])
    x = torch.randn(rows, 24)
    model(x).square().sum().backward()
    assert layer.weight.grad is not None
    ours = layer.weight.grad.clone()
    layer.weight.grad = None
    F.linear(x, layer.weight, layer.bias).square().sum().backward()
    assert torch.equal(ours, layer.weight.grad)
    with torch.inference_mode():
        half = thin.linear(x.bfloat16(), layer.weight.bfloat16())
    assert half.dtype == torch.bfloat16


def test_only_plain_layers_are_turned() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Own(4, 4))
    names = list(model.state_dict())
    thin.turn_thin_products(model)
    assert [type(one) for one in model] == [thin.ThinLinear, Own]
    assert not thin.is_plain(model[1]) and list(model.state_dict()) == names


def test_a_loaded_model_has_them_under_its_adapters_too(tiny_model: Path) -> None:
    backbone = Backbone.load(tiny_model)
    plain = [m for m in backbone.model.modules() if type(m) is nn.Linear]
    assert not plain
    backbone.new_adapter("policy", rank=2, alpha=4.0, targets=["all-linear"], seed=0)
    bases = [m.base_layer for m in backbone.model.modules() if hasattr(m, "base_layer")]
    assert bases and all(type(m) is thin.ThinLinear for m in bases)
    ids = torch.arange(12).view(3, 4)
    with torch.inference_mode():
        alone = backbone.model(ids).logits
    together = backbone.model(ids).logits  # with gradients: nothing is turned
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
