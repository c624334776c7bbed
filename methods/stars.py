"""STARS: several samples of one prompt are steered apart from each other while they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.types import (
    Artifact,
    Carry,
    Edit,
    Example,
    Intervention,
    Layout,
    Method,
    Parameters,
    Range,
    Site,
    Stream,
    Subject,
    Where,
    shared,
)

Retraction = Literal["orthonormal", "released"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Squared singular values of samples' states, and the samples' coordinates that belong to them."""

    squares: Float[Tensor, "S N"]
    axes: Float[Tensor, "S N N"]

    @classmethod
    def of(cls, states: Float[Tensor, "S N D"]) -> Spectrum:
        """By the samples' inner products, N x N; in float64, where squaring costs no digit that matters."""
        squares, axes = torch.linalg.eigh(states @ states.mT)
        return cls(squares.clamp(min=0), axes)

    def mapped(self, values: Float[Tensor, "S N"]) -> Float[Tensor, "S N N"]:
        """The symmetric matrix with these values in place of the squares."""
        return (self.axes * values[:, None]) @ self.axes.mT


def free_start(
    states: Float[Tensor, "S N D"], noise: Float[Tensor, "S N D"], alpha: Float[Tensor, "S"], negligible: float
) -> Float[Tensor, "S N D"]:
    """Random vectors at right angles to each other and to all states, each of squared length ``alpha``.

    Args:
        states: of the N samples.
        noise: normal random numbers of each sample.
        alpha: squared length.
        negligible: singular values below this share of the largest are rounding, and span nothing.
    """
    spectrum = Spectrum.of(states)
    spans = spectrum.squares > negligible**2 * spectrum.squares[:, -1:]
    inverse = torch.where(spans, spectrum.squares, 1.0).reciprocal() * spans
    free = noise - (noise @ states.mT) @ spectrum.mapped(inverse) @ states

    # The nearest vectors at right angles to each other: unlike Gram-Schmidt's, they do not depend on the order.
    overlap = Spectrum.of(free)
    return alpha.sqrt()[:, None, None] * (overlap.mapped(overlap.squares.clamp(min=_TINY).rsqrt()) @ free)


def one_step(
    states: Float[Tensor, "S N D"],
    start: Float[Tensor, "S N D"],
    alpha: Float[Tensor, "S"],
    retraction: Retraction = "orthonormal",
) -> tuple[Float[Tensor, "S N D"], Float[Tensor, "S"]]:
    """One step that spreads the samples: along the states, then back to vectors with ``V V' = alpha I``.

    Args:
        states: of the N samples, H in the paper (transposed).
        start: as `free_start` gives it.
        alpha: squared length of each vector.
        retraction: "orthonormal" is the paper's; "released" divides by singular values where squares belong, as the
            authors' code does, and leaves vectors that are longer and not at right angles.

    Returns:
        What is added to each state, and the length of the step, eta.
    """
    spectrum = Spectrum.of(states)
    share = spectrum.squares / (spectrum.squares + alpha[:, None]).clamp(min=_TINY)
    eta = 2 * share.sum(1) / (4 * share.square().sum(1)).clamp(min=_TINY)

    stretch = spectrum.squares if retraction == "orthonormal" else spectrum.squares.sqrt()
    back = (alpha[:, None] + eta.square()[:, None] * stretch).clamp(min=_TINY).rsqrt()
    moved = start + eta[:, None, None] * states
    return alpha.sqrt()[:, None, None] * (spectrum.mapped(back) @ moved), eta


_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class PushApart(Edit):
    """``h_i + v_i`` at the position that chooses a token, for all samples of a prompt that are still being written."""

    noise: Float[Tensor, "B D"]
    strength: Float[Tensor, "B"]
    retraction: Retraction = shared(default="orthonormal")
    every: int = shared(default=1)

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Push the samples of each group apart; a sample on its own stays where it is."""
        if where.groups is None:
            return h, carry
        step = where.positions - where.prompt_lengths[:, None] + 1
        chosen = step >= 0 if where.real is None else (step >= 0) & where.real
        pushes = self._pushes(h, where, chosen & (step % self.every == 1 % self.every))
        if self.every > 1:
            pushes, carry = self._kept(pushes, step, where, carry)
        return torch.where(chosen[..., None], h + pushes, h), carry

    def _pushes(self, h: Float[Tensor, "B T D"], where: Where, fresh: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """What is added to those tokens that are worked out anew; zero for others."""
        assert where.groups is not None
        row, column = fresh.nonzero(as_tuple=True)
        position = where.positions[row, column]
        exact, width = h.double(), h.shape[-1]
        pushes = torch.zeros_like(exact)
        negligible = max(torch.finfo(h.dtype).eps ** 0.5, 1e-6)

        for tokens in _met(where.groups[row], position):
            rows, columns = row[tokens], column[tokens]
            states, strength = exact[rows, columns], self.strength[rows[:, 0]].double()
            if 2 * tokens.shape[1] > width:
                raise ValueError(f"at most {width // 2} samples fit into a width of {width}, got {tokens.shape[1]}")
            # Every step reads the same random numbers from another place on.
            places = torch.arange(width, device=h.device) + position[tokens][..., None]
            noise = self.noise.double()[rows].gather(-1, places % width)
            alpha = strength * Spectrum.of(states).squares[:, -1]
            start = free_start(states, noise, alpha, negligible)
            pushes[rows, columns] = one_step(states, start, alpha, self.retraction)[0]
        return pushes.to(h.dtype)

    def _kept(
        self, pushes: Float[Tensor, "B T D"], step: Int[Tensor, "B T"], where: Where, carry: Carry
    ) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Between two recomputations, what the last one gave; nothing before the first."""
        name = where.key("push")
        age = (step - 1) % self.every
        if where.prefill:
            source = torch.arange(step.shape[1], device=step.device) - age
            held = pushes.gather(1, source.clamp(min=0)[..., None].expand_as(pushes))
            held = torch.where((step >= 1)[..., None], held, 0.0)
            positions = where.positions if where.real is None else where.positions.masked_fill(~where.real, -1)
            last = held[torch.arange(len(held), device=held.device), positions.argmax(1)]
        else:
            held = torch.where((age == 0)[..., None], pushes, carry[name][:, None])
            last = held[:, 0]
        return held, {**carry, name: last}


