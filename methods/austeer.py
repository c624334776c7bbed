"""AUSteer: rescale the few scalar units whose change agrees most often across contrast pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from harness import directions
from harness.types import (
    Access,
    Artifact,
    Example,
    FitData,
    Intervention,
    Layout,
    Method,
    Pair,
    Parameters,
    Range,
    Site,
    Subject,
    Tokens,
)

UnitStream = Literal["block", "mlp", "heads"]


@dataclass(frozen=True, kw_only=True)
class AUSteer(Method):
    """Multiply ``k`` units of the whole model by ``1 + strength * coefficient``, each with its own coefficient.

    A unit's coefficient is the share of contrast pairs in which it moves the same way from the unwanted to the wanted
    completion, negative if that way is down. The ``k`` units with the largest shares, over all layers, are edited.

    Source:
        "Fine-Grained Activation Steering", 2026, arXiv 2602.04428, and its public code. Deviations: k and strength are
        searched on a split of their own, where the authors' values look chosen on the evaluated set; coefficients and
        the ``k`` units are those of each group of pairs (one set for all pairs there); a completion always follows its
        prompt (the authors' toxicity pairs use a refusal alone); texts are cut where the model's context ends, not at
        512 tokens.

    Parameters:
        k: whole number from 1; units edited, over all layers. The authors stay at or below 100.
        strength: alpha in the paper, 8 to 100 there; 0 changes nothing. Units with a negative coefficient change sign
            once ``strength * coefficient`` is below -1.
        stream: only with ``searched_streams``: which of them is edited, counted from 0. The authors choose a stream for
            each task.

    Steers:
        ``stream`` of every layer that has a chosen unit ("block", "mlp" or "heads", the input of the attention's output
        projection, whose width may differ from the model's), on ``tokens`` (all, prompt too, as the authors). With
        ``searched_streams``, the one that the search chose.

    Requires:
        Contrast pairs, any number; more give finer shares.

    Access:
        Pairs of the training split.

    Artifact:
        ``coefficient``: groups x layers x width, -1 to 1; ``rank``: the same shape, from 0 = edited first;
        ``groups``: their names as JSON bytes. With ``searched_streams``, the first two for each of them
        (``coefficient.block``, ``rank.block``), because their widths may differ.

    Fidelity:
        Checked against the authors' values: coefficients, chosen units (ties to the lower layer, then the lower unit),
        edit.
    """

    requires: ClassVar = frozenset({"pairs"})
    access: ClassVar = frozenset({Access.PAIRS})

    stream: UnitStream = "mlp"
    searched_streams: tuple[UnitStream, ...] = ()
    """Two or more streams that the search chooses from, in place of ``stream``."""
    tokens: Tokens = "all"
    precision: Literal["float16", "float32"] = "float16"
    """Activations are rounded to this before they are compared: in float16, as the authors, small changes vanish."""
    k: float | Range = Range(low=1, high=100, default=16, log=True, integer=True)
    strength: float | Range = Range(low=0.5, high=200.0, default=8.0, log=True)

    @property
    def streams(self) -> tuple[UnitStream, ...]:
        """The streams whose units may be edited."""
        return self.searched_streams or (self.stream,)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and a number of units that the model does not have."""
        super().check(layout)
        allowed = get_args(UnitStream)
        distinct = set(self.searched_streams)
        if len(distinct) != len(self.searched_streams) or len(distinct) == 1:
            raise ValueError(f"searched_streams: two or more, all unlike, got {list(self.searched_streams)}")
        for stream in self.streams:
            if stream not in allowed:
                raise ValueError(f"searched_streams must be among {', '.join(allowed)}, got {stream!r}")
            directions.check_count("k", self.k, layout.num_layers * layout.site_width(Site(0, stream)))

    def parameters(self, layout: Layout) -> dict[str, float | Range]:
        """``k``, ``strength`` and, where streams are searched, which of them."""
        known = super().parameters(layout)
        if self.searched_streams:
            known["stream"] = Range(low=0, high=len(self.searched_streams) - 1, default=0, integer=True)
        return known

    def null(self, layout: Layout) -> Parameters:
        """Factors of 1."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Count, for every unit, how many pairs agree on the way it moves."""
        groups = directions.grouped(data.pairs)
        artifact: Artifact = {"groups": directions.encoded_names(list(groups))}
        for stream in self.streams:
            moved = self._moved(subject, data.pairs, stream)
            coefficients = [directions.sign_agreement(moved[rows]) for rows in groups.values()]
            artifact[self._named("coefficient", stream)] = torch.stack(coefficients)
            artifact[self._named("rank", stream)] = torch.stack(
                [directions.ranks(coefficient.abs()) for coefficient in coefficients]
            )
        return artifact

    def _named(self, tensor: str, stream: UnitStream) -> str:
        return f"{tensor}.{stream}" if self.searched_streams else tensor

    def _moved(self, subject: Subject, pairs: Sequence[Pair], stream: UnitStream) -> Float[Tensor, "N L D"]:
        """From the unwanted to the wanted completion's last token, every unit of every layer."""
        prompts = [pair.prompt for pair in pairs]
        positive = self._extract(subject, prompts, [pair.positive for pair in pairs], stream)
        return positive - self._extract(subject, prompts, [pair.negative for pair in pairs], stream)

    def _extract(
        self, subject: Subject, prompts: Sequence[str], completions: Sequence[str], stream: UnitStream
    ) -> Float[Tensor, "N L D"]:
        sites = directions.every_layer(subject, stream)
        states = subject.capture(prompts, completions, sites, tokens="completion", pool="last")
        return torch.stack([states[site] for site in sites], 1).to(getattr(torch, self.precision)).float()

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``group`` (B): which group's coefficients each row uses."""
        return {"group": directions.group_rows(artifact, examples)}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per layer that holds a unit chosen by some row."""
        group, k, strength = condition["group"], parameters["k"].round()[:, None], parameters["strength"][:, None]
        edits = {}
        for index, stream in enumerate(self.streams):
            coefficient, rank = (artifact[self._named(tensor, stream)] for tensor in ("coefficient", "rank"))
            edited_units = k  # of each row: none in the streams that the row's trial did not choose
            if self.searched_streams:
                edited_units = torch.where(parameters["stream"].round()[:, None] == index, k, 0.0)

            first = rank.amin((0, 2))
            for layer in (first < edited_units.max()).nonzero().flatten().tolist():
                chosen = rank[group, layer] < edited_units
                factor = torch.where(chosen, strength * coefficient[group, layer], 0.0)
                edits[Site(layer, stream)] = directions.Rescale(factor=factor, tokens=self.tokens)
        return Intervention(edits=edits)
