"""PID steering: layers as time steps, the distance between two kinds of texts as the error of a controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harness import directions
from harness.types import (
    Access,
    Artifact,
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
)

FLAT = 1e-4
"""A unit whose standard deviation among source or target texts is not above this is left alone, as the authors do."""


@dataclass(frozen=True, kw_only=True)
class PID(Method):
    """Add ``strength * u[layer]`` at every layer; ``u`` is the control signal that drives source texts to the target.

    With ``r[k]`` the difference of mean states (target - source) at layer ``k``,
    ``u[k] = P * r[k] + I * sum of r[j] for j up to k + D * (r[k] - r[k - 1])``. Fitted layer after layer: ``r`` is
    measured while the earlier layers are steered, so ``I`` removes what they left over and ``D`` damps overshooting.

    Source:
        "Activation Steering with a Feedback Controller", 2025, arXiv 2510.04309, section 4, and the authors' releases,
        which differ. ``gains`` 0.9, 0.01, 0.01 are those of the release for jailbreaks (closed form,
        ``error="unit_means"``, ``pooled="last_prompt"``, ``sequential=False``); 1, 0.3, 0.01 those of its sequential
        script (``error="unit_states"``, ``normalise="unit"``). The release for toxicity is 0.7, 0.0035, 0 with
        ``integral="released_scalar"``, ``steered="both"``, ``pooled="all"``. Deviations: the releases leave the gains
        of the first layer out where they fit sequentially; the release for jailbreaks turns one of the signals into an
        axis for Angular Steering instead of adding them all.

    Parameters:
        strength: any sign, 0 changes nothing, 1 is what the fit steered with.

    Steers:
        ``stream`` of ``layers``, on ``tokens`` (default all).

    Requires:
        Source and target texts, unpaired, at least 2 of each.

    Access:
        Texts of the training split.

    Artifact:
        ``control``: steered layers x width; ``layers``: their numbers.

    Fidelity:
        Checked against the authors' values: closed form and sequential fits of all releases, edits.
    """

    requires: ClassVar = frozenset({"texts"})
    access: ClassVar = frozenset({Access.TEXTS})

    gains: tuple[float, float, float] = (0.9, 0.01, 0.01)
    """Of the error, its sum and its change: P, I, D."""
    error: Literal["states", "unit_states", "unit_means"] = "states"
    """Difference of mean states; of mean states of length 1; or of these means, brought to length 1."""
    integral: Literal["inclusive", "earlier", "released_scalar"] = "inclusive"
    """Sum up to this layer; sum of the layers before it; or this layer's error plus ONE number, the mean over all
    layers before it and all their units, which is what the release for toxicity computes."""
    normalise: Literal["none", "unit", "activation"] = "none"
    """Length of every layer's signal: as it is; 1; the source texts' mean norm there."""
    sequential: bool = True
    """Fit every layer with the earlier ones already steered; otherwise all at once."""
    steered: Literal["source", "both"] = "source"
    """Texts that a sequential fit steers."""
    stream: Stream = "block"
    layers: tuple[int, ...] | None = None
    """None takes all."""
    tokens: Tokens = "all"
    pooled: Tokens = "after_first"
    """Tokens of a text whose mean is its state."""
    raw: bool = True
    """Take texts as they are; false: as prompts in the run's template."""
    strength: float | Range = Range(low=0.0, high=2.0, default=1.0)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and layers that the model lacks."""
        super().check(layout)
        for layer in self.layers or ():
            layout.check_layer("layers", layer)

    def null(self, layout: Layout) -> Parameters:
        """No signal at any layer."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """One control signal per layer.

        Raises:
            ValueError: fewer than two source or two target texts.
        """
        if min(len(data.source), len(data.target)) < 2:
            counts = f"{len(data.source)} and {len(data.target)}"
            raise ValueError(f"pid needs at least 2 source and 2 target texts, got {counts}")

        sites = [Site(n, self.stream) for n in sorted(self.layers or range(subject.layout.num_layers))]
        signals: dict[Site, Tensor] = {}
        plain_target = self._states(subject, data.target, sites, {})

        for place, site in enumerate(sites):
            reached, steered = sites[: place + 1], signals if self.sequential else {}
            source = self._states(subject, data.source, reached, steered)
            target = plain_target
            if self.steered == "both" and steered:
                target = self._states(subject, data.target, reached, steered)
            errors = torch.stack([self.difference(source[s], target[s]) for s in reached])
            signal = self.signal(errors) * moving(source[site], target[site])
            signals[site] = self._scaled(signal, source[site])
        return {
            "control": torch.stack(list(signals.values())),
            "layers": torch.tensor([site.layer for site in sites]),
        }

    def difference(self, source: Float[Tensor, "N D"], target: Float[Tensor, "M D"]) -> Float[Tensor, "D"]:
        """The error at one layer."""
        if self.error == "states":
            return directions.mean_difference(target, source)
        means = [directions.unit(states).mean(0) for states in (target, source)]
        if self.error == "unit_means":
            means = [directions.unit(mean) for mean in means]
        return means[0] - means[1]

    def signal(self, errors: Float[Tensor, "K D"]) -> Float[Tensor, "D"]:
        """The control signal of the last of these layers."""
        p, i, d = self.gains
        error, earlier = errors[-1], errors[:-1]
        change = error - earlier[-1] if len(earlier) else torch.zeros_like(error)
        match self.integral:
            case "inclusive":
                total = errors.sum(0)
            case "earlier":
                total = earlier.sum(0)
            case "released_scalar":
                total = earlier.mean() + error if len(earlier) else torch.zeros_like(error)
        return p * error + i * total + d * change

    def _scaled(self, signal: Float[Tensor, "D"], source: Float[Tensor, "N D"]) -> Float[Tensor, "D"]:
        match self.normalise:
            case "none":
                return signal
            case "unit":
                return directions.unit(signal)
            case "activation":
                return directions.unit(signal) * source.norm(dim=-1).mean()

    def _states(
        self, subject: Subject, texts: Sequence[str], sites: Sequence[Site], signals: Mapping[Site, Tensor]
    ) -> dict[Site, Float[Tensor, "N D"]]:
        steered = self._steered(signals, torch.ones(len(texts))) if signals else None
        return subject.capture(texts, None, sites, tokens=self.pooled, intervention=steered, raw=self.raw)

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One addition at every fitted layer."""
        sites = [Site(layer, self.stream) for layer in artifact["layers"].tolist()]
        return self._steered(dict(zip(sites, artifact["control"], strict=True)), parameters["strength"])

    def _steered(self, signals: Mapping[Site, Tensor], strength: Float[Tensor, "B"]) -> Intervention:
        rows = {site: strength.to(signal.device)[:, None] * signal for site, signal in signals.items()}
        return Intervention({site: directions.AddVector(row, self.tokens) for site, row in rows.items()})


def moving(source: Float[Tensor, "N D"], target: Float[Tensor, "M D"]) -> Bool[Tensor, "D"]:
    """Units that vary among the texts of both kinds."""
    return (source.std(0) > FLAT) & (target.std(0) > FLAT)
