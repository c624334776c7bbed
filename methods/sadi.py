"""SADI: scale the few elements that tell wanted from unwanted completions, each by the prompt's own activation."""

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
    Subject,
    Where,
    shared,
)


@dataclass(frozen=True, eq=False)
class ScaleClean(Edit):
    """At the prompt's last token, put ``factor * clean`` in place of the chosen elements."""

    clean: Float[Tensor, "B D"]
    factor: Float[Tensor, "B"]
    chosen: Bool[Tensor, "B D"]
    whole: bool = shared(default=False)
    """Also put the clean values in place of all other elements."""

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Set the chosen elements; the others stay what earlier edits have made of them."""
        if not where.prefill:
            return h, carry
        scaled = torch.where(self.chosen, self.factor[:, None].to(self.clean) * self.clean, self.clean)[:, None].to(h)
        new = scaled if self.whole else torch.where(self.chosen[:, None], scaled, h)
        return where.keep(new.expand_as(h), h, "last_prompt"), carry


@dataclass(frozen=True, kw_only=True)
class SADI(Method):
    """Multiply ``k`` elements of the last prompt token by ``1 + strength``, starting from the prompt's clean values.

    An element is an attention head, a neuron of the MLP, or a unit of the hidden state. Those are chosen, over all
    layers, whose activation rises most, on average, from the unwanted to the wanted completion. What is scaled is the
    activation that the prompt has without any steering, so later layers do not react to earlier edits there.

    Source:
        "Semantics-Adaptive Activation Intervention", ICLR 2025, arXiv 2410.12299, section 3, and its public code.
        Deviations: neurons are read behind the product of gate and projection, where they enter the down projection
        (behind the gate alone there): scaling is the same, the ranking need not be; elements are ranked per group of
        pairs; completions are generated or scored freely, where the released evaluation runs the model over question
        *and* right answer. ``released_factor`` multiplies by ``strength`` alone, as the code does;
        ``released_write_back`` also sets every other element of the stream to its clean value, in all layers.

    Parameters:
        k: whole number from 1; elements over all layers (1 to 10 heads, 3 to 500 neurons, 1 to 20 units there).
        strength: delta in the paper, 5 to 90 there; 0 changes nothing.

    Steers:
        ``stream`` of every layer with a chosen element, at the last prompt token.

    Requires:
        Contrast pairs, some 150 in the paper.

    Access:
        Pairs of the training split.

    Artifact:
        ``score``, ``rank`` (from 0 = scaled first): groups x layers x elements; ``groups``: names as JSON bytes.

    Fidelity:
        Checked against the authors' values: scores, chosen heads, neurons and units, edit.
    """

    requires: ClassVar = frozenset({"pairs"})
    access: ClassVar = frozenset({Access.PAIRS})

    stream: Literal["heads", "neurons", "block"] = "heads"
    released_factor: bool = False
    released_write_back: bool = False
    k: float | Range = Range(low=1, high=50, default=6, log=True, integer=True)
    strength: float | Range = Range(low=0.1, high=20.0, default=2.0, log=True)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and a number of elements that the model does not have."""
        super().check(layout)
        layout.check_stream("stream", self.stream)
        per_layer = layout.num_heads if self.stream == "heads" else layout.site_width(Site(0, self.stream))
        directions.check_count("k", self.k, layout.num_layers * per_layer)

    def null(self, layout: Layout) -> Parameters:
        """A factor of 1."""
        return self.defaults(layout) | {"strength": 1.0 if self.released_factor else 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Rank all elements by their mean rise; a head's is the mean over its units."""
        groups = directions.grouped(data.pairs)
        prompts, sites = [pair.prompt for pair in data.pairs], directions.every_layer(subject, self.stream)
        positive, negative = (
            subject.capture(prompts, completions, sites, tokens="completion", pool="last")
            for completions in ([pair.positive for pair in data.pairs], [pair.negative for pair in data.pairs])
        )

        rise = torch.stack([positive[site] - negative[site] for site in sites], 1)
        if self.stream == "heads":
            rise = rise.unflatten(-1, (subject.layout.num_heads, -1)).mean(-1)

        scores = [rise[rows].mean(0) for rows in groups.values()]
        return {
            "score": torch.stack(scores),
            "rank": torch.stack([directions.ranks(score) for score in scores]),
            "groups": directions.encoded_names(list(groups)),
        }

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``group`` (B) and ``clean`` (B x layers x width), the un-steered last prompt token."""
        sites = directions.every_layer(subject, self.stream)
        states = subject.capture([example.question for example in examples], None, sites, tokens="last_prompt")
        clean = torch.stack([states[site] for site in sites], 1)
        return {"group": directions.group_rows(artifact, examples), "clean": clean}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per layer that holds an element chosen by some row; at every layer if all are written back."""
        clean, factor = condition["clean"], parameters["strength"] + (0.0 if self.released_factor else 1.0)
        chosen = artifact["rank"][condition["group"]] < parameters["k"].round()[:, None, None]
        chosen = chosen & (factor != 1)[:, None, None]
        chosen = chosen.repeat_interleave(clean.shape[-1] // chosen.shape[-1], -1)
        edits = {}
        for layer in range(clean.shape[1]):
            if self.released_write_back or bool(chosen[:, layer].any()):
                edit = ScaleClean(clean[:, layer], factor, chosen[:, layer], self.released_write_back)
                edits[Site(layer, self.stream)] = edit
        return Intervention(edits=edits)
