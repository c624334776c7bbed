"""A velocity field that moves hidden states towards a concept given in words, and the edit that follows it (FLAS).

The network's weights keep the names of the authors' checkpoints: ``blocks.0.cross_attn.q_proj.weight``, and so on.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from harness.attention_blocks import attention, gated_mlp, linear, rms_norm, rotated
from harness.model_view import Architecture
from harness.steering import Artifact, Carry, Edit, RowData, Where, shared

TIME_FEATURES = 128
"""Sines and cosines that tell the time."""


@dataclass(frozen=True)
class FieldShape:
    """All of a velocity field but its weights.

    Args:
        num_blocks: blocks, each with weights of its own.
        self_attention: whether tokens look at those before them.
        num_heads: query heads.
        num_key_heads: key heads.
        head_width: width of a head.
        epsilon: of the norms.
        norm_offset: what is added to a norm's weight.
        activation: of the MLP.
        softcap: bound of attention scores; 0 for none.
        attention_scale: factor of the scores of self-attention.
        rotary_scale: factor of cosines and sines.
    """

    num_blocks: int
    self_attention: bool
    num_heads: int
    num_key_heads: int
    head_width: int
    epsilon: float
    norm_offset: float
    activation: str
    softcap: float
    attention_scale: float
    rotary_scale: float

    @classmethod
    def of(cls, architecture: Architecture, num_blocks: int, self_attention: bool) -> FieldShape:
        """The shape of a field that is built like this model's blocks."""
        names = {item.name for item in dataclasses.fields(cls)} - {"num_blocks", "self_attention"}
        taken = {name: getattr(architecture, name) for name in names}
        return cls(num_blocks=num_blocks, self_attention=self_attention, **taken)


