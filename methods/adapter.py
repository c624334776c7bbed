"""Adapters behind whole blocks: a small network reads the residual stream and adds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harness import directions
from harness.concepts import ConceptMethod
from harness.low_rank import Bottleneck, Bottlenecks
from harness.text_learner import TextLearner
from harness.training import Part, Training
from harness.types import Artifact, Demonstration, Edit, FitData, Intervention, Layout, Range, Site, Subject


@dataclass(frozen=True, kw_only=True)
class PostBlockAdapter(ConceptMethod):
    """``h + strength * up @ relu(down @ h + bias)`` behind every block, all of them learnt together.

    ``up`` starts at zero, ``down`` at random; they are learnt per group by the language-model loss on the wanted
    completions, with the model as it is.

    Source:
        "Weight Updates as Activation Shifts", 2026, arXiv 2603.00425: bottlenecks of two layers behind the residual
        sum of every block, ordinary fine-tuning loss. The authors' code is not public; the activation, the start and
        the settings are ours. Left out: the variant that also updates weights, with its orthogonality term. All groups
        learn side by side in the same steps.

    Parameters:
        strength: 0 changes nothing, 1 is what was trained; others stretch the shifts.

    Steers:
        The block output of ``layers``, at all tokens.

    Requires:
        Demonstrations, wanted ones in every group.

    Access:
        Training texts and which of them are wanted.

    Artifact:
        ``down``: groups x layers x rank x width; ``bias``: groups x layers x rank; ``up``: groups x layers x width x
        rank; ``layers``: layers; ``groups``: names as JSON bytes.

    Fidelity:
        Paper formulas. There are no values of the authors' code to compare with.
    """

    layers: tuple[int, ...] | None = None
    """Counted from 0; None takes all."""
    rank: int = 4
    """Width of the bottlenecks."""
    activation: Literal["relu", "linear"] = "relu"
    training: Training = field(default_factory=Training)
    strength: float | Range = Range(low=0.0, high=2.0, default=1.0)

    def check(self, layout: Layout) -> None:
        """Refuse layers that the model lacks and a rank that is none."""
        super().check(layout)
        self._layers(layout)
        if not 1 <= self.rank <= layout.width:
            raise ValueError(f"rank must be from 1 to {layout.width}, got {self.rank}")

    def _layers(self, layout: Layout) -> list[int]:
        return directions.chosen_layers(layout, range(layout.num_layers) if self.layers is None else self.layers)

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Learn the adapters of all layers, one set per group."""
        texts = [text for text in data.demonstrations if text.wanted]
        learner = AdapterLearner(subject, texts, self._layers(subject.layout), self)
        learner.learn(self.training, "adapter")
        return {
            **{name: value.detach() for name, value in learner.maps.named_parameters()},
            "layers": torch.tensor(learner.layers),
            "groups": directions.encoded_names(learner.names),
        }

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per layer."""
        group, strength = condition["group"], parameters["strength"]
        maps = {name: artifact[name] for name in ("down", "bias", "up")}
        return adapters(artifact["layers"].tolist(), maps, group, strength, self.activation)


def adapters(
    layers: Sequence[int],
    maps: Mapping[str, Float[Tensor, "G L *shape"]],
    groups: Tensor,
    strength: Float[Tensor, "B"],
    activation: Literal["linear", "relu"],
) -> Intervention:
    """The adapters of these layers for rows of these groups."""
    edits: dict[Site, Edit] = {}
    for place, layer in enumerate(layers):
        down, bias, up = (maps[name][groups, place] for name in ("down", "bias", "up"))
        edits[Site(layer)] = Bottleneck(down, bias, up, strength, activation)
    return Intervention(edits)


class AdapterLearner(TextLearner):
    """The language-model loss under the adapters."""

    def __init__(
        self, subject: Subject, texts: Sequence[Demonstration], layers: Sequence[int], method: PostBlockAdapter
    ) -> None:
        super().__init__(subject, texts)
        self.layers, self.activation = list(layers), method.activation
        width, seed = subject.layout.width, method.training.seed
        self.maps = Bottlenecks(len(self.names), len(layers), width, method.rank, seed, subject.device)

    def loss(self, part: Part) -> Float[Tensor, ""]:
        """The language-model loss."""
        groups, maps = self.groups_of(part), dict(self.maps.named_parameters())
        full = torch.ones(len(groups), device=groups.device)
        return self.language_loss(
            part, self.pass_over(part, adapters(self.layers, maps, groups, full, self.activation))
        )
