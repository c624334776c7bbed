"""What the engine computes is what transformers computes, or it is refused and said why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from engine_parts import network_of, one_thread  # noqa: F401
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness.subject.attention import IMPLEMENTATION
from harness.subject.fidelity import demand_fidelity, first_logits
from harness.subject.load import Loaded, ModelConfig, layout_of, load_model
from harness.subject.network import Network
from harness.subject.scorers import open_subject

SMALL: dict[str, Any] = {
    "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip


def foreign(kind: str, **options: Any) -> PreTrainedModel:
    """A small model of a family that the harness has no word for, with weights large enough to matter."""
    config = AutoConfig.for_model(kind, **{**SMALL, **options})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(0, 0.3)
    return model


def held(model: PreTrainedModel) -> Network:
    """The model as a run holds it."""
    path = "model.layers"
    config = ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64", blocks_path=path)
    loaded = load_model(dataclasses.replace(config, blocks_path=None))
    foreign = dataclasses.replace(loaded, model=model, layout=layout_of(model.config, path), config=config)
    return open_subject(foreign).network


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_every_family_agrees(tiny_family_config: ModelConfig, dtype: str) -> None:
    network = network_of(load_model(dataclasses.replace(tiny_family_config, dtype=dtype)))
    agreement = first_logits(network)
    assert agreement.holds, str(agreement)
    assert agreement.difference < 1e-5 or dtype != "float64"
    assert network.model.config._attn_implementation == IMPLEMENTATION
    assert str(agreement).startswith("first logits as transformers computes them")


@pytest.mark.real
def test_the_default_model_agrees(default_model: Loaded) -> None:
    assert first_logits(network_of(default_model)).holds


def test_a_difference_is_found_and_said(tiny_family_config: ModelConfig) -> None:
    class Louder(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head, self.out_features = head, head.out_features

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return self.head(h) * (1.01 if h.dim() == 2 else 1.0)  # transformers asks for batches, the engine for rows

    network = network_of(load_model(tiny_family_config))
    network.model.set_output_embeddings(Louder(network.model.get_output_embeddings()))
    with pytest.raises(ValueError, match=r"cannot run this \w+ model: first logits NOT as transformers"):
        demand_fidelity(network)


class TestForeignFamilies:
    @pytest.mark.parametrize("kind", ["olmo", "phi3", "starcoder2"])
    def test_those_that_work_agree(self, kind: str) -> None:
        assert first_logits(held(foreign(kind))).difference < 1e-5

    def test_attention_sinks_are_refused(self) -> None:
        model = foreign("gpt_oss", num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"] * 2)
        with pytest.raises(ValueError, match="gpt_oss gives its attention 's_aux', which the harness does not"):
            held(model)

    def test_a_mask_of_the_models_own_is_refused(self) -> None:
        with pytest.raises(ValueError, match="doge makes an attention mask of its own"):
            held(foreign("doge"))

    def test_an_architecture_that_drops_the_plan_is_refused_and_told_so(self) -> None:
        with pytest.raises(ValueError, match=r"stablelm.*do not hand keyword arguments on"):
            held(foreign("stablelm"))

    @pytest.mark.parametrize(
        ("kind", "options"), [("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 3.0})]
    )
    def test_scaled_logits_are_refused(self, kind: str, options: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=f"cannot run this {kind} model"):
            held(foreign(kind, **options))
