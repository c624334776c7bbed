"""Mathematics that several methods share: directions in activation space and the edits that use them.

Every function is pure. Activations are ``N`` texts x ``D`` units, often stacked over ``L`` layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.data import Example, Pair
from harness.model_view import Subject
from harness.steering import Artifact, Carry, Edit, Layout, Range, Site, Stream, Tokens, Where, shared

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8


@dataclass(frozen=True, eq=False)
class AddVector(Edit):
    """``h + vector`` on the chosen tokens; the strength is already in the vector, one row per row of the batch."""

    vector: Float[Tensor, "B D"]
    tokens: Tokens = shared(default="all")

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Shift every chosen token of a row by the row's vector."""
        return where.keep(h + self.vector[:, None].to(h), h, self.tokens), carry


@dataclass(frozen=True, eq=False)
class Rescale(Edit):
    """``h + factor * h`` on the chosen tokens, unit by unit."""

    factor: Float[Tensor, "B D"]
    tokens: Tokens = shared(default="all")

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Stretch, shrink or flip every chosen token of a row by the row's factors."""
        return where.keep(torch.addcmul(h, h, self.factor[:, None].to(h)), h, self.tokens), carry


def unit(vector: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
    """The vector at length 1; a zero vector stays zero."""
    length = vector.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, vector / length, vector)


def mean_difference(
    positive: Float[Tensor, "N *shape"], negative: Float[Tensor, "M *shape"]
) -> Float[Tensor, "*shape"]:
    """Mean of the wanted activations minus mean of the unwanted ones."""
    return positive.mean(0) - negative.mean(0)


def principal_direction(sample: Float[Tensor, "N D"]) -> Float[Tensor, "D"]:
    """First principal component of the centred sample, of length 1 and free sign; zero if the sample does not vary."""
    centred = sample.double() - sample.double().mean(0)
    _, spread, components = torch.linalg.svd(centred, full_matrices=False)
    return (components[0] * (spread[0] > 0)).to(sample.dtype)


class Moments:
    """Count, sum and, if asked for, outer products of activations that come in chunks; sums are float64.

    Args:
        outer: keep the sum of outer products (D x D), for principal directions.
    """

    def __init__(self, *, outer: bool) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.norms: Tensor | float = 0.0
        """Sum of the lengths."""
        self.outer: Tensor | float | None = 0.0 if outer else None

    def add(self, sample: Float[Tensor, "M D"]) -> None:
        """Count further activations."""
        wide = sample.double()
        self.count += len(sample)
        self.total = self.total + wide.sum(0)
        self.norms = self.norms + wide.norm(dim=1).sum()
        if self.outer is not None:
            self.outer = self.outer + wide.T @ wide

    @property
    def mean(self) -> Float[Tensor, "D"]:
        """Mean of all activations, in float64."""
        assert isinstance(self.total, Tensor), "nothing was added"
        return self.total / self.count

    def principal_direction(self) -> Float[Tensor, "D"]:
        """As `principal_direction` of everything that was added, in float32."""
        assert isinstance(self.outer, Tensor), "outer products were not kept"
        spread = self.outer / self.count - torch.outer(self.mean, self.mean)
        variances, axes = torch.linalg.eigh(spread)
        return (axes[:, -1] * (variances[-1] > 0)).float()


def pair_differences(sample: Float[Tensor, "N D"], order: Int[Tensor, "N"]) -> Float[Tensor, "M D"]:
    """Differences of length 1 between random pairs: the i-th of the order and the one half an order further on.

    Pairs of equal activations have no direction and are left out.
    """
    half = len(order) // 2
    differences = sample[order[:half]] - sample[order[half : 2 * half]]
    return unit(differences[differences.norm(dim=1) > 0])


def oriented(
    direction: Float[Tensor, "D"], positive: Float[Tensor, "N D"], negative: Float[Tensor, "M D"]
) -> Float[Tensor, "D"]:
    """The direction turned so that the wanted activations lie further along it on average."""
    return -direction if direction @ mean_difference(positive, negative) < 0 else direction


