"""Learnt low-rank edits: LoReFT's, in a subspace with an orthonormal basis, and a bottleneck of two maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.steering import Carry, Edit, Where, shared
from harness.text_learner import per_group


@dataclass(frozen=True, eq=False)
class SubspaceEdit(Edit):
    """``h + strength * (W h + b - R h) R``: within the subspace that the rows of ``R`` span, ``h`` becomes ``W h + b``.

    With ``strength`` 1 this is LoReFT. It acts on the ``first`` and ``last`` tokens of the prompt, each at most half of
    it, or on every token behind the prefix where these are None.
    """

    rotation: Float[Tensor, "B R D"]
    source: Float[Tensor, "B R D"]
    bias: Float[Tensor, "B R"]
    strength: Float[Tensor, "B"]
    first: int | None = shared(default=None)
    last: int | None = shared(default=None)
    prefix_length: int = shared(default=0)

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Move the chosen tokens within the subspace, computed in float32 at least."""
        dtype = torch.promote_types(h.dtype, torch.float32)
        wide, rotation = h.to(dtype), self.rotation.to(dtype)
        target = wide @ self.source.to(dtype).mT + self.bias.to(dtype)[:, None]
        shift = (target - wide @ rotation.mT) @ rotation
        moved = (wide + self.strength.to(dtype)[:, None, None] * shift).to(h.dtype)
        return torch.where(self._chosen(where)[..., None], moved, h), carry

    def _chosen(self, where: Where) -> Tensor:
        real = torch.ones_like(where.positions, dtype=torch.bool) if where.real is None else where.real
        if self.first is None or self.last is None:
            return real & (where.positions >= self.prefix_length)
        prompt_B1 = where.prompt_lengths[:, None]
        first, last = (
            half.clamp(max=limit) for half, limit in ((prompt_B1 // 2, self.first), (prompt_B1 // 2, self.last))
        )
        at_start, at_end = where.positions < first, where.positions >= prompt_B1 - last
        return real & (at_start | at_end) & (where.positions < prompt_B1)


@dataclass(frozen=True, eq=False)
class Bottleneck(Edit):
    """``h + strength * up @ f(down @ h + bias)`` on every token, ``f`` the identity or what lies above 0."""

    down: Float[Tensor, "B R D"]
    bias: Float[Tensor, "B R"]
    up: Float[Tensor, "B D R"]
    strength: Float[Tensor, "B"]
    activation: Literal["linear", "relu"] = shared(default="linear")

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Add what comes out of the bottleneck, computed in float32 at least."""
        dtype = torch.promote_types(h.dtype, torch.float32)
        inside = h.to(dtype) @ self.down.to(dtype).mT + self.bias.to(dtype)[:, None]
        if self.activation == "relu":
            inside = inside.relu()
        update = self.strength.to(dtype)[:, None, None] * (inside @ self.up.to(dtype).mT)
        return where.keep(h + update.to(h.dtype), h), carry


class Bottlenecks(nn.Module):
    """The parameters of a `Bottleneck` for every group and layer; ``up`` starts at zero, so that nothing changes."""

    def __init__(
        self, num_groups: int, num_layers: int, width: int, rank: int, seed: int, device: torch.device
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = (2 * torch.rand(num_layers, rank, width, generator=generator) - 1) / width**0.5
        self.down = per_group(start.to(device), num_groups)
        self.bias = per_group(torch.zeros(num_layers, rank, device=device), num_groups)
        self.up = per_group(torch.zeros(num_layers, width, rank, device=device), num_groups)


class Subspaces(nn.Module):
    """LoReFT's parameters for every group and layer.

    The basis ``R`` stays orthonormal because it is parametrised: as products of Householder reflections, which are free
    parameters, applied to an orthogonal matrix that stays what it is.

    Args:
        num_groups: each has subspaces of its own; all start the same.
        num_layers: layers with a subspace.
        width: of the model.
        rank: dimensions of each subspace.
        seed: of the start.
        device: where it is learnt.
    """

    base: Float[Tensor, "L D D"]

    def __init__(
        self, num_groups: int, num_layers: int, width: int, rank: int, seed: int, device: torch.device
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        base, _ = torch.linalg.qr(torch.randn(num_layers, width, width, generator=generator))
        self.register_buffer("base", base.to(device))

        uniform = (2 * torch.rand(num_layers, rank, width + 1, generator=generator) - 1).to(device) / width**0.5
        self.source = per_group(uniform[..., :width], num_groups)
        self.bias = per_group(uniform[..., width], num_groups)
        self.reflections = per_group(torch.zeros(num_layers, width, rank, device=device), num_groups)

    def rotation(self) -> Float[Tensor, "G L R D"]:
        """Orthonormal rows; at the start the first columns of ``base``."""
        below = self.reflections.tril(diagonal=-1)
        factors = 2 / (1 + below.square().sum(-2))
        # Without reflections each column is turned round, hence the sign.
        return -(self.base @ torch.linalg.householder_product(below, factors)).mT

    def edit(
        self,
        rotation: Float[Tensor, "G L R D"],
        groups: Tensor,
        place: int,
        strength: Float[Tensor, "B"],
        **where: int | None,
    ) -> SubspaceEdit:
        """The edit of one layer for rows of these groups; ``where`` goes to `SubspaceEdit`."""
        source, bias = self.source[groups, place], self.bias[groups, place]
        return SubspaceEdit(rotation[groups, place], source, bias, strength, **where)
