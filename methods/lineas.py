"""LinEAS and E2E-DSAS: affine maps of every unit, all layers learnt together through the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.training import Learner, Part, Training, train
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

Gating = Literal["none", "sigmoid", "relu"]


@dataclass(frozen=True, eq=False)
class GatedAffine(Edit):
    """``h + strength * p * (gain * h + shift)``; ``p`` is 1, or sigmoid or ReLU of ``h . reader + bias``, per token."""

    strength: Float[Tensor, "B"]
    gain: Float[Tensor, "D"] = shared()
    shift: Float[Tensor, "D"] = shared()
    reader: Float[Tensor, "D"] = shared()
    bias: Float[Tensor, ""] = shared()
    gating: Gating = shared(default="none")
    tokens: Tokens = shared(default="all")

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Move every chosen token."""
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        step = self.strength[:, None, None].to(x) * torch.addcmul(self.shift.to(x), self.gain.to(x), x)
        if self.gating != "none":
            reading = x @ self.reader.to(x) + self.bias.to(x)
            step = (reading.sigmoid() if self.gating == "sigmoid" else reading.relu())[..., None] * step
        return where.keep((x + step).to(h.dtype), h, self.tokens), carry


@dataclass(frozen=True, kw_only=True)
class LinEAS(Method):
    """Learn, for all layers at once, affine maps of each unit under which source texts look like target texts.

    The loss is the sum over layers of a distance between distributions: each unit's one-dimensional squared
    Wasserstein distance (sorted source against sorted target texts), averaged over units. So a layer's map knows what
    those before it have done, and nothing is corrected twice. ``e2e_dsas`` also learns, per layer, a gate that reads
    every token, and is held to leave control texts as they are.

    Source:
        ``lineas``: Rodriguez et al. 2025, "LinEAS", arXiv 2503.10679, algorithm 1: maps start at the identity, sparse
        group lasso by proximal steps. ``e2e_dsas``: Ferrando et al. 2025, "Dynamically Scaled Activation Steering",
        arXiv 2512.03661, its end-to-end variant. No code of either could be read, nor the weight of the control term:
        ``retain`` is a choice of our own. Deviations: Adam in place of plain SGD (rate .1 for 1,000 steps of 32 texts
        there, whose scaling of the loss is not known); the first token, huge in some models, is left out of a text's
        mean.

    Parameters:
        strength: from 0 (identity) to 1 (what was learnt); above, further on.

    Steers:
        ``stream`` of ``layers``, on ``tokens`` (default all). The authors take the norms behind the attention:
        "mlp_norm" in Llama and its kin, "attention_post_norm" and "mlp_post_norm" in Gemma 2 and 3.

    Requires:
        Source and target texts, unpaired (32 of each there); with a gate, control texts too.

    Access:
        Texts of the training split.

    Artifact:
        ``gain`` (slope - 1), ``shift``, ``reader``: steered layers x width; ``bias``, ``layers``: steered layers.

    Fidelity:
        Formulas of the papers; no values to compare with.
    """

    requires: ClassVar = frozenset({"texts"})
    access: ClassVar = frozenset({Access.TEXTS})

    gating: Gating = "none"
    retain: float = 1.0
    """Weight of the mean squared change of control texts, where there is a gate."""
    lasso: tuple[float, float] = (0.0, 0.0)
    """Penalty on every unit's map, and on the maps of a layer together: how soon they stay at the identity.
    Tells weak units from strong ones with the optimiser "sgd" alone; Adam moves all alike."""
    stream: Stream = "mlp_norm"
    layers: tuple[int, ...] | None = None
    """None takes all."""
    tokens: Tokens = "all"
    pooled: Tokens = "after_first"
    """Tokens of a text whose mean is compared."""
    training: Training = field(default_factory=Training)
    strength: float | Range = Range(low=0.0, high=1.5, default=1.0)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings, layers that the model lacks and batches in parts."""
        super().check(layout)
        for layer in self.layers or ():
            layout.check_layer("layers", layer)
        if min(self.retain, *self.lasso) < 0:
            raise ValueError(f"retain and lasso must be at least 0, got {self.retain} and {list(self.lasso)}")
        if self.training.pass_tokens is not None:
            raise ValueError("training.pass_tokens must be null: the loss sorts a batch as a whole")

    def null(self, layout: Layout) -> Parameters:
        """The identity."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Train all maps (and gates) together.

        Raises:
            ValueError: source or target texts are missing, or with a gate control texts.
        """
        roles = ("source", "target") if self.gating == "none" else ("source", "target", "control")
        for role in roles:
            if not getattr(data, role):
                raise ValueError(
                    f"lineas with gating={self.gating} needs {', '.join(roles)} texts, got no {role} texts"
                )

        layers = sorted(self.layers or range(subject.layout.num_layers))
        learner = MapLearner(subject, self, data, [Site(layer, self.stream) for layer in layers])
        lengths = [count.total for count in subject.token_counts(data.source, [""] * len(data.source), raw=True)]
        train(learner, self.training.plan(lengths), self.training, subject.workspace, lengths, "lineas")

        learnt = {name: value.detach() for name, value in learner.state_dict().items()}
        return {**learnt, "layers": torch.tensor(layers)}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per learnt layer."""
        sites = [Site(layer, self.stream) for layer in artifact["layers"].tolist()]
        return self.steered(sites, artifact, parameters["strength"])

    def steered(self, sites: Sequence[Site], maps: Mapping[str, Tensor], strength: Float[Tensor, "B"]) -> Intervention:
        """The maps as edits."""
        rows = zip(sites, maps["gain"], maps["shift"], maps["reader"], maps["bias"], strict=True)
        return Intervention({site: GatedAffine(strength, *row, self.gating, self.tokens) for site, *row in rows})


