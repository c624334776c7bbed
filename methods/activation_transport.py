"""Mean-AcT, Linear-AcT and Gaussian-AcT: every unit is moved along a one-dimensional transport map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from harness.types import (
    Access,
    Artifact,
    Carry,
    Edit,
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

Transport = Literal["mean", "linear", "gaussian"]
Line = dict[str, Float[Tensor, "D"]]
FLOW: tuple[Stream, ...] = get_args(Stream)
"""The order in which a forward pass reaches the streams of one block."""
FLAT = 1e-4
"""A unit with a standard deviation up to this is left alone by the mean and Gaussian maps."""


@dataclass(frozen=True, eq=False)
class TransportEdit(Edit):
    """``h + strength * (gain * h + shift)`` on the units that lie strictly between ``low`` and ``high``."""

    strength: Float[Tensor, "B"]
    gain: Float[Tensor, "D"] = shared()
    shift: Float[Tensor, "D"] = shared()
    low: Float[Tensor, "D"] = shared()
    high: Float[Tensor, "D"] = shared()
    tokens: Tokens = "all"

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Move every unit inside its support towards the target, in float32 at least."""
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        moved = x + self.strength[:, None, None].to(x) * torch.addcmul(self.shift.to(x), self.gain.to(x), x)
        inside = (x > self.low.to(x)) & (x < self.high.to(x))
        return where.keep(torch.where(inside, moved.to(h.dtype), h), h, self.tokens), carry


def fit_line(
    source: Float[Tensor, "N D"], target: Float[Tensor, "M D"], kind: Transport, support: tuple[float, float] | None
) -> Line:
    """The line of each unit that carries the source sample to the target sample, less the identity.

    Args:
        source: pooled activations to move, at least two.
        target: pooled activations to reach, at least two.
        kind: ``mean`` shifts by the difference of means; ``gaussian`` matches mean and standard deviation (n - 1);
            ``linear`` is the least-squares line through the sorted first ``min(N, M)`` of both samples.
        support: percentiles of the source (0 to 100) between which a unit is moved; None moves it everywhere.

    Returns:
        ``gain`` (slope - 1) and ``shift``, both 0 for units without a spread to fit, and the bounds ``low``, ``high``.
    """
    count = min(len(source), len(target))
    x_ND, y_ND = source.double(), target.double()

    if kind == "linear":
        x_ND, y_ND = x_ND[:count].sort(0).values, y_ND[:count].sort(0).values
        slope, fits = _least_squares_slope(x_ND, y_ND), x_ND[0] < x_ND[-1]
    else:
        fits = (x_ND.std(0) > FLAT) & (y_ND.std(0) > FLAT)
        slope = y_ND.std(0) / x_ND.std(0) if kind == "gaussian" else torch.ones_like(x_ND[0])

    slope = torch.where(fits, slope, 1.0)
    shift = torch.where(fits, y_ND.mean(0) - slope * x_ND.mean(0), 0.0)
    low, high = _support(x_ND, support)
    return {"gain": (slope - 1).float(), "shift": shift.float(), "low": low.float(), "high": high.float()}


def _least_squares_slope(x_ND: Float[Tensor, "N D"], y_ND: Float[Tensor, "N D"]) -> Float[Tensor, "D"]:
    x_ND = x_ND - x_ND.mean(0)
    return (x_ND * y_ND).sum(0) / x_ND.square().sum(0)


def _support(x_ND: Float[Tensor, "N D"], percentiles: tuple[float, float] | None) -> Float[Tensor, "2 D"]:
    if percentiles is None:
        return x_ND.new_tensor([[-torch.inf], [torch.inf]]).expand(2, x_ND.shape[1])
    return x_ND.quantile(x_ND.new_tensor(percentiles) / 100, dim=0)


