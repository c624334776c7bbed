"""The make of a loaded model, for methods whose networks are built like its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harness.model_view import Architecture
from harness.subject.network import Network
from harness.subject.offload import refuse_absent

KNOWN = ("llama", "mistral", "qwen2", "gemma2")
"""Families of blocks with RMS norms, rotary positions and a gated MLP, and no norms of queries and keys."""


def architecture_of(network: Network) -> Architecture:
    """Sizes, rotary frequencies and weights of a model.

    Raises:
        ValueError: its blocks are of another make.
    """
    config = network.model.config.get_text_config()
    if config.model_type not in KNOWN:
        raise ValueError(
            f"this method's network is built like the model's blocks, which must be of the family {', '.join(KNOWN)}; "
            f"this model is of the family {config.model_type}"
        )

    # Gemma 2 differs in norms, activation, attention scale and soft cap; all else is Llama's.
    gemma = config.model_type == "gemma2"
    rotary, width = network.model.base_model.rotary_emb, network.layout.head_width
    return Architecture(
        num_heads=config.num_attention_heads,
        num_key_heads=config.num_key_value_heads,
        head_width=width,
        epsilon=config.rms_norm_eps,
        norm_offset=1.0 if gemma else 0.0,
        activation="gelu_tanh" if gemma else "silu",
        softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        attention_scale=(config.query_pre_attn_scalar if gemma else width) ** -0.5,
        rotary_scale=float(rotary.attention_scaling),
        frequencies=rotary.inv_freq.detach().float().clone(),
        final_norm=network.model.base_model.norm.weight.detach().float().clone(),
        block=partial(_weights, network),
    )


def _weights(network: Network, layer: int) -> Mapping[str, Tensor]:
    """Copies in float32, named after the part of the block and the module in it, e.g. ``attention.q_proj.weight``."""
    block, parts = network.blocks.modules[layer], network.blocks.family.parts
    weights: dict[str, Tensor] = {}
    for part in ("attention", "mlp", "attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm"):
        if part in parts:
            weights |= _named(part, block.get_submodule(parts[part]))
    return weights


def _named(part: str, module: nn.Module) -> dict[str, Tensor]:
    """Weights and biases in a module; packed layers have theirs as a property, so attributes are asked for."""
    weights: dict[str, Tensor] = {}
    for path, child in module.named_modules():
        for name in ("weight", "bias"):
            value: Any = getattr(child, name, None)
            if not isinstance(value, Tensor):
                continue
            if not value.is_floating_point():
                raise ValueError(f"the weights of {part} are quantised ({value.dtype}); load the model without it")
            refuse_absent(value, f"the weights of {part}")
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            weights[".".join(filter(None, (part, path, name)))] = whole.detach().float().clone()
    return weights
