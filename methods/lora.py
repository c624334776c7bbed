"""LoRA on the attention's output projection, as an edit: a low-rank map from the heads to the attention's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harness import directions
from harness.concepts import ConceptMethod
from harness.text_learner import TextLearner, per_group
from harness.training import Part, Training
from harness.types import (
    Artifact,
    Carry,
    Demonstration,
    Edit,
    FitData,
    Intervention,
    Layout,
    Probe,
    Range,
    Site,
    Subject,
    Where,
)


@dataclass(frozen=True, kw_only=True)
class LoRA(ConceptMethod):
    """Add ``strength * alpha / rank * up @ down @ heads`` to the attention's output in several layers.

    ``heads`` is what enters the output projection ``W``, so this is the model with ``W + strength * alpha / rank * up @
    down`` in its place, but with matrices and a strength of its own for every row of a batch. ``up`` starts at zero and
    ``down`` at random; both are learnt per group by the language-model loss on the completions.

    Source:
        Hu et al. 2022, arXiv 2106.09685, section 4; in the setting of Wu et al. 2025 (AxBench), arXiv 2501.17148: rank
        4, alpha 32, ``o_proj`` of four layers (5, 10, 15, 20 of Gemma-2-2B's 26; 12, 20, 31, 39 of the 9B's 42).
        Deviations: all groups learn side by side in the same steps; no dropout; ``layers`` null takes the layers at
        20, 40, 60 and 80 % of the depth.

    Parameters:
        strength: 0 changes nothing, 1 is the model that was trained; others stretch the update.

    Steers:
        The attention's output in ``layers``, at all tokens.

    Requires:
        Demonstrations, wanted ones in every group.

    Access:
        Training texts and which of them are wanted.

    Artifact:
        ``down``: groups x layers x rank x heads' width; ``up``: groups x layers x width x rank, with ``alpha / rank``
        in it; ``layers``: layers; ``groups``: names as JSON bytes.

    Fidelity:
        Paper formulas; equal to merged weights, by test. There are no values of the authors' code to compare with.
    """

    layers: tuple[int, ...] | None = None
    """Counted from 0; None takes four, spread over the depth."""
    rank: int = 4
    alpha: float = 32.0
    texts: Literal["wanted", "all"] = "wanted"
    """What it learns to write."""
    training: Training = field(default_factory=Training)
    strength: float | Range = Range(low=0.0, high=2.0, default=1.0)

    def check(self, layout: Layout) -> None:
        """Refuse layers that the model lacks and a rank that is none."""
        super().check(layout)
        layout.check_stream("stream", "heads")  # what enters the projection that it updates
        directions.chosen_layers(layout, self.layers)
        if not 1 <= self.rank <= layout.width:
            raise ValueError(f"rank must be from 1 to {layout.width}, got {self.rank}")

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Learn one pair of matrices per group and layer."""
        texts = [text for text in data.demonstrations if text.wanted or self.texts == "all"]
        learner = LowRankLearner(subject, texts, directions.chosen_layers(subject.layout, self.layers), self)
        learner.learn(self.training, "lora")
        return {
            "down": learner.down.detach(),
            "up": learner.up.detach() * (self.alpha / self.rank),
            "layers": torch.tensor(learner.layers),
            "groups": directions.encoded_names(learner.names),
        }

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """A probe at the heads and an edit at the attention's output of every layer."""
        group, strength = condition["group"], parameters["strength"]
        up = strength[:, None, None, None] * artifact["up"][group]
        return low_rank(artifact["layers"].tolist(), artifact["down"][group], up)


def low_rank(layers: Sequence[int], down: Float[Tensor, "B L R H"], up: Float[Tensor, "B L D R"]) -> Intervention:
    """The update ``up @ down @ heads`` in every layer, with matrices of its own for each row."""
    edits: dict[Site, Edit] = {
        Site(layer, "attention"): AddLowRank(down[:, place], up[:, place]) for place, layer in enumerate(layers)
    }
    return Intervention(edits, {Site(layer, "heads"): RememberHeads() for layer in layers})


def _key(where: Where) -> str:
    return f"lora/{where.site.layer}"


@dataclass(frozen=True, eq=False)
class RememberHeads(Probe):
    """Puts the heads' states of this pass where the edit of the same layer finds them."""

    def read(self, h: Float[Tensor, "B T H"], where: Where, carry: Carry) -> Carry:
        """The carry with the states, until the edit takes them out."""
        return {**carry, _key(where): h}


@dataclass(frozen=True, eq=False)
class AddLowRank(Edit):
    """``h + up @ down @ heads``, computed in float32 at least."""

    down: Float[Tensor, "B R H"]
    up: Float[Tensor, "B D R"]

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Add the update, and take the heads' states out of the carry: the next pass has others."""
        dtype = torch.promote_types(h.dtype, torch.float32)
        heads = carry[_key(where)].to(dtype)
        update = heads @ self.down.to(dtype).mT @ self.up.to(dtype).mT
        left = {key: value for key, value in carry.items() if key != _key(where)}
        return where.keep(h + update.to(h.dtype), h), left


class LowRankLearner(TextLearner):
    """``down`` (groups x layers x rank x heads' width), random, and ``up`` (groups x layers x width x rank), zero."""

    def __init__(self, subject: Subject, texts: Sequence[Demonstration], layers: Sequence[int], method: LoRA) -> None:
        super().__init__(subject, texts)
        self.layers, self.factor = list(layers), method.alpha / method.rank
        layout, generator = subject.layout, torch.Generator().manual_seed(method.training.seed)
        width = layout.site_width(Site(0, "heads"))
        start = (2 * torch.rand(len(layers), method.rank, width, generator=generator) - 1) / width**0.5
        self.down = per_group(start.to(subject.device), len(self.names))
        zeros = torch.zeros(len(layers), layout.width, method.rank, device=subject.device)
        self.up = per_group(zeros, len(self.names))

    def loss(self, part: Part) -> Float[Tensor, ""]:
        """The language-model loss under the update."""
        groups = self.groups_of(part)
        update = low_rank(self.layers, self.down[groups], self.factor * self.up[groups])
        return self.language_loss(part, self.pass_over(part, update))
