"""FairSteer: a linear probe decides, token by token, whether a vector is added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harness import directions
from harness.probes import held_out, train_probes
from harness.types import (
    Access,
    Artifact,
    Carry,
    FitData,
    Gate,
    Gated,
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
class UnwantedGate(Gate):
    """Open for tokens that a probe takes for the unwanted kind."""

    weight: Float[Tensor, "D"] = shared()
    bias: Float[Tensor, ""] = shared()

    def open(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Bool[Tensor, "B T 1"], Carry]:
        """1 where the probability of the wanted kind is below one half."""
        wide = torch.promote_types(h.dtype, torch.float32)
        return (h.to(wide) @ self.weight.to(wide) + self.bias.to(wide) < 0)[..., None], carry


@dataclass(frozen=True, kw_only=True)
class FairSteer(Method):
    """Add ``strength * vector`` of one layer to those tokens whose states the layer's probe finds unwanted.

    Source:
        "FairSteer", Findings of ACL 2025, arXiv 2504.14492, section 3, and its public code (biased answers are the
        unwanted kind there). Deviations: probe and vector are learnt from the same labelled answers (two data sets
        there); every row and token decides for itself (row 0 of a batch for all in the code); activations are kept in
        float32 (float16 there); the last layer is read before the final norm (behind it there); a layer is chosen by
        search (the most accurate probe, 13 to 15 of 32, there).

    Parameters:
        layer: counted from 0; the layer that is read and steered, free per row.
        strength: any sign, 0 changes nothing, 1 adds the difference of means (alpha = 1 there).

    Steers:
        ``stream`` of one layer, on ``tokens``: "predicting", the last position of every forward pass, as the authors.

    Requires:
        Labelled answers to at least 2 questions, wanted and unwanted in both parts of the split.

    Access:
        Labels of the training split.

    Artifact:
        ``vector``, ``weight``: layers x width; ``bias``, ``accuracy`` (on held-out questions, 0 to 1): layers.

    Fidelity:
        Checked against the authors' values: vectors, probes and their accuracies, edit.
    """

    requires: ClassVar = frozenset({"labelled"})
    access: ClassVar = frozenset({Access.LABELS})

    stream: Stream = "block"
    tokens: Tokens = "predicting"
    holdout: float = 0.2
    """Share of the questions, between 0 and 1, on which the probes' accuracy is measured."""
    seed: int = 0
    layer: float | Range = Range(low=0, high=None, default=0.5, integer=True)
    strength: float | Range = Range(low=0.0, high=4.0, default=1.0)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and layers that the model lacks."""
        super().check(layout)
        layout.check_layer("layer", self.layer)
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must be between 0 and 1, got {self.holdout}")

    def null(self, layout: Layout) -> Parameters:
        """Nothing is added."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """One probe and one vector per layer."""
        if not data.labelled:
            raise ValueError("no labelled answers: the task's training split must offer some for fairsteer")
        prompts, completions, labels = zip(*data.labelled, strict=True)
        sites = directions.every_layer(subject, self.stream)
        captured = subject.capture(prompts, completions, sites, tokens="completion", pool="last")
        states, is_wanted = torch.stack([captured[site] for site in sites], 1), torch.tensor(labels)

        validation = held_out(prompts, self.holdout, self.seed)
        probes = train_probes(states, is_wanted, validation, seed=self.seed, max_iter=10_000)
        vector = directions.mean_difference(states[is_wanted], states[~is_wanted])
        return {"vector": vector, **probes._asdict()}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One gated addition per layer that some row asks for; rows of other layers are left where they are."""
        layers = parameters["layer"].round().long()
        edits = {}
        for layer in layers.unique().tolist():
            strength = torch.where(layers == layer, parameters["strength"], 0.0)
            addition = directions.AddVector(strength[:, None] * artifact["vector"][layer], self.tokens)
            gate = UnwantedGate(artifact["weight"][layer], artifact["bias"][layer])
            edits[Site(layer, self.stream)] = Gated(addition, gate)
        return Intervention(edits)
