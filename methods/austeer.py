"""AUSteer: rescale the few scalar units whose change agrees most often across contrast pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

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
    Parameters,
    Range,
    Site,
    Subject,
    Tokens,
)


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

    Steers:
        ``stream`` of every layer that has a chosen unit ("block", "mlp" or "heads", the input of the attention's output
        projection, whose width may differ from the model's), on ``tokens`` (all, prompt too, as the authors).

    Requires:
        Contrast pairs, any number; more give finer shares.

    Access:
        Pairs of the training split.

    Artifact:
        ``coefficient``: groups x layers x width, -1 to 1; ``rank``: the same shape, from 0 = edited first;
        ``groups``: their names as JSON bytes.

    Fidelity:
        Checked against the authors' values: coefficients, chosen units (ties to the lower layer, then the lower unit),
        edit.
    """

    requires: ClassVar = frozenset({"pairs"})
    access: ClassVar = frozenset({Access.PAIRS})

    stream: Literal["block", "mlp", "heads"] = "mlp"
    tokens: Tokens = "all"
    precision: Literal["float16", "float32"] = "float16"
    """Activations are rounded to this before they are compared: in float16, as the authors, small changes vanish."""
    k: float | Range = Range(low=1, high=100, default=16, log=True, integer=True)
    strength: float | Range = Range(low=0.5, high=200.0, default=8.0, log=True)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and a number of units that the model does not have."""
        super().check(layout)
        units = layout.num_layers * layout.site_width(Site(0, self.stream))
        directions.check_count("k", self.k, units)

    def null(self, layout: Layout) -> Parameters:
        """Factors of 1."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Count, for every unit, how many pairs agree on the way it moves."""
        groups = directions.grouped(data.pairs)
        prompts = [pair.prompt for pair in data.pairs]
        moved = self._extract(subject, prompts, [pair.positive for pair in data.pairs])
        moved -= self._extract(subject, prompts, [pair.negative for pair in data.pairs])
        coefficients = [directions.sign_agreement(moved[rows]) for rows in groups.values()]
        return {
            "coefficient": torch.stack(coefficients),
            "rank": torch.stack([directions.ranks(coefficient.abs()) for coefficient in coefficients]),
            "groups": directions.encoded_names(list(groups)),
        }

    def _extract(self, subject: Subject, prompts: Sequence[str], completions: Sequence[str]) -> Float[Tensor, "N L D"]:
        sites = directions.every_layer(subject, self.stream)
        states = subject.capture(prompts, completions, sites, tokens="completion", pool="last")
        return torch.stack([states[site] for site in sites], 1).to(getattr(torch, self.precision)).float()

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``group`` (B): which group's coefficients each row uses."""
        return {"group": directions.group_rows(artifact, examples)}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per layer that holds a unit chosen by some row."""
        group, k, strength = condition["group"], parameters["k"].round()[:, None], parameters["strength"][:, None]
        first = artifact["rank"].amin((0, 2))
        edits = {}
        for layer in (first < k.max()).nonzero().flatten().tolist():
            chosen = artifact["rank"][group, layer] < k
            factor = torch.where(chosen, strength * artifact["coefficient"][group, layer], 0.0)
            edits[Site(layer, self.stream)] = directions.Rescale(factor=factor, tokens=self.tokens)
        return Intervention(edits=edits)
