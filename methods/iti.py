"""ITI: shift the attention heads that tell true from false best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harness import directions
from harness.probes import held_out, train_probes
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
    Subject,
    Tokens,
)


@dataclass(frozen=True, kw_only=True)
class ITI(Method):
    """Add ``strength * sigma * direction`` to the attention heads whose probes separate wanted from unwanted answers.

    Source:
        Li et al. 2023 (Inference-Time Intervention), arXiv 2306.03341, section 3, and its code. Deviations: sigma is
        measured on the labelled answers, not on separate generations; heads of equal accuracy are ranked by layer,
        then head (undefined there); directions are kept in float32 (float16 there); every row of a batch is edited (the
        first one there); held-out questions of the training split validate, no second fold; answers are read in the
        run's chat template (as bare "Q: … A: …" there).

    Parameters:
        heads: whole number from 1; how many heads are shifted (K = 48 of 1,024 in the paper).
        strength: alpha in the paper, 15 there, in standard deviations along the direction; 0 changes nothing.

    Steers:
        The heads' outputs, before the attention's output projection, on ``tokens``: "predicting", the last position of
        every forward pass, as the paper.

    Requires:
        Labelled answers to at least 5 questions, wanted and unwanted in both parts of the split.

    Access:
        Labels of the training split.

    Artifact:
        ``shift``: layers x heads x head width, sigma * direction of length 1; ``rank``: layers x heads, from 0 = best;
        ``accuracy``: layers x heads, 0 to 1, on the held-out questions.

    Fidelity:
        Checked against the authors' values: probe accuracies, chosen heads, directions, both sigmas, edit.
    """

    version: ClassVar[int] = 2
    requires: ClassVar = frozenset({"labelled"})
    access: ClassVar = frozenset({Access.LABELS})

    direction: Literal["mean_difference", "probe"] = "mean_difference"
    sigma: Literal["sample", "population"] = "sample"
    """Standard deviation with n - 1 (the authors' two-fold script) or n (their interventions function)."""
    tokens: Tokens = "predicting"
    holdout: float = 0.2
    """Share of the questions, between 0 and 1, that rank the heads."""
    seed: int = 42
    heads: float | Range = Range(low=1, high=64, default=12, log=True, integer=True)
    strength: float | Range = Range(low=0.5, high=15.0, default=3.0, log=True)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and more heads than the model has."""
        super().check(layout)
        layout.check_stream("stream", "heads")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must be between 0 and 1, got {self.holdout}")
        directions.check_count("heads", self.heads, layout.num_layers * layout.num_heads)

    def null(self, layout: Layout) -> Parameters:
        """No shift of any head."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Train one probe per head, rank the heads on held-out questions, and measure direction and spread on all."""
        if not data.labelled:
            raise ValueError("no labelled answers: the task's training split must offer some for iti")
        prompts, completions, labels = zip(*data.labelled, strict=True)
        sites = directions.every_layer(subject, "heads")
        captured = subject.capture(prompts, completions, sites, tokens="completion", pool="last")
        heads = torch.stack([captured[site] for site in sites], 1)
        heads = heads.unflatten(-1, (subject.layout.num_heads, -1))

        is_wanted = torch.tensor(labels)
        probes = train_probes(heads, is_wanted, held_out(prompts, self.holdout, self.seed), seed=self.seed)
        # The direction and its spread come from all answers, those that ranked the heads too.
        difference = directions.mean_difference(heads[is_wanted], heads[~is_wanted])
        axis = directions.unit(probes.weight if self.direction == "probe" else difference)
        shift = self.spread(heads, axis)[..., None] * axis
        return {"shift": shift, "rank": directions.ranks(probes.accuracy), "accuracy": probes.accuracy}

    def spread(self, heads: Float[Tensor, "N L H W"], axis: Float[Tensor, "L H W"]) -> Float[Tensor, "L H"]:
        """Sigma: standard deviation of the activations along each head's axis."""
        return (heads * axis).sum(-1).std(0, correction=int(self.sigma == "sample"))

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per layer that holds a head chosen by some row."""
        count, strength = parameters["heads"].round()[:, None], parameters["strength"]
        edits = {}
        for layer in (artifact["rank"].amin(1) < count.max()).nonzero().flatten().tolist():
            scale = torch.where(artifact["rank"][layer] < count, strength[:, None], 0.0)
            shift = (scale[..., None] * artifact["shift"][layer]).flatten(1)
            edits[Site(layer, "heads")] = directions.AddVector(vector=shift, tokens=self.tokens)
        return Intervention(edits=edits)
