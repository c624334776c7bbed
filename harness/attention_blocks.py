"""Parts of transformer blocks as functions of their weights: norms, rotary positions, attention, gated MLPs.

Methods whose networks are built like a model's blocks compute with these. Weights come as a mapping by name, as an
artifact holds them, so that a network needs no modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Weights = Mapping[str, Tensor]


def linear(weights: Weights, name: str, x: Float[Tensor, "*shape I"]) -> Float[Tensor, "*shape O"]:
    """The linear layer of this name, with its bias if it has one."""
    return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def rms_norm(
    x: Float[Tensor, "*shape D"], weight: Float[Tensor, "D"], epsilon: float, offset: float = 0.0
) -> Float[Tensor, "*shape D"]:
    """``x`` at root mean square 1, times ``offset + weight``, computed in float32. Gemma's offset is 1, Llama's 0."""
    wide = x.float()
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (normal * (offset + weight.float())).to(x.dtype)


def rotated(
    x: Float[Tensor, "B T H E"], positions: Int[Tensor, "B T"], frequencies: Float[Tensor, "F"], scale: float = 1.0
) -> Float[Tensor, "B T H E"]:
    """Heads turned by their positions: dimension ``i`` with dimension ``i + E/2``, as Llama and Gemma pair them."""
    angles = positions[..., None, None].float() * frequencies
    cosine, sine = (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def attention(
    query: Float[Tensor, "B T H E"],
    key: Float[Tensor, "B W K E"],
    value: Float[Tensor, "B W K E"],
    visible: Bool[Tensor, "B #T W"],
    *,
    scale: float,
    softcap: float = 0.0,
) -> Float[Tensor, "B T O"]:
    """What each token's heads read, side by side; query heads share key heads in neighbouring groups.

    Args:
        query: of each token.
        key: of everything that may be looked at.
        value: the same.
        visible: what each token may look at. A token that sees nothing gets some finite value.
        scale: factor of the scores.
        softcap: scores stay between minus this and this; 0 leaves them as they are.
    """
    batch, length, heads, width = query.shape
    key_heads = key.shape[2]
    # The heads of a group become further query tokens, so that keys are not repeated in memory.
    grouped = query.view(batch, length, key_heads, heads // key_heads, width).permute(0, 2, 3, 1, 4)
    scores = grouped.flatten(2, 3) @ key.permute(0, 2, 3, 1) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap

    scores = scores.view(batch, key_heads, heads // key_heads, length, -1)
    hidden = ~visible[:, None, None]
    shares = torch.softmax(scores.float().masked_fill(hidden, torch.finfo(torch.float32).min), -1).to(value.dtype)
    read = shares.flatten(2, 3) @ value.transpose(1, 2)
    return read.view(batch, heads, length, width).transpose(1, 2).flatten(2)


def gated_mlp(weights: Weights, name: str, x: Float[Tensor, "*shape D"], activation: str) -> Float[Tensor, "*shape D"]:
    """``down(f(gate(x)) * up(x))``; ``f`` is "silu" (Llama) or "gelu_tanh" (Gemma)."""
    gate = linear(weights, f"{name}gate_proj", x)
    opened = functional.gelu(gate, approximate="tanh") if activation == "gelu_tanh" else functional.silu(gate)
    return linear(weights, f"{name}down_proj", opened * linear(weights, f"{name}up_proj", x))
