"""Logits in float32 from half-precision weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine_parts import network_of, one_thread  # noqa: F401
from torch import nn

from harness.subject.head import Float32Head, keep_logits_exact
from harness.subject.load import ModelConfig, load_model
from harness.subject.network import Network


@pytest.fixture(params=["bfloat16", "float16"])
def network(request: pytest.FixtureRequest, tiny_family_config: ModelConfig) -> Network:
    return network_of(load_model(dataclasses.replace(tiny_family_config, dtype=request.param)))


def test_logits_are_not_rounded_to_the_weights_precision(network: Network) -> None:
    h = torch.randn(40, network.layout.width, generator=torch.Generator().manual_seed(1)).to(network.dtype)
    logits = network.logits(h)
    exact = h.double() @ network.model.get_output_embeddings().weight.double().t()
    cap = getattr(network.model.config, "final_logit_softcapping", None)
    exact = exact if cap is None else torch.tanh(exact / cap) * cap
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits, logits.to(network.dtype).float())


def test_the_embedding_keeps_its_weights(network: Network) -> None:
    assert network.model.get_input_embeddings().weight.dtype == network.dtype
    assert isinstance(network.model.get_output_embeddings(), Float32Head)
    assert len(network.stop_mask()) == network.model.config.get_text_config().vocab_size


def test_biases_and_gradients_pass() -> None:
    plain = nn.Linear(6, 9).bfloat16().requires_grad_(False)
    head = Float32Head(plain)
    x = torch.randn(2, 3, 6).bfloat16().requires_grad_()
    head(x).sum().backward()
    torch.testing.assert_close(x.grad, plain.weight.sum(0).expand(2, 3, 6), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(head(x), nn.functional.linear(x.float(), plain.weight.float(), plain.bias.float()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_precisions_are_left_alone(dtype: str) -> None:
    model = load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype=dtype)).model
    before = model.get_output_embeddings()
    keep_logits_exact(model)
    assert model.get_output_embeddings() is before
