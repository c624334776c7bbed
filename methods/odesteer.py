"""ODESteer: follow the slope of a learnt log-density ratio, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness import directions
from harness.types import (
    Access,
    Artifact,
    Carry,
    Edit,
    Example,
    FitData,
    Intervention,
    Layout,
    Method,
    Parameters,
    Range,
    Site,
    Stream,
    Subject,
    Tokens,
    Where,
    shared,
)


@dataclass(frozen=True, eq=False)
class Sketch:
    """Random polynomial features of a state's direction (Pham and Pagh 2013, tensor sketch).

    Inner products of features approximate ``(gamma * cosine + constant) ** degree``.
    """

    index: Int[Tensor, "P E"]
    """Where each input lands, for each factor of the polynomial; the last input is the constant."""
    sign: Int[Tensor, "P E"]
    size: int
    gamma: float = 0.1
    constant: float = 1.0

    @classmethod
    def draw(cls, width: int, size: int, degree: int, seed: int, gamma: float, constant: float) -> Sketch:
        """Random places and signs."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.randint(0, size, (degree, width + 1), generator=generator)
        sign = 2 * torch.randint(0, 2, (degree, width + 1), generator=generator) - 1
        return cls(index, sign, size, gamma, constant)

    def features(self, x: Float[Tensor, "M D"]) -> Float[Tensor, "M F"]:
        """The features of ``x / |x|``."""
        return torch.fft.irfft(self._spectra(x).prod(0), self.size)

    def slope(self, x: Float[Tensor, "M D"], weight: Float[Tensor, "M F"]) -> Float[Tensor, "M D"]:
        """Gradient of ``weight . features(x)`` with respect to ``x``, one weight for each state."""
        spectra, reading = self._spectra(x), torch.fft.rfft(weight)
        total = torch.zeros_like(x)
        for factor, (index, sign) in enumerate(zip(self.index, self.sign, strict=True)):
            others = torch.cat([spectra[:factor], spectra[factor + 1 :]]).prod(0)
            correlation = torch.fft.irfft(others.conj() * reading, self.size)
            total = total + (correlation[:, index] * sign)[:, :-1]

        # Back through x / |x|: what points along x only makes it longer, which features do not see.
        norm = x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        direction = x / norm
        along = (total * direction).sum(-1, keepdim=True)
        return self.gamma**0.5 * (total - along * direction) / norm

    def _spectra(self, x: Float[Tensor, "M D"]) -> Tensor:
        scaled = self.gamma**0.5 * x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        inputs = torch.cat([scaled, torch.full_like(x[:, :1], self.constant**0.5)], -1)
        pairs = zip(self.index, self.sign, strict=True)
        empty = inputs.new_zeros(len(x), self.size)
        return torch.stack([torch.fft.rfft(empty.index_add(1, index, inputs * sign)) for index, sign in pairs])


