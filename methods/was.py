"""Weighted activation steering: a small network reads the state and says how much to add, and at which layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from harness import directions
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
    Probe,
    Range,
    Site,
    Subject,
    Where,
    shared,
)

AMOUNT = "was/amount"
"""Carry key of what is added at each layer, per token. Gone at the end of the pass that it belongs to."""


def controller(weights: Mapping[str, Tensor], x: Float[Tensor, "... E"]) -> tuple[Tensor, Tensor]:
    """A logit (one per state) and a weight for each layer of the model (from 0 to 1)."""
    inside = functional.linear(x, weights["hidden.weight"], weights["hidden.bias"]).relu()
    out = functional.linear(inside, weights["out.weight"], weights["out.bias"])
    return out[..., 0], out[..., 1:].sigmoid()


@dataclass(frozen=True, eq=False)
class Read(Probe):
    """Keeps an input layer's states until the last input layer is reached."""

    def read(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> Carry:
        """The carry with this layer's states."""
        return {**carry, where.key("was"): h}


@dataclass(frozen=True, eq=False)
class Decide(Probe):
    """At the last input layer: the controller's verdict on every token."""

    weights: Mapping[str, Tensor] = shared()
    earlier: tuple[Site, ...] = shared()
    squash: bool = shared(default=True)

    def read(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> Carry:
        """The carry with amounts in place of the states that they were computed from."""
        keys = [where.at(site).key("was") for site in self.earlier]
        states = torch.cat([*(carry[key] for key in keys), h], -1)
        wide = torch.promote_types(h.dtype, torch.float32)
        weights = {name: value.to(wide) for name, value in self.weights.items()}

        chosen = where.gather(states, "predicting").to(wide)
        logit, share = controller(weights, chosen)
        amount = (logit.sigmoid() if self.squash else logit)[:, None] * share
        nothing = amount.new_zeros(*h.shape[:2], amount.shape[-1])
        kept = {key: value for key, value in carry.items() if key not in keys}
        return {**kept, AMOUNT: where.scatter(amount, nothing, "predicting")}


@dataclass(frozen=True, eq=False)
class AddAmount(Edit):
    """``h + strength * amount[token] * direction``."""

    strength: Float[Tensor, "B"]
    direction: Float[Tensor, "D"] = shared()
    last: bool = shared(default=False)
    """No later layer needs the amounts."""

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Shift every token by its own amount."""
        amount = carry[AMOUNT][..., where.site.layer] * self.strength[:, None].to(carry[AMOUNT])
        shifted = h + (amount[..., None] * self.direction.to(amount)).to(h.dtype)
        left = {key: value for key, value in carry.items() if key != AMOUNT} if self.last else carry
        return where.keep(shifted, h, "predicting"), left


@dataclass(frozen=True, kw_only=True)
class WAS(Method):
    """Add ``strength * p * w[layer] * direction``; a controller reads some layers and gives ``p`` and ``w``.

    The controller is a network with one hidden layer, trained to tell source prompts (``p`` near 1) from control
    prompts (near 0). The model itself plays no part in its loss.

    Source:
        "Guiding Giants", 2025, arXiv 2505.20309, section 3, and its public code. What is read has to be there before it
        is used, so only layers from the last input layer on are steered: with the last four layers as input, as there,
        the last one alone. Deviations: ``p`` is a probability, where the code, at inference only, takes the logit
        itself (``amount="released_logit"``), which pushes confident control prompts the other way; batches mix both
        kinds (all source batches of an epoch come first there); the controller learns on states brought to a mean
        length of 1; ``normalise`` scales the direction.

    Parameters:
        strength: any sign, 0 changes nothing, positive steers towards the target texts. A share of the layer's mean
            activation norm; with ``normalise="unit"`` (the authors', 4 there) in units of the hidden state.

    Steers:
        The block output of the last input layer and all layers behind it, at the last position of every forward pass.

    Requires:
        Source, control and target texts.

    Access:
        Texts of the training split.

    Artifact:
        ``hidden.weight``, ``hidden.bias``, ``out.weight``, ``out.bias``: the controller; ``direction``: steered layers
        x width; ``inputs``: its layers, rising.

    Fidelity:
        Checked against the authors' values: direction, controller, its training, states and logits of both passes.
    """

    requires: ClassVar = frozenset({"texts"})
    access: ClassVar = frozenset({Access.TEXTS})

    inputs: tuple[int, ...] | None = None
    """Layers that the controller reads; None takes the last four."""
    hidden: int = 1024
    """Width of the controller."""
    amount: Literal["probability", "released_logit"] = "probability"
    direction: Literal["embeddings", "states"] = "embeddings"
    """Target minus source texts: mean embedding of their tokens (the authors'), or states of their last tokens at the
    steered layers."""
    normalise: Literal["activation", "unit"] = "activation"
    training: Training = field(default_factory=Training)
    strength: float | Range = Range(low=0.0, high=1.0, default=0.3)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and layers that the model lacks."""
        super().check(layout)
        for layer in self._inputs(layout):
            layout.check_layer("inputs", layer)
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")

    def _inputs(self, layout: Layout) -> list[int]:
        return sorted(set(self.inputs or range(max(0, layout.num_layers - 4), layout.num_layers)))

    def null(self, layout: Layout) -> Parameters:
        """Nothing is added."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """The direction, and a controller trained on the prompts' last tokens.

        Raises:
            ValueError: source, control or target texts are missing.
        """
        for role in ("source", "control", "target"):
            if not getattr(data, role):
                raise ValueError(f"was needs source, control and target texts, got no {role} texts")
        inputs = self._inputs(subject.layout)
        sites = [Site(layer) for layer in range(inputs[0], subject.layout.num_layers)]
        prompts = data.source + data.control
        states = subject.capture(prompts, None, sites, tokens="last_prompt", pool="last")
        x = torch.cat([states[Site(layer)] for layer in inputs], -1)
        is_source = torch.arange(len(prompts), device=x.device) < len(data.source)

        # At length 1 on average, so that a learning rate means the same in every model; undone in the weights below.
        size = x.norm(dim=-1).mean()
        learner = ControllerLearner(x / size, is_source, self.hidden, subject.layout.num_layers, self.training.seed)
        ones = [1] * len(prompts)
        plan = self.training.plan(ones, [str(flag) for flag in is_source.tolist()])
        train(learner, plan, self.training, subject.workspace, ones, "was")

        steered = [site for site in sites if site.layer >= inputs[-1]]
        direction = self.directions(subject, data, steered)
        if self.normalise == "activation":
            direction = direction * torch.stack([states[site].norm(dim=-1).mean() for site in steered])[:, None]
        learnt = {name: value.detach() for name, value in learner.state_dict().items()}
        learnt["hidden.weight"] = learnt["hidden.weight"] / size
        return {**learnt, "direction": direction, "inputs": torch.tensor(inputs)}

    def directions(self, subject: Subject, data: FitData, steered: Sequence[Site]) -> Float[Tensor, "S D"]:
        """From source to target texts, of length 1, for every steered layer."""
        if self.direction == "states":
            target, source = (
                subject.capture(texts, None, steered, tokens="last_prompt", pool="last")
                for texts in (data.target, data.source)
            )
            return directions.unit(torch.stack([target[s].mean(0) - source[s].mean(0) for s in steered]))

        embedded = Site(0, "block_input")
        target, source = (
            subject.capture(texts, None, [embedded], tokens="after_first", raw=True)[embedded].mean(0)
            for texts in (data.target, data.source)
        )
        return directions.unit(target - source).expand(len(steered), -1).clone()

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """Probes at the input layers, additions from the last of them on."""
        *earlier, decisive = [Site(layer) for layer in artifact["inputs"].tolist()]
        weights = {name: artifact[name] for name in ("hidden.weight", "hidden.bias", "out.weight", "out.bias")}
        probes: dict[Site, Probe] = {site: Read() for site in earlier}
        probes[decisive] = Decide(weights, tuple(earlier), self.amount == "probability")

        steered = list(enumerate(artifact["direction"], start=decisive.layer))
        final = steered[-1][0]
        edits = {Site(n): AddAmount(parameters["strength"], axis, n == final) for n, axis in steered}
        return Intervention(edits, probes)


class ControllerLearner(Learner):
    """The controller, learning to tell source from control prompts."""

    def __init__(
        self, x: Float[Tensor, "N E"], is_source: Bool[Tensor, "N"], width: int, num_layers: int, seed: int
    ) -> None:
        super().__init__()
        self.x, self.is_source = x, is_source.to(x.dtype)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hidden, self.out = nn.Linear(x.shape[1], width), nn.Linear(width, 1 + num_layers)
        self.to(x.device)

    def loss(self, part: Part) -> Float[Tensor, ""]:
        """Cross-entropy, and for source prompts a penalty on layer weights away from one half, and on large ones."""
        rows, batch = list(part.rows), list(part.batch)
        logit, share = controller(dict(self.named_parameters()), self.x[rows])
        entropy = functional.binary_cross_entropy_with_logits(logit, self.is_source[rows], reduction="sum")
        penalty = 0.1 * ((share - 0.5).abs() + 0.01 * share).mean(-1) * self.is_source[rows]
        return entropy / len(batch) + penalty.sum() / self.is_source[batch].sum().clamp(min=1)
