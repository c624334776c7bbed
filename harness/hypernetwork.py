"""A network that makes a steering vector of a concept's words and the prompt's states (HyperSteer).

Its layers are Gemma-2's with cross-attention between self-attention and MLP, whatever model is steered. Weights keep
the names of the authors' code: ``layers.0.cross_attention.q_proj.weight``, and so on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.attention_blocks import attention, gated_mlp, linear, rms_norm, rotated
from harness.steering import Artifact, Carry, Edit, Probe, RowData, Where, shared

FIRST_SPREAD = 0.02
"""Standard deviation of fresh weights."""
_ROTARY_BASE = 10000.0
_EPSILON = 1e-6
_VECTOR = "hypersteer/vector"
"""Where the probe leaves the rows' vectors for the edit."""


@dataclass(frozen=True)
class NetworkShape:
    """All of a hypernetwork but its weights.

    Args:
        num_layers: layers, each with self-attention, cross-attention and MLP.
        num_heads: query heads.
        num_key_heads: key heads, a divisor of these.
        head_width: an even number.
        softcap: bound of attention scores; 0 for none.
        attention_scale: factor of attention scores.
    """

    num_layers: int
    num_heads: int
    num_key_heads: int
    head_width: int
    softcap: float
    attention_scale: float


@dataclass(frozen=True, eq=False)
class Hypernetwork(RowData):
    """Concept and prompt in, steering vector out; the same for all rows."""

    weights: Mapping[str, Tensor] = shared()
    shape: NetworkShape = shared()

    @classmethod
    def of(cls, artifact: Artifact) -> Hypernetwork:
        """The network that `tensors` was made of."""
        shape = NetworkShape(**json.loads(bytes(artifact["shape"].tolist())))
        return cls({name[len("net.") :]: value for name, value in artifact.items() if name.startswith("net.")}, shape)

    def tensors(self) -> Artifact:
        """All of it, to be saved."""
        shape = torch.tensor(list(json.dumps(dataclasses.asdict(self.shape)).encode()), dtype=torch.uint8)
        return {**{f"net.{name}": value.detach() for name, value in self.weights.items()}, "shape": shape}

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.weights["regression_head.weight"].dtype

    def states(
        self,
        concept: Float[Tensor, "B C D"],
        positions: Int[Tensor, "B C"],
        visible: Bool[Tensor, "B C C"],
        prompt: Float[Tensor, "B P D"],
        prompt_visible: Bool[Tensor, "B P"],
    ) -> Float[Tensor, "B C D"]:
        """States of the concept's tokens behind the last layer, which no norm follows.

        Args:
            concept: embeddings of its tokens, at root mean square 1 or so.
            positions: of these tokens.
            visible: which of them each may look at.
            prompt: states of the prompt's tokens.
            prompt_visible: which of them are there.
        """
        x, prompt = concept.to(self.dtype), prompt.to(self.dtype)
        for number in range(self.shape.num_layers):
            layer = f"layers.{number}"
            normal = self._norm(f"{layer}.input_layernorm", x)
            read = self._attend(f"{layer}.self_attn", normal, normal, positions, visible, turned=True)
            x = x + self._norm(f"{layer}.post_attention_layernorm", read)

            normal = self._norm(f"{layer}.pre_cross_attention_layernorm", x)
            there = prompt_visible[:, None]
            read = self._attend(f"{layer}.cross_attention", normal, prompt, positions, there, turned=False)
            x = x + self._norm(f"{layer}.post_cross_attention_layernorm", read)

            normal = self._norm(f"{layer}.pre_feedforward_layernorm", x)
            inside = gated_mlp(self.weights, f"{layer}.mlp.", normal, "gelu_tanh")
            x = x + self._norm(f"{layer}.post_feedforward_layernorm", inside)
        return x

    def vector(
        self,
        concept: Float[Tensor, "B C D"],
        lengths: Int[Tensor, "B"],
        prompt: Float[Tensor, "B P D"],
        prompt_visible: Bool[Tensor, "B P"],
    ) -> Float[Tensor, "B D"]:
        """The steering vector of each row, read off its concept's last token."""
        places = torch.arange(concept.shape[1], device=concept.device)
        visible = (places <= places[:, None]) & (places < lengths[:, None, None])
        x = self.states(concept, places.expand(concept.shape[:2]), visible, prompt, prompt_visible)
        return self.head(x[torch.arange(len(x), device=x.device), lengths - 1])

    def head(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The vector that a last token's state stands for."""
        return linear(self.weights, "regression_head", x)

    def _attend(
        self,
        name: str,
        x: Float[Tensor, "B C D"],
        source: Float[Tensor, "B W D"],
        positions: Int[Tensor, "B C"],
        visible: Bool[Tensor, "B #C W"],
        *,
        turned: bool,
    ) -> Float[Tensor, "B C D"]:
        """Attention to ``source``; queries are turned by their positions, keys only where they are the same tokens."""
        width = self.shape.head_width
        frequencies = _ROTARY_BASE ** (-torch.arange(0, width, 2, device=x.device).float() / width)
        query = rotated(linear(self.weights, f"{name}.q_proj", x).unflatten(-1, (-1, width)), positions, frequencies)
        key, value = (linear(self.weights, f"{name}.{kind}_proj", source).unflatten(-1, (-1, width)) for kind in "kv")
        if turned:
            key = rotated(key, positions, frequencies)
        scale, softcap = self.shape.attention_scale, self.shape.softcap
        return linear(
            self.weights, f"{name}.o_proj", attention(query, key, value, visible, scale=scale, softcap=softcap)
        )

    def _norm(self, name: str, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return rms_norm(x, self.weights[f"{name}.weight"], _EPSILON, offset=1.0)


@dataclass(frozen=True, eq=False)
class ReadPrompt(Probe):
    """Makes each row's vector of its concept and of the prompt's states, in the pass that holds the prompt.

    Args:
        concept: embeddings of each row's concept.
        lengths: its tokens.
        network: the hypernetwork.
    """

    concept: Float[Tensor, "B C D"]
    lengths: Int[Tensor, "B"]
    network: Hypernetwork = shared()

    def read(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> Carry:
        """The carry with the vectors."""
        if not where.prefill:
            return carry
        prompt = where.mask("prompt")
        there = torch.ones_like(where.positions, dtype=torch.bool) if prompt is None else prompt
        return {**carry, _VECTOR: self.network.vector(self.concept, self.lengths, h, there)}


@dataclass(frozen=True, eq=False)
class AddVectorRead(Edit):
    """``h + strength * vector`` on every token, the vector being what `ReadPrompt` has left."""

    strength: Float[Tensor, "B"]

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Shift every token of a row by the row's vector."""
        vector = self.strength[:, None].to(carry[_VECTOR]) * carry[_VECTOR]
        return where.keep(h + vector[:, None].to(h.dtype), h), carry


def first_weights(shape: NetworkShape, width: int, inner: int, seed: int) -> dict[str, Tensor]:
    """Weights to start training from, all drawn anew, as the authors' are.

    Args:
        shape: of the network.
        width: of the model's states.
        inner: width of the MLPs' inside.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    queries, keys = shape.num_heads * shape.head_width, shape.num_key_heads * shape.head_width
    attends = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, queries)}
    sizes = {f"{part}.{name}": size for part in ("self_attn", "cross_attention") for name, size in attends.items()}
    sizes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    norms = ("input", "post_attention", "pre_cross_attention", "post_cross_attention", "pre_feedforward")

    weights: dict[str, Tensor] = {}
    for number in range(shape.num_layers):
        for name, size in sizes.items():
            weights[f"layers.{number}.{name}.weight"] = FIRST_SPREAD * torch.randn(size, generator=generator)
        for name in (*norms, "post_feedforward"):
            weights[f"layers.{number}.{name}_layernorm.weight"] = torch.zeros(width)
    weights["regression_head.weight"] = FIRST_SPREAD * torch.randn(width, width, generator=generator)
    weights["regression_head.bias"] = torch.zeros(width)
    return weights