@dataclass(frozen=True, eq=False)
class VelocityField(RowData):
    """``v(h, t, c)``: where a token's state ``h`` moves at time ``t`` for concept ``c``; the same for all rows.

    A block adds the time's embedding, what the token reads in the concept, what it reads in the tokens before it (if
    the field has self-attention) and an MLP's output; each but the first between two norms and through a gate per
    dimension. The velocity is what the blocks have added in all, so several blocks add the time several times.
    """

    weights: Mapping[str, Tensor] = shared()
    frequencies: Float[Tensor, "F"] = shared()
    shape: FieldShape = shared()

    @classmethod
    def of(cls, artifact: Artifact) -> VelocityField:
        """The field that `tensors` was made of."""
        shape = FieldShape(**json.loads(bytes(artifact["shape"].tolist())))
        weights = {name.removeprefix("flow."): value for name, value in artifact.items() if name.startswith("flow.")}
        return cls(weights, artifact["frequencies"], shape)

    def tensors(self) -> Artifact:
        """All of it, to be saved."""
        shape = torch.tensor(list(json.dumps(dataclasses.asdict(self.shape)).encode()), dtype=torch.uint8)
        weights = {f"flow.{name}": value.detach() for name, value in self.weights.items()}
        return {**weights, "frequencies": self.frequencies, "shape": shape}

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.weights["time_embed.mlp.0.weight"].dtype

    def concept_keys(
        self, states: Float[Tensor, "N C D"]
    ) -> tuple[Float[Tensor, "N L C K E"], Float[Tensor, "N L C K E"]]:
        """What every block looks up in concepts: keys and values of their tokens, the same at every step."""
        places = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
        keys, values = [], []
        for number in range(self.shape.num_blocks):
            name = f"blocks.{number}.cross_attn"
            key = self._norm(f"{name}.k_norm", self._heads(f"{name}.k_proj", states.to(self.dtype)))
            keys.append(rotated(key, places, self.frequencies, self.shape.rotary_scale))
            values.append(self._heads(f"{name}.v_proj", states.to(self.dtype)))
        return torch.stack(keys, 1), torch.stack(values, 1)

    def velocity(
        self, x: Float[Tensor, "B T D"], time: Float[Tensor, "B"], edit: FlowEdit, step: int, where: Where, carry: Carry
    ) -> tuple[Float[Tensor, "B T D"], Carry]:
        """The velocity of each token of a pass, and the carry with what self-attention remembers.

        Args:
            x: states, in the field's dtype.
            time: of each row.
            edit: holds the rows' concepts.
            step: number of the Euler step; every step has a self-attention of its own to look back in.
            where: the pass.
            carry: what earlier passes remembered.
        """
        start, embedding = x, self._time_embedding(time)
        for number in range(self.shape.num_blocks):
            block = f"blocks.{number}"
            x = x + embedding[:, None]
            x = x + self.weights[f"{block}.cross_gate"] * self._read_concept(x, number, edit, where)
            if self.shape.self_attention:
                read, carry = self._look_back(x, number, step, where, carry)
                x = x + self.weights[f"{block}.self_attn_gate"] * read
            inside = gated_mlp(self.weights, f"{block}.", self._norm(f"{block}.pre_mlp_norm", x), self.shape.activation)
            x = x + self.weights[f"{block}.mlp_gate"] * self._norm(f"{block}.post_mlp_norm", inside)
        return x - start, carry

    def _time_embedding(self, time: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        inside = linear(self.weights, "time_embed.mlp.0", time_features(time).to(self.dtype))
        return linear(self.weights, "time_embed.mlp.2", functional.silu(inside))

    def _read_concept(
        self, x: Float[Tensor, "B T D"], number: int, edit: FlowEdit, where: Where
    ) -> Float[Tensor, "B T D"]:
        block, shape = f"blocks.{number}", self.shape
        query = self._heads(f"{block}.cross_attn.q_proj", self._norm(f"{block}.pre_cross_norm", x))
        query = self._norm(f"{block}.cross_attn.q_norm", query)
        query = rotated(query, where.positions, self.frequencies, shape.rotary_scale)
        places = torch.arange(edit.keys.shape[2], device=x.device)
        # Gemma's own factor of the scores belongs to self-attention; here all families take the usual one.
        read = attention(
            query,
            edit.keys[:, number],
            edit.values[:, number],
            (places < edit.lengths[:, None])[:, None],
            scale=shape.head_width**-0.5,
            softcap=shape.softcap,
        )
        return self._norm(f"{block}.post_cross_norm", linear(self.weights, f"{block}.cross_attn.o_proj", read))

    def _look_back(
        self, x: Float[Tensor, "B T D"], number: int, step: int, where: Where, carry: Carry
    ) -> tuple[Float[Tensor, "B T D"], Carry]:
        block, shape = f"blocks.{number}", self.shape
        normal = self._norm(f"{block}.pre_sa_norm", x)
        query, key, value = (self._heads(f"{block}.self_attn.{kind}_proj", normal) for kind in "qkv")
        query, key = (rotated(part, where.positions, self.frequencies, shape.rotary_scale) for part in (query, key))
        keys, carry = where.remember(f"flow/{step}/{number}/keys", key, carry)
        values, carry = where.remember(f"flow/{step}/{number}/values", value, carry)

        visible = where.sees(keys.shape[1])
        read = attention(query, keys, values, visible, scale=shape.attention_scale, softcap=shape.softcap)
        read = linear(self.weights, f"{block}.self_attn.o_proj", read)
        return self._norm(f"{block}.post_sa_norm", read), carry

    def _heads(self, name: str, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H E"]:
        return linear(self.weights, name, x).unflatten(-1, (-1, self.shape.head_width))

    def _norm(self, name: str, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return rms_norm(x, self.weights[f"{name}.weight"], self.shape.epsilon, self.shape.norm_offset)

    def bytes_per_token(self, num_steps: int) -> int:
        """What self-attention remembers of each token, in all steps and blocks."""
        if not self.shape.self_attention:
            return 0
        kept = 2 * self.shape.num_key_heads * self.shape.head_width * self.dtype.itemsize
        return kept * self.shape.num_blocks * num_steps


def time_features(time: Float[Tensor, "B"]) -> Float[Tensor, "B 128"]:
    """Sines, then cosines, of the time at frequencies from 1 down to almost 1/10,000."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


@dataclass(frozen=True, eq=False)
class FlowEdit(Edit):
    """Follow the field for ``flow_time`` in ``num_steps`` Euler steps, on every token.

    Args:
        keys: of each row's concept, by block.
        values: the same.
        lengths: how many of them are real.
        flow_time: 0 changes nothing.
        num_steps: whole numbers.
        field: the velocity.
        most_steps: of any row.
        tells_velocity: leave each row's mean velocity of the last step in the carry, as training needs it.
    """

    keys: Float[Tensor, "B L C K E"]
    values: Float[Tensor, "B L C K E"]
    lengths: Int[Tensor, "B"]
    flow_time: Float[Tensor, "B"]
    num_steps: Float[Tensor, "B"]
    field: VelocityField = shared()
    most_steps: int = shared(default=3)
    tells_velocity: bool = shared(default=False)

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Move every token, step by step; rows with fewer steps stand still in those that are left."""
        start = x = h.to(self.field.dtype)
        velocity = torch.zeros_like(x)
        for step in range(self.most_steps):
            size = torch.where(step < self.num_steps, self.flow_time / self.num_steps, 0.0)
            velocity, carry = self.field.velocity(x, step * size, self, step, where, carry)
            x = x + size.to(x)[:, None, None] * velocity

        if self.tells_velocity:
            carry = {**carry, where.key("velocity"): where.mean(velocity)}
        # The way is added to the state in the wider dtype, so that no way at all changes no bit of it.
        wide = torch.promote_types(h.dtype, x.dtype)
        return where.keep((h.to(wide) + (x - start).to(wide)).to(h.dtype), h), carry
