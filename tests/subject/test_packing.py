"""Reordered weights: the same products, gradients where they are asked for, nothing else touched."""

import pytest
import torch
from torch import nn

from harness.subject import packing
from harness.subject.packing import PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


class Doubled(nn.Linear):
    """Stands for a quantised layer: a linear layer of a kind of its own."""


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(300, 500), nn.Linear(500, 300, bias=False), nn.Linear(4, 4), Doubled(400, 400)
    return nn.Sequential(*layers).to(dtype).requires_grad_(False)


def test_large_plain_layers_are_packed_and_hold_their_weights_once() -> None:
    layers = model()
    weights = [layer.weight for layer in layers]
    assert pack_linears(layers) == 2
    assert [type(layer) for layer in layers] == [PackedLinear, PackedLinear, nn.Linear, Doubled]
    for layer, weight in zip(layers[:2], weights, strict=False):
        assert torch.equal(layer.weight, weight)
        assert list(layer.parameters()) == ([layer.bias] if layer.bias is not None else [])
    for layer, weight in zip(layers[2:], weights[2:], strict=True):
        assert layer.weight is weight


def test_what_is_not_packed_lets_go_of_the_file() -> None:
    storage = torch.zeros(600 * 400)
    layers = nn.Sequential(nn.Embedding(600, 400), nn.Linear(400, 600, bias=False)).requires_grad_(False)
    layers[0].weight.data = layers[1].weight.data = storage.view(600, 400)
    pack_linears(layers)
    assert layers[0].weight.untyped_storage().data_ptr() != storage.untyped_storage().data_ptr()
    assert layers(torch.tensor([3])).shape == (1, 600)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 64, 200])
def test_products_are_the_same(dtype: torch.dtype, rows: int) -> None:
    plain, packed = model(dtype)[:2], model(dtype)[:2]
    pack_linears(packed)
    x = torch.randn(rows, 3, 300).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-5)


def test_gradients_flow() -> None:
    plain, packed = model()[:2], model()[:2]
    pack_linears(packed)
    gradients = []
    for layers in (plain, packed):
        x = torch.ones(2, 300, requires_grad=True)
        layers(x).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().sum() > 0


def test_float64_is_left_alone() -> None:
    assert pack_linears(model(torch.float64)) == 0


def test_little_memory_leaves_all_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MEMORY_SHARE", 0.0)
    layers = model()
    assert pack_linears(layers) == 0
    assert type(layers[0]) is nn.Linear
