"""LM-Steer: a learnt linear map of the last hidden state, added to write one kind of text and taken off for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from harness import directions
from harness.concepts import ConceptMethod
from harness.low_rank import Bottleneck, Bottlenecks
from harness.text_learner import TextLearner
from harness.training import Part, Training
from harness.types import Artifact, Demonstration, FitData, Intervention, Layout, Range, Site, Subject


@dataclass(frozen=True, kw_only=True)
class LMSteer(ConceptMethod):
    """``h + strength * up @ down @ h`` behind the last block: another matrix of output embeddings, in effect.

    The map is learnt per group by the language-model loss: added for the wanted completions, taken off for the unwanted
    ones, where there are any.

    Source:
        Han et al. 2024, arXiv 2305.12798, section 3. Deviations: (1) The authors change what enters the output
        embeddings, behind the final norm; the map acts before it here, and the norm rescales what it adds. (2) ``up``
        starts at zero and ``down`` at random, and the map is used at full size; the authors start both at random and
        multiply by 0.001 in training, which together with AdamW is a smaller learning rate. (3) All groups learn side
        by side in the same steps.

    Parameters:
        strength: 0 changes nothing, 1 is what was trained, -1 writes like the unwanted texts.

    Steers:
        The block output of the last layer, at all tokens.

    Requires:
        Demonstrations, wanted ones at least, in every group.

    Access:
        Training texts and which of them are wanted.

    Artifact:
        ``down``: groups x rank x width; ``up``: groups x width x rank; ``layer``: (); ``groups``: names as JSON bytes.

    Fidelity:
        Paper formulas. There are no values of the authors' code to compare with.
    """

    rank: int = 32
    training: Training = field(default_factory=Training)
    strength: float | Range = Range(low=0.0, high=5.0, default=1.0)

    def check(self, layout: Layout) -> None:
        """Refuse a rank that is none."""
        super().check(layout)
        if not 1 <= self.rank <= layout.width:
            raise ValueError(f"rank must be from 1 to {layout.width}, got {self.rank}")

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Learn one map per group."""
        learner = MapLearner(subject, data.demonstrations, self.rank, self.training.seed)
        learner.learn(self.training, "lm_steer")
        return {
            "down": learner.maps.down.detach()[:, 0],
            "up": learner.maps.up.detach()[:, 0],
            "layer": torch.tensor(learner.site.layer),
            "groups": directions.encoded_names(learner.names),
        }

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit, behind the last block."""
        down, up = (artifact[name][condition["group"]] for name in ("down", "up"))
        edit = Bottleneck(down, torch.zeros_like(down[..., 0]), up, parameters["strength"])
        return Intervention({Site(int(artifact["layer"])): edit})


class MapLearner(TextLearner):
    """The language-model loss with the map added (wanted texts) or taken off (unwanted ones)."""

    def __init__(self, subject: Subject, texts: Sequence[Demonstration], rank: int, seed: int) -> None:
        super().__init__(subject, texts)
        layout = subject.layout
        self.site = Site(layout.num_layers - 1)
        self.maps = Bottlenecks(len(self.names), 1, layout.width, rank, seed, subject.device)
        self.maps.bias.requires_grad_(False)
        self.signs = torch.tensor([1.0 if text.wanted else -1.0 for text in self.texts], device=subject.device)

    def loss(self, part: Part) -> Float[Tensor, ""]:
        """The language-model loss."""
        groups, signs = self.groups_of(part), self.signs[list(part.rows)]
        down, bias, up = (value[groups, 0] for value in (self.maps.down, self.maps.bias, self.maps.up))
        steering = Intervention({self.site: Bottleneck(down, bias, up, signs)})
        return self.language_loss(part, self.pass_over(part, steering))