def _met(group: Int[Tensor, "M"], position: Int[Tensor, "M"]) -> Iterator[Int[Tensor, "S N"]]:
    """Tokens of one group at one position, as many sets as there are; sets of one size come together."""
    kind = torch.stack([group, position], 1)
    _, number, sizes = kind.unique(dim=0, return_inverse=True, return_counts=True)
    order, first = number.argsort(stable=True), sizes.cumsum(0) - sizes
    for size in sizes.unique().tolist():
        if size > 1:
            members = torch.arange(size, device=group.device)
            yield order[first[sizes == size][:, None] + members]


@dataclass(frozen=True, kw_only=True)
class STARS(Method):
    """Add to the samples of one prompt, token by token, vectors that spread their states as far as they can.

    At every step the states of the samples that are still being written make the columns of H. One gradient step on
    log det (H + V)'(H + V) under V'V = alpha I gives the vectors, from a random start at right angles to all states.
    Nothing is fitted, and there is no wanted behaviour: what it is for is variety.

    Source:
        "STARS", ICLR 2026, arXiv 2601.22010, and the authors' code. ``retraction="released"`` and ``every`` are the
        code's; the retraction there divides by singular values instead of their squares, so that V'V = alpha I does
        not hold. Deviations: the start comes from each sample's own random numbers, read from another place on at
        every step and projected, instead of from columns of a singular value decomposition, which differ between
        machines; directions in which samples differ by rounding alone count as free (there, rounding decides);
        samples that have ended are left out (there, they are computed on as padding).

    Parameters:
        layer: counted from 0; 20 to 23 of 28 in the paper.
        strength: C in the paper, 0.1 and 0.5 there: alpha is C times the squared largest singular value of H. 0
            changes nothing; not negative.

    Steers:
        ``stream`` of one layer (the concatenated heads), at the last position of every forward pass.

    Requires:
        Nothing to fit on; several samples of each prompt (``task.num_samples``), drawn.

    Access:
        The question.

    Artifact:
        Empty.

    Fidelity:
        Checked against the authors' values: alpha, step length, both retractions from a given start, which calls
        recompute.
    """

    couples_rows: ClassVar[bool] = True

    stream: Stream = "heads"
    retraction: Retraction = "orthonormal"
    every: int = 1
    """Steps between two recomputations. 1: all, the pass over the prompt too; else first at the second token."""
    seed: int = 0
    """Draws the random numbers of each sample."""
    layer: float | Range = Range(low=0, high=None, default=0.75, integer=True)
    strength: float | Range = Range(low=0.0, high=0.5, default=0.1)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and layers that the model lacks."""
        super().check(layout)
        layout.check_layer("layer", self.layer)
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        lowest = self.strength.low if isinstance(self.strength, Range) else self.strength
        if lowest < 0:
            raise ValueError(f"strength must not be below 0, got {lowest:g}")

    def null(self, layout: Layout) -> Parameters:
        """Vectors of no length."""
        return self.defaults(layout) | {"strength": 0.0}

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``noise`` (B x D): random numbers of each sample, by its name."""
        width = subject.layout.site_width(Site(0, self.stream))
        seeds = [list(f"{self.seed} {example.id}".encode()) for example in examples]
        noise = np.stack([np.random.default_rng(seed).standard_normal(width) for seed in seeds])
        return {"noise": torch.from_numpy(noise).float().to(subject.device)}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per layer that some row asks for; rows of other layers are not pushed there."""
        layers = parameters["layer"].round().long()
        edits: dict[Site, Edit] = {}
        for layer in layers.unique().tolist():
            strength = torch.where(layers == layer, parameters["strength"], 0.0)
            edits[Site(layer, self.stream)] = PushApart(condition["noise"], strength, self.retraction, self.every)
        return Intervention(edits)
