"""CAST: a condition read once from the prompt decides whether a behavior vector acts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from harness import directions
from harness.types import (
    Access,
    Artifact,
    Carry,
    Example,
    FitData,
    Gate,
    Gated,
    Intervention,
    Layout,
    Method,
    Pair,
    Parameters,
    Probe,
    Range,
    Site,
    Subject,
    Tokens,
    Where,
    shared,
)

DECISION = "cast/decision"
"""Carry key of a decision per row; one fixed key, because a probe writes it at another site than its gates read it."""


def similarity(h: Float[Tensor, "... D"], direction: Float[Tensor, "D"]) -> Float[Tensor, "..."]:
    """Cosine between ``h`` and ``tanh`` of its projection on a direction; the direction's sign does not matter."""
    projection = (h @ direction / direction.square().sum())[..., None] * direction
    return functional.cosine_similarity(h, projection.tanh(), dim=-1)


@dataclass(frozen=True, eq=False)
class ConditionProbe(Probe):
    """Decides for every row, in the pass that holds its prompt; later passes keep the decision."""

    direction: Float[Tensor, "D"] = shared()
    threshold: Float[Tensor, ""] = shared()
    above: bool = False
    tokens: Tokens = "prompt"

    def read(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> Carry:
        """The carry with the decision of every row."""
        if not where.prefill:
            return carry
        found_B = similarity(where.mean(h, self.tokens).float(), self.direction)
        return {**carry, DECISION: found_B > self.threshold if self.above else found_B < self.threshold}


@dataclass(frozen=True, eq=False)
class DecidedGate(Gate):
    """Open for the rows whose prompt was decided to be steered, by a probe that ran earlier in the same pass."""

    def open(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Bool[Tensor, "B 1 1"], Carry]:
        """1 or 0 per row, for all of its tokens."""
        return carry[DECISION][:, None, None], carry


def first_component(
    positive: Float[Tensor, "N D"], negative: Float[Tensor, "M D"], *, pairwise: bool
) -> Float[Tensor, "D"]:
    """Main axis (length 1) of both classes around the middle between them, turned towards the wanted one.

    ``pairwise`` takes each pair's own midpoint for the middle (equal to uncentred PCA of the differences); otherwise it
    lies halfway between the class means, however many texts each class has.
    """
    middle = (positive + negative) / 2 if pairwise else (positive.mean(0) + negative.mean(0)) / 2
    rows = torch.cat([positive - middle, negative - middle]).double()
    # Not centred again: the mean of unequal classes lies in the larger one, and with it the axis between them is lost.
    _, spread, axes = torch.linalg.svd(rows, full_matrices=False)
    return turned((axes[0] * (spread[0] > 0)).to(positive.dtype), positive, negative)


def turned(
    axis: Float[Tensor, "D"], positive: Float[Tensor, "N D"], negative: Float[Tensor, "M D"]
) -> Float[Tensor, "D"]:
    """The axis turned so that in most pairs the wanted text lies further along it.

    Classes of unequal size have no pairs: there the means decide.
    """
    if len(positive) != len(negative):
        return directions.oriented(axis, positive, negative)
    ahead, behind = (positive @ axis > negative @ axis).sum(), (positive @ axis < negative @ axis).sum()
    return -axis if behind > ahead else axis


@dataclass(frozen=True, kw_only=True)
class CAST(Method):
    """Conditional steering: add a behavior vector to prompts that meet a condition, and leave all others exactly alone.

    The similarity of a prompt is the cosine between its mean hidden state ``h`` and ``tanh(P h)``, ``P`` the projector
    on the condition vector. ``condition_when="below"`` steers prompts whose similarity is **below** the threshold,
    ``"above"`` those above it. (The authors' code calls the first "larger": there the threshold is what is larger.)
    The similarity ignores the vector's sign, so which side the wanted prompts fall on is learnt, not given.

    Source:
        Lee et al. 2024, "Programming Refusal with Conditional Activation Steering", arXiv 2409.05907, section 3.
        Deviations: one condition at one layer (the authors also combine several); candidate thresholds are the
        midpoints between training similarities unless ``thresholds`` names a grid; search and inference both compare
        strictly (the authors' search includes equality); every row decides for itself (the authors' code decides by
        row 0 of a batch); a behavior vector is read from the mean of the completion (there from its last token, or from
        a suffix); the condition vector is always centred at the middle of both classes (its texts are not paired), and
        the authors' third centring, "pca_diff", which takes the mean difference away, is not offered; vectors act where
        they were read, at the block output (``stream="block_input"`` is the authors' code: read at a block's output,
        acts on its input); vectors are scaled by ``normalise``; norm preservation is not offered. The first half of the
        layers as candidates and the depth of the behavior are choices of our own.

    Parameters:
        strength: any sign, 0 changes nothing, positive steers towards the wanted completions. A share of the layer's
            mean activation norm, or with ``normalise="unit"`` (the authors') a length in units of the hidden state.

    Steers:
        ``stream`` of the behavior layers, on ``tokens`` (default all) of the prompts that meet the condition.

    Requires:
        Contrast pairs for the behavior; source prompts that meet the condition and control prompts that do not.

    Access:
        Pairs and texts of the training split.

    Artifact:
        ``behavior``: groups x behavior layers x width; ``behavior_layers``; ``groups``: their names as JSON bytes;
        ``condition``: width; ``condition_layer``, ``threshold``, ``above``, ``f1`` (on the training texts): scalars.

    Fidelity:
        Vectors, decision, both passes and grid search agree with values of the authors' code.
    """

    version: ClassVar[int] = 2
    requires: ClassVar = frozenset({"pairs", "texts"})
    access: ClassVar = frozenset({Access.PAIRS, Access.TEXTS})

    direction: Literal["pca_pairwise", "pca_center"] = "pca_pairwise"
    """How pairs are centred before the behavior's principal component; the condition's texts are not paired."""
    normalise: Literal["unit", "activation"] = "activation"
    behavior_layers: tuple[int, ...] | None = None
    """Layers that are steered; None takes those from ``behavior_depth[0]`` up to ``behavior_depth[1]`` of the model."""
    behavior_depth: tuple[float, float] = (0.5, 0.8)
    condition_layers: tuple[int, ...] | None = None
    """Candidates of the search, one number to fix the layer; None takes the first half of the model."""
    condition_when: Literal["above", "below"] | None = None
    """Side of the threshold on which a prompt is steered; searched where None."""
    thresholds: tuple[float, float, float] | None = None
    """Grid of thresholds: from, up to but not including, step."""
    condition_read: Literal["mean", "last"] = "mean"
    """Prompt tokens that the decision reads."""
    stream: Literal["block", "block_input"] = "block"
    tokens: Tokens = "all"
    """``completion`` leaves the first pass alone, as the authors' option does."""
    raw: bool = False
    """Take condition texts as they are instead of as prompts in the run's template; pairs are always read in it."""
    strength: float | Range = Range(low=0.0, high=0.5, default=0.1)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings, layers that the model lacks, and a condition that would be read too late."""
        super().check(layout)
        if self.condition_when not in ("above", "below", None):
            raise ValueError(f"condition_when must be above, below or null, got {self.condition_when!r}")
        steered, candidates = self._behavior_layers(layout), self._condition_layers(layout)
        for name, layers in (("behavior_layers", steered), ("condition_layers", candidates)):
            if not layers:
                raise ValueError(f"{name} must name at least one layer, got none")
            for layer in layers:
                layout.check_layer(name, layer)
        if max(candidates) > min(steered):
            raise ValueError(f"condition_layers must not lie above behavior layer {steered[0]}, got {candidates}")

    def null(self, layout: Layout) -> Parameters:
        """No shift at any layer."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Behavior vectors from pairs, then the condition that tells source from control prompts best.

        Raises:
            ValueError: no pairs, no source prompts or no control prompts; or nothing separates the prompts.
        """
        if not (data.source and data.control):
            counts = f"{len(data.source)} and {len(data.control)}"
            raise ValueError(f"cast needs source texts and control texts to learn its condition from, got {counts}")
        return self._fit_behavior(subject, data.pairs) | self._fit_condition(subject, data)

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``group`` (B): which group's vector each row uses."""
        return {"group": directions.group_rows(artifact, examples)}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One probe at the condition layer, one gated addition at every behavior layer."""
        probe = ConditionProbe(
            direction=artifact["condition"],
            threshold=artifact["threshold"],
            above=bool(artifact["above"]),
            tokens="prompt" if self.condition_read == "mean" else "last_prompt",
        )

        vectors = parameters["strength"][:, None, None] * artifact["behavior"][condition["group"]]
        edits = {
            Site(layer, self.stream): Gated(directions.AddVector(vectors[:, i], self.tokens), DecidedGate())
            for i, layer in enumerate(artifact["behavior_layers"].tolist())
        }

        return Intervention(edits, {Site(int(artifact["condition_layer"]), self.stream): probe})

    def _behavior_layers(self, layout: Layout) -> list[int]:
        first, end = (math.ceil(share * layout.num_layers) for share in self.behavior_depth)
        return sorted(self.behavior_layers or range(first, end))

    def _condition_layers(self, layout: Layout) -> list[int]:
        return sorted(self.condition_layers or range(math.ceil(layout.num_layers / 2)))

    def _fit_behavior(self, subject: Subject, pairs: Sequence[Pair]) -> Artifact:
        groups = directions.grouped(pairs)
        layers = self._behavior_layers(subject.layout)
        positive, negative = (
            _states(subject, [pair.prompt for pair in pairs], completions, [Site(layer) for layer in layers])
            for completions in ([pair.positive for pair in pairs], [pair.negative for pair in pairs])
        )

        vectors = [self._vectors(positive[:, rows], negative[:, rows]) for rows in groups.values()]
        norms = torch.cat([positive, negative], 1).norm(dim=-1).mean(1, keepdim=True)
        return {
            "behavior": torch.stack(vectors) * (norms if self.normalise == "activation" else 1.0),
            "behavior_layers": torch.tensor(layers),
            "groups": directions.encoded_names(list(groups)),
        }

    def _vectors(self, positive: Float[Tensor, "L N D"], negative: Float[Tensor, "L N D"]) -> Float[Tensor, "L D"]:
        pairwise = self.direction == "pca_pairwise"
        return torch.stack([first_component(*row, pairwise=pairwise) for row in zip(positive, negative, strict=True)])

    def _fit_condition(self, subject: Subject, data: FitData) -> Artifact:
        layers, prompts = self._condition_layers(subject.layout), data.source + data.control
        met = torch.tensor([True] * len(data.source) + [False] * len(data.control))

        read = _states(subject, prompts, None, [Site(n) for n in layers], self.raw)
        seen = _states(subject, prompts, None, [Site(n, self.stream) for n in layers], self.raw, self.condition_read)
        vectors = [first_component(h[met], h[~met], pairwise=False) for h in read]
        similarities = torch.stack([similarity(h, vector) for h, vector in zip(seen, vectors, strict=True)])

        grid = None if self.thresholds is None else torch.arange(*self.thresholds, dtype=torch.float64)
        best = best_cut(similarities.cpu(), met, grid, self.condition_when)
        return {
            "condition": vectors[best.row],
            "condition_layer": torch.tensor(layers[best.row]),
            "threshold": torch.tensor(best.threshold),
            "above": torch.tensor(best.above),
            "f1": torch.tensor(best.f1),
        }


def _states(
    subject: Subject,
    prompts: Sequence[str],
    completions: Sequence[str] | None,
    sites: Sequence[Site],
    raw: bool = False,
    pool: Literal["mean", "last"] = "mean",
) -> Float[Tensor, "L N D"]:
    tokens: Tokens = "prompt" if completions is None else "completion"
    states = subject.capture(prompts, completions, sites, tokens=tokens, pool=pool, raw=raw)
    return torch.stack([states[site] for site in sites])


class Cut(NamedTuple):
    """A rule "value above (below) threshold" and the F1 that it reaches; ``row`` says which score it cuts."""

    row: int
    threshold: float
    above: bool
    f1: float


def best_cut(
    values: Float[Tensor, "L N"],
    is_positive: Bool[Tensor, "N"],
    grid: Float[Tensor, "K"] | None = None,
    side: Literal["above", "below"] | None = None,
) -> Cut:
    """The rule with the highest F1; ties go to the earlier row, the lower threshold, then "below".

    Args:
        values: scores of ``N`` texts, one row per way of scoring them.
        is_positive: which texts the rule should pick.
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
            f1_KS = f1_scores(values_N, is_positive, thresholds)[:, columns]
            # numpy's argmax takes the first of equal entries, torch's any.
            place, column = divmod(int(f1_KS.numpy().argmax()), len(columns))
            cuts.append(Cut(row, float(thresholds[place]), bool(columns[column]), float(f1_KS[place, column])))
    if not cuts:
        raise ValueError("no threshold separates the texts: they all have the same score, got one distinct value")
    return max(cuts, key=lambda cut: cut.f1)


def f1_scores(
    values: Float[Tensor, "N"], is_positive: Bool[Tensor, "N"], thresholds: Float[Tensor, "K"]
) -> Float[Tensor, "K 2"]:
    """F1 of picking what is below (first column) and above (second) every threshold, both strictly."""
    ordered, order = values.sort()
    hits = functional.pad(is_positive[order].cumsum(0), (1, 0))
    below, not_above = (torch.searchsorted(ordered, thresholds, right=right) for right in (False, True))
    total = hits[-1]
    f1_below = 2 * hits[below] / (below + total)
    f1_above = 2 * (total - hits[not_above]) / (len(ordered) - not_above + total)
    return torch.stack([f1_below, f1_above], dim=-1)


def midpoints(values: Float[Tensor, "N"]) -> Float[Tensor, "K"]:
    """Thresholds half-way between neighbouring values: every way to split them, once."""
    distinct = values.unique()
    return (distinct[1:] + distinct[:-1]) / 2