class MapLearner(Learner):
    """All layers' maps, starting at the identity, and gates, starting at one half (sigmoid) or 1 (ReLU)."""

    def __init__(self, subject: Subject, method: LinEAS, data: FitData, sites: Sequence[Site]) -> None:
        super().__init__()
        self.subject, self.method, self.data, self.sites = subject, method, data, list(sites)
        shape, device = (len(sites), subject.layout.site_width(sites[0])), subject.device
        self.gain, self.shift, self.reader = (nn.Parameter(torch.zeros(shape, device=device)) for _ in range(3))
        self.bias = nn.Parameter(torch.full((len(sites),), float(method.gating == "relu"), device=device))
        self.target = self._unsteered(data.target)
        self.control = self._unsteered(data.control) if method.gating != "none" else []

    def _unsteered(self, texts: Sequence[str]) -> list[Float[Tensor, "N D"]]:
        states = self.subject.capture(texts, None, self.sites, tokens=self.method.pooled, raw=True)
        return [states[site] for site in self.sites]

    def _steered(self, texts: Sequence[str]) -> list[Float[Tensor, "N D"]]:
        maps = self.method.steered(self.sites, dict(self.named_parameters()), torch.ones(len(texts)))
        empty = [""] * len(texts)
        passed = self.subject.forward(texts, empty, sites=self.sites, intervention=maps, raw=True, logits=False)
        return [passed.where.mean(passed.states[site].float(), self.method.pooled) for site in self.sites]

    def loss(self, part: Part) -> Float[Tensor, ""]:
        """Distance of these source texts, steered, from as many target texts; and what control texts are changed."""
        generator = part.generator()
        count = min(len(part.rows), len(self.data.target))
        against = torch.randperm(len(self.data.target), generator=generator)[:count]
        moved = self._steered([self.data.source[row] for row in part.rows[:count]])
        distances = [wasserstein(h, goal[against.to(h.device)]) for h, goal in zip(moved, self.target, strict=True)]
        loss = torch.stack(distances).sum()
        if not self.control:
            return loss

        left = torch.randperm(len(self.data.control), generator=generator)[:count].tolist()
        kept = self._steered([self.data.control[row] for row in left])
        changes = [(h - plain[left]).square().mean() for h, plain in zip(kept, self.control, strict=True)]
        return loss + self.method.retain * torch.stack(changes).sum()

    def after_step(self) -> None:
        """The proximal step of the sparse group lasso: maps shrink towards the identity."""
        single, group = (self.method.training.learning_rate * weight for weight in self.method.lasso)
        for maps in (self.gain, self.shift):
            shrunk = maps.sign() * (maps.abs() - single).clamp(min=0)
            length = shrunk.norm(dim=1, keepdim=True)
            maps.copy_(shrunk * (1 - group / length.clamp(min=1e-12)).clamp(min=0))


def wasserstein(source: Float[Tensor, "N D"], target: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Squared distance between the distributions of each unit, averaged over units."""
    return (source.sort(0).values - target.to(source).sort(0).values).square().mean()