@dataclass(frozen=True, eq=False)
class Ascent(Edit):
    """Euler steps of equal length along the slope, ``length`` in all, for the chosen tokens alone."""

    weight: Float[Tensor, "B F"]
    length: Float[Tensor, "B"]
    sketch: Sketch = shared()
    steps: int = shared(default=10)
    tokens: Tokens = shared(default="predicting")

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Move every chosen token uphill."""
        chosen, row = where.gather(h, self.tokens), where.rows(self.tokens)
        if not len(row):
            return h, carry
        x = chosen.to(torch.promote_types(h.dtype, torch.float32))
        weight, step = self.weight[row].to(x), (self.length[row] / self.steps)[:, None].to(x)
        for _ in range(self.steps):
            slope = self.sketch.slope(x, weight)
            x = x + step * slope / (slope.norm(dim=-1, keepdim=True) + 1e-10)
        return where.scatter(x, h, self.tokens), carry


@dataclass(frozen=True, kw_only=True)
class ODESteer(Method):
    """Move states along the normalised gradient of a classifier of wanted against unwanted texts, in several steps.

    The classifier is a logistic regression on random polynomial features of a state's direction; its log-odds are the
    log-ratio of the two densities up to a constant. The step direction follows the state, where an added vector is the
    same for all.

    Source:
        "ODESteer", ICLR 2026, arXiv 2602.17560, section 4, and the authors' code: Euler steps, 8,000 features of degree
        2, gamma 0.1, constant 1. Deviations: the gradient is written out (and right; the authors' batch path lacks a
        constant factor, which the normalisation hides); a layer is chosen by search; ``normalise="none"`` is the
        authors' unit of length.

    Parameters:
        layer: counted from 0; the layer that is steered, free per row.
        strength: length of the way (T in the paper, 5 there), 0 changes nothing, negative goes downhill. A share of the
            layer's mean activation norm, or with ``normalise="none"`` in units of the hidden state.

    Steers:
        ``stream`` of one layer, on ``tokens``: "predicting", the last position of every forward pass, as the authors.

    Requires:
        Contrast pairs in every group.

    Access:
        Pairs of the training split.

    Artifact:
        ``weight``: groups x layers x features; ``norm``: layers; ``index``, ``sign``: degree x (width + 1), the random
        features; ``groups``: names as JSON bytes.

    Fidelity:
        Checked against the authors' values: features, regression, gradient, steps.
    """

    requires: ClassVar = frozenset({"pairs"})
    access: ClassVar = frozenset({Access.PAIRS})

    components: int = 8000
    """Number of features."""
    degree: int = 2
    gamma: float = 0.1
    constant: float = 1.0
    steps: int = 10
    normalise: Literal["activation", "none"] = "activation"
    stream: Stream = "block"
    tokens: Tokens = "predicting"
    seed: int = 0
    """Draws the features."""
    layer: float | Range = Range(low=0, high=None, default=0.5, integer=True)
    strength: float | Range = Range(low=0.0, high=0.6, default=0.2)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and layers that the model lacks."""
        super().check(layout)
        layout.check_layer("layer", self.layer)
        for name in ("components", "degree", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.gamma <= 0 or self.constant < 0:
            raise ValueError(f"gamma must be above 0 and constant at least 0, got {self.gamma} and {self.constant}")

    def null(self, layout: Layout) -> Parameters:
        """No step."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """One regression per group and layer."""
        groups = directions.grouped(data.pairs)
        prompts = [pair.prompt for pair in data.pairs]
        positive = self._extract(subject, prompts, [pair.positive for pair in data.pairs])
        negative = self._extract(subject, prompts, [pair.negative for pair in data.pairs])

        width = positive.shape[-1]
        sketch = Sketch.draw(width, self.components, self.degree, self.seed, self.gamma, self.constant)
        weights = [
            torch.stack([density_ratio(sketch, positive[rows, n], negative[rows, n]) for n in range(positive.shape[1])])
            for rows in groups.values()
        ]
        return {
            "weight": torch.stack(weights),
            "norm": torch.cat([positive, negative]).norm(dim=-1).mean(0),
            "index": sketch.index,
            "sign": sketch.sign,
            "groups": directions.encoded_names(list(groups)),
        }

    def _extract(self, subject: Subject, prompts: Sequence[str], completions: Sequence[str]) -> Float[Tensor, "N L D"]:
        sites = directions.every_layer(subject, self.stream)
        states = subject.capture(prompts, completions, sites, tokens="completion", pool="last")
        return torch.stack([states[site] for site in sites], 1).cpu()

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``group`` (B): which group's regression each row follows."""
        return {"group": directions.group_rows(artifact, examples)}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per layer that some row asks for; rows of other layers go no way there."""
        sketch = Sketch(artifact["index"], artifact["sign"], artifact["weight"].shape[-1], self.gamma, self.constant)
        layers = parameters["layer"].round().long()
        edits = {}
        for layer in layers.unique().tolist():
            length = torch.where(layers == layer, parameters["strength"], 0.0)
            if self.normalise == "activation":
                length = length * artifact["norm"][layer]
            weight = artifact["weight"][condition["group"], layer]
            edits[Site(layer, self.stream)] = Ascent(weight, length, sketch, self.steps, self.tokens)
        return Intervention(edits=edits)


def density_ratio(sketch: Sketch, positive: Float[Tensor, "N D"], negative: Float[Tensor, "M D"]) -> Float[Tensor, "F"]:
    """Weights of a logistic regression (L2 penalty 1) on the features; its constant does not change the slope."""
    from sklearn.linear_model import LogisticRegression  # here, because reading scores must not load it

    features = sketch.features(torch.cat([positive, negative]).double()).numpy()
    labels = [True] * len(positive) + [False] * len(negative)
    return torch.from_numpy(LogisticRegression(max_iter=1000).fit(features, labels).coef_[0])