@dataclass(frozen=True, kw_only=True)
class ActivationTransport(Method):
    """Transport each unit's activations from a source to a target distribution, site after site.

    Source:
        Rodriguez et al. 2024, "Controlling Language and Diffusion Models by Transporting Activations", arXiv
        2410.23054, section 3. Deviations: the authors hook the layer norms that follow a block, ``streams`` names
        places that every decoder has (nearest to theirs: ``attention`` and ``mlp``); their code adds noise of 1e-8 to
        the source before the linear fit, here the fit is deterministic and units that are constant in the source are
        left alone; the first token, huge at places without a norm, is left out of the means (``pooled="all"`` is the
        authors' mean); for the linear map, which pairs sorted samples, unequal ones are cut to the first ``min(N, M)``
        texts rather than subsampled at random; without clipping the bounds are infinite rather than 1e6; fits run in
        float64.

    Parameters:
        strength: the paper's lambda, from 0 (identity) to 1 (full transport). The fit always steers with 1.

    Steers:
        ``streams`` of ``layers``, on ``tokens`` (default all).

    Requires:
        Source and target texts, unpaired, at least 2 of each; in the sequential fit both are steered at the earlier
        sites, as in the authors' code.

    Access:
        Texts of the training split.

    Artifact:
        ``<stream>.gain``, ``.shift``, ``.low``, ``.high``: fitted layers x width, for each stream.

    Fidelity:
        Maps, clipping, skipped units, pooling and sequential fit agree with values of the authors' code; the sites are
        adapted.
    """

    version: ClassVar[int] = 2
    requires: ClassVar = frozenset({"texts"})
    access: ClassVar = frozenset({Access.TEXTS})

    kind: Transport = "linear"
    streams: tuple[Stream, ...] = ("block",)
    layers: tuple[int, ...] | None = None
    """None takes all."""
    sequential: bool = True
    """Fit each site with the earlier ones already steered; otherwise all at once."""
    support: tuple[float, float] | None = (0.0, 100.0)
    """Percentiles of the source strictly between which a unit is moved; None moves it everywhere."""
    tokens: Tokens = "all"
    pooled: Tokens = "after_first"
    """Tokens of a text whose mean is fitted."""
    strength: float | Range = Range(low=0.0, high=1.0, default=1.0)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings, layers that the model lacks and an empty support."""
        super().check(layout)
        if not self.streams or not set(self.streams) <= set(FLOW):
            raise ValueError(f"streams must be some of {', '.join(FLOW)}, got {list(self.streams)}")
        if self.support is not None and not 0 <= self.support[0] < self.support[1] <= 100:
            raise ValueError(f"support must be two rising percentiles from 0 to 100, got {list(self.support)}")
        for layer in self.layers or ():
            layout.check_layer("layers", layer)

    def null(self, layout: Layout) -> Parameters:
        """Nothing is moved at strength 0."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """One line per unit and site, in the order in which a forward pass reaches the sites.

        Raises:
            ValueError: fewer than two source or two target texts.
        """
        if min(len(data.source), len(data.target)) < 2:
            counts = f"{len(data.source)} and {len(data.target)}"
            raise ValueError(f"activation transport needs at least 2 source and 2 target texts, got {counts}")

        sites = self._sites(subject.layout)
        stages = [[site] for site in sites] if self.sequential else [sites]
        lines: dict[Site, Line] = {}
        for stage in stages:
            source, target = (self._responses(subject, texts, stage, lines) for texts in (data.source, data.target))
            lines |= {site: fit_line(source[site], target[site], self.kind, self.support) for site in stage}

        artifact: Artifact = {}
        for stream in self.streams:
            own = [lines[site] for site in sites if site.stream == stream]
            for name in ("gain", "shift", "low", "high"):
                artifact[f"{stream}.{name}"] = torch.stack([line[name] for line in own])
        return artifact

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per fitted site."""
        lines = {}
        for stream in self.streams:
            rows = {name: artifact[f"{stream}.{name}"] for name in ("gain", "shift", "low", "high")}
            for index, layer in enumerate(sorted(self.layers or range(len(rows["gain"])))):
                lines[Site(layer, stream)] = {name: row[index] for name, row in rows.items()}
        return self._steered(lines, parameters["strength"])

    def _sites(self, layout: Layout) -> list[Site]:
        layers = self.layers or range(layout.num_layers)
        return sorted((Site(n, stream) for n in layers for stream in self.streams), key=_flow)

    def _steered(self, lines: Mapping[Site, Line], strength: Float[Tensor, "B"]) -> Intervention:
        edits = {site: TransportEdit(strength=strength, tokens=self.tokens, **line) for site, line in lines.items()}
        return Intervention(edits=edits)

    def _responses(
        self, subject: Subject, texts: Sequence[str], sites: Sequence[Site], lines: Mapping[Site, Line]
    ) -> dict[Site, Float[Tensor, "N D"]]:
        steered = self._steered(lines, torch.ones(len(texts))) if lines else None
        return subject.capture(texts, None, sites, tokens=self.pooled, intervention=steered, raw=True)


def _flow(site: Site) -> tuple[int, int]:
    return site.layer, FLOW.index(site.stream)
