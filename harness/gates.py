"""Gates that methods share: decided once per prompt, or read from every token; and how their thresholds are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from harness.steering import Carry, Gate, Where, shared

DECISION = "gates/decision"
"""Carry key of a decision per row; one fixed key, because a probe writes it at another site than the gates read it."""


@dataclass(frozen=True, eq=False)
class DecidedGate(Gate):
    """Open for the rows whose prompt was decided to be steered, by a probe that ran earlier in the same pass."""

    def open(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Bool[Tensor, "B 1 1"], Carry]:
        """1 or 0 per row, for all of its tokens."""
        return carry[DECISION][:, None, None], carry


@dataclass(frozen=True, eq=False)
class LogisticGate(Gate):
    """``strength * sigmoid(weight . h + bias)``: how much each token looks like what is to be steered."""

    strength: Float[Tensor, "B"]
    weight: Float[Tensor, "D"] = shared()
    bias: Float[Tensor, ""] = shared()

    def open(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T 1"], Carry]:
        """A factor per token."""
        likeness_BT = torch.sigmoid(h @ self.weight.to(h) + self.bias.to(h))
        return (self.strength[:, None].to(h) * likeness_BT)[..., None], carry


class Cut(NamedTuple):
    """A rule "value above (below) threshold" and the F1 that it reaches; ``row`` says which score it cuts."""

    row: int
    threshold: float
    above: bool
    f1: float


def best_cut(
    values: Float[Tensor, "L N"],
    wanted: Bool[Tensor, "N"],
    grid: Float[Tensor, "K"] | None = None,
    side: Literal["above", "below"] | None = None,
) -> Cut:
    """The rule with the highest F1; ties go to the earlier row, the lower threshold, then "below".

    Args:
        values: scores of ``N`` texts, one row per way of scoring them.
        wanted: which texts the rule should pick.
        grid: candidate thresholds, rising; None tries the midpoints between all scores of a row.
        side: the side to pick from; None tries both.

    Raises:
        ValueError: the scores of every row are all equal, so that nothing can separate the texts.
    """
    cuts: list[Cut] = []
    for row, values_N in enumerate(values):
        thresholds = midpoints(values_N) if grid is None else grid.to(values_N)
        if len(thresholds):
            columns = [int(side == "above")] if side else [0, 1]
            f1_KS = f1_scores(values_N, wanted, thresholds)[:, columns]
            # numpy's argmax takes the first of equal entries, torch's any.
            place, column = divmod(int(f1_KS.numpy().argmax()), len(columns))
            cuts.append(Cut(row, float(thresholds[place]), bool(columns[column]), float(f1_KS[place, column])))
    if not cuts:
        raise ValueError("no threshold separates the texts: they all have the same score, got one distinct value")
    return max(cuts, key=lambda cut: cut.f1)


def f1_scores(
    values: Float[Tensor, "N"], wanted: Bool[Tensor, "N"], thresholds: Float[Tensor, "K"]
) -> Float[Tensor, "K 2"]:
    """F1 of picking what is below (first column) and above (second) every threshold, both strictly."""
    ordered, order = values.sort()
    hits = functional.pad(wanted[order].cumsum(0), (1, 0))
    below, not_above = (torch.searchsorted(ordered, thresholds, right=right) for right in (False, True))
    total = hits[-1]
    f1_below = 2 * hits[below] / (below + total)
    f1_above = 2 * (total - hits[not_above]) / (len(ordered) - not_above + total)
    return torch.stack([f1_below, f1_above], dim=-1)


def midpoints(values: Float[Tensor, "N"]) -> Float[Tensor, "K"]:
    """Thresholds half-way between neighbouring values: every way to split them, once."""
    distinct = values.unique()
    return (distinct[1:] + distinct[:-1]) / 2
