"""One vector per layer from pooled texts, added to the hidden state: CAA, DiffMean, representation engineering."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harness import directions
from harness.concepts import largest_latents
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
    Stream,
    Subject,
    Tokens,
)


@dataclass(frozen=True, kw_only=True)
class SingleVector(Method):
    """Add ``strength * vector[layer]`` to the hidden state, the vector being learnt from contrast pairs.

    Source:
        ``caa``: Rimsky et al. 2024, arXiv 2312.06681. ``diffmean``: a baseline of Wu et al. 2025 (AxBench), arXiv
        2501.17148, section 4; deviations: completions are read alone and texts weigh the same, where AxBench reads
        prompts too and weighs tokens (`methods.token_vector` does). ``repe``: LAT of Zou et al. 2023, arXiv
        2310.01405, section 3, the first principal component of normalised differences of random pairs, wanted and
        unwanted texts alike; deviations: texts are read at their last token without a stimulus template, the vector
        acts at one layer, where Zou et al. take many, and its sign is set so that wanted texts lie further along.
        ``normalise`` rescales the vectors.

    Parameters:
        layer: whole number from 0; the layer that is steered, free per row.
        strength: any sign, 0 changes nothing, positive steers towards the wanted completions. With
            ``normalise="activation"`` it is a share of the layer's usual activation norm, so that it means the same in
            every layer and model; with "peak" it is like AxBench's factor (relative to the largest token of a held-out
            set there, to the largest pooled training text here), with "groups" or "none" CAA's multiplier.

    Steers:
        ``stream`` of one layer, on ``tokens``: "completion" is CAA's text and first code (strictly after the
        instruction), "predicting" its later code (with the instruction's last token; the default for ``caa``, since
        otherwise the first generated token, and so an A/B letter, could not change), "all" is AxBench's.

    Requires:
        Contrast pairs, at least 2 (4 for LAT) in every group.

    Access:
        Pairs of the training split.

    Artifact:
        ``vector``: groups x layers x width, normalised; ``groups``: their names as JSON bytes.

    Fidelity:
        ``caa``: checked against the authors' values: mean difference, equal norms, both token rules. The others: paper
        formulas on pooled texts.
    """

    requires: ClassVar = frozenset({"pairs"})
    access: ClassVar = frozenset({Access.PAIRS})

    direction: Literal["mean_difference", "pca", "lat"] = "mean_difference"
    sample: Literal["positive", "both"] = "positive"
    """Texts whose main axis PCA and LAT look for; a mean difference always takes both."""
    extract: Literal["answer_letter", "answer_last", "answer_mean", "prompt_last"] = "answer_letter"
    """Last token of the completion without its closing punctuation (the letter of "(A)"); its last token; its mean; or
    the prompt's last token, with the completion placed inside the prompt."""
    normalise: Literal["none", "unit", "groups", "activation", "peak"] = "activation"
    """Nothing; length 1; the mean norm of all groups; the layer's mean activation norm; the largest projection of a
    wanted text (50 if none is positive, as AxBench)."""
    stream: Stream = "block"
    tokens: Tokens = "predicting"
    seed: int = 0
    """Draws LAT's pairs."""
    layer: float | Range = Range(low=0, high=None, default=0.5, integer=True)
    strength: float | Range = Range(low=0.0, high=0.6, default=0.2)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and layers that the model lacks."""
        super().check(layout)
        layout.check_layer("layer", self.layer)

    def null(self, layout: Layout) -> Parameters:
        """No shift at any layer."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Learn one vector per group and layer."""
        groups = directions.grouped(data.pairs)
        positive = self._extract(subject, [(pair.prompt, pair.positive) for pair in data.pairs])
        negative = self._extract(subject, [(pair.prompt, pair.negative) for pair in data.pairs])
        vectors = [self._vectors(positive[rows], negative[rows]) for rows in groups.values()]
        peaks = [positive[rows] for rows in groups.values()]
        norms = torch.cat([positive, negative]).norm(dim=-1).mean(0)
        return {
            "vector": self._normalised(torch.stack(vectors), norms, peaks),
            "groups": directions.encoded_names(list(groups)),
        }

    def _extract(self, subject: Subject, texts: Sequence[tuple[str, str]]) -> Float[Tensor, "N L D"]:
        sites = directions.every_layer(subject, self.stream)
        prompts, completions = [prompt for prompt, _ in texts], [completion for _, completion in texts]
        if self.extract == "prompt_last":
            inside = [f"{prompt}\n{completion}".strip() for prompt, completion in texts]
            states = subject.capture(inside, None, sites, tokens="last_prompt", pool="last")
        else:
            pool = "mean" if self.extract == "answer_mean" else "last"
            if self.extract == "answer_letter":
                completions = [text.rstrip(string.punctuation) or text for text in completions]
            states = subject.capture(prompts, completions, sites, tokens="completion", pool=pool)
        return torch.stack([states[site] for site in sites], 1)

    def _vectors(self, positive: Float[Tensor, "N L D"], negative: Float[Tensor, "N L D"]) -> Float[Tensor, "L D"]:
        if self.direction == "mean_difference":
            return directions.mean_difference(positive, negative)
        return torch.stack([self._axis(positive[:, i], negative[:, i]) for i in range(positive.shape[1])])

    def _axis(self, positive: Float[Tensor, "N D"], negative: Float[Tensor, "N D"]) -> Float[Tensor, "D"]:
        sample = positive if self.sample == "positive" else torch.cat([positive, negative])
        if self.direction == "lat":
            order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(self.seed))
            sample = directions.pair_differences(sample, order)
        if len(sample) < 2:
            raise ValueError(f"{self.direction} needs more contrast pairs in every group, got {len(positive)}")
        return directions.oriented(directions.principal_direction(sample), positive, negative)

    def _normalised(
        self, vectors: Float[Tensor, "G L D"], norms: Float[Tensor, "L"], positive: Sequence[Float[Tensor, "N L D"]]
    ) -> Float[Tensor, "G L D"]:
        match self.normalise:
            case "none":
                return vectors
            case "groups":
                return directions.equal_norms(vectors)
            case "unit":
                return directions.unit(vectors)
            case "activation":
                return directions.unit(vectors) * norms[:, None]
            case "peak":
                axes = directions.unit(vectors)
                peak = torch.stack([(group * axis).sum(-1).amax(0) for group, axis in zip(positive, axes, strict=True)])
                return axes * torch.where(peak > 0, peak, 50.0)[..., None]

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``group`` (B): which group's vector each row uses."""
        return {"group": directions.group_rows(artifact, examples)}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per layer that some row asks for; it leaves the rows of other layers where they are."""
        layers = parameters["layer"].round().long()
        edits = {}
        for layer in layers.unique().tolist():
            strength = torch.where(layers == layer, parameters["strength"], 0.0)
            vector = strength[:, None] * artifact["vector"][condition["group"], layer]
            edits[Site(layer, self.stream)] = directions.AddVector(vector=vector, tokens=self.tokens)
        return Intervention(edits=edits)

    def latents(
        self, subject: Subject, artifact: Artifact, texts: Sequence[tuple[str, str]], groups: Sequence[str]
    ) -> Float[Tensor, "N"]:
        """The largest projection of each text's tokens on its group's direction, at the default layer."""
        layer = int(self.defaults(subject.layout)["layer"])
        axes = directions.unit(artifact["vector"][:, layer])
        group = directions.rows_of_groups(artifact, groups)
        return largest_latents(subject, texts, Site(layer, self.stream), axes, group)