def equal_norms(vectors: Float[Tensor, "G L D"]) -> Float[Tensor, "G L D"]:
    """The groups' vectors rescaled, layer by layer, to the mean of their norms."""
    return unit(vectors) * vectors.norm(dim=-1, keepdim=True).mean(0)


def sign_agreement(difference: Float[Tensor, "N *shape"]) -> Float[Tensor, "*shape"]:
    """Share of pairs that agree on the sign of each unit's change, with that sign; +1 to -1, a tie counts as positive.

    A difference of zero counts for neither sign but stays in the denominator.
    """
    rise, fall = (difference > 0).double().mean(0), (difference < 0).double().mean(0)
    return torch.where(rise >= fall, rise, -fall).float()


def ranks(score: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Place of every entry in the descending order of all, from 0; ties go to the earlier entry."""
    order = score.flatten().argsort(descending=True, stable=True)
    places = torch.empty_like(order, dtype=torch.int32)
    places[order] = torch.arange(len(order), dtype=torch.int32, device=order.device)
    return places.view(score.shape)


def every_layer(subject: Subject, stream: Stream) -> list[Site]:
    """One stream at all layers of the model."""
    return [Site(layer, stream) for layer in range(subject.layout.num_layers)]


def grouped(pairs: Sequence[Pair]) -> dict[str, Int[Tensor, "N"]]:
    """Which pairs belong to which group, groups in alphabetical order."""
    if not pairs:
        raise ValueError("no contrast pairs: the task's training split must offer some for this method")
    names = sorted({pair.group for pair in pairs})
    return {name: torch.tensor([i for i, pair in enumerate(pairs) if pair.group == name]) for name in names}


def encoded_names(names: Sequence[str]) -> UInt8[Tensor, "C"]:
    """Names as a tensor of characters, so that they can be kept in an artifact."""
    return torch.tensor(list(json.dumps(list(names)).encode()), dtype=torch.uint8)


def group_rows(artifact: Artifact, examples: Sequence[Example]) -> Int[Tensor, "B"]:
    """Index of every example's group in ``artifact["groups"]``; a single group serves all examples.

    Raises:
        ValueError: an example's group was not among the training pairs.
    """
    return rows_of_groups(artifact, [example.group for example in examples], [example.id for example in examples])


def rows_of_groups(artifact: Artifact, groups: Sequence[str], owners: Sequence[str] | None = None) -> Int[Tensor, "B"]:
    """Index of every group in ``artifact["groups"]``; where there is a single one, it serves all.

    Args:
        artifact: what was fitted.
        groups: names to look up.
        owners: what each belongs to, for messages.

    Raises:
        ValueError: nothing was fitted for a group.
    """
    names: list[str] = json.loads(bytes(artifact["groups"].tolist()))
    if len(names) == 1:
        return torch.zeros(len(groups), dtype=torch.long, device=artifact["groups"].device)
    for number, group in enumerate(groups):
        if group not in names:
            owner = f"text {number}" if owners is None else owners[number]
            raise ValueError(
                f"group of {owner} must be one that contrast pairs were given for ({', '.join(names)}), got {group!r}"
            )
    rows = [names.index(group) for group in groups]
    return torch.tensor(rows, device=artifact["groups"].device)


def chosen_layers(layout: Layout, layers: Sequence[int] | None) -> list[int]:
    """Layers in order, each once; None takes those at 20, 40, 60 and 80 % of the depth.

    Raises:
        ValueError: the model lacks one of them.
    """
    if layers is None:
        return sorted({round(share * (layout.num_layers - 1)) for share in (0.2, 0.4, 0.6, 0.8)})
    for layer in layers:
        layout.check_layer("layers", layer)
    return sorted(set(layers))


def check_count(name: str, count: float | Range, available: int) -> None:
    """Raise ValueError unless a count is whole and between 1 and what the model has; a range may end above that."""
    least = count.low if isinstance(count, Range) else count
    if not 1 <= least <= available or least != int(least):
        raise ValueError(f"{name} must be a whole number from 1 to {available}, got {least:g}")
