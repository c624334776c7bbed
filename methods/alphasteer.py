"""AlphaSteer: steer by a linear map of the prompt that is zero where prompts should be left alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from harness import directions
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
    Subject,
    Where,
    shared,
)


@dataclass(frozen=True, eq=False)
class ReadAndShift(Edit):
    """Add ``strength * (h_last . reader) * direction`` to every prompt token; ``h_last`` is the last one's state."""

    strength: Float[Tensor, "B"]
    reader: Float[Tensor, "D"] = shared()
    direction: Float[Tensor, "D"] = shared()

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Shift the prompt once, in the pass that holds it."""
        if not where.prefill:
            return h, carry
        wide = torch.promote_types(h.dtype, torch.float32)
        amount = where.mean(h.to(wide), "last_prompt") @ self.reader.to(wide) * self.strength.to(wide)
        shift = amount[:, None] * self.direction.to(wide)
        return where.keep(h + shift[:, None].to(h.dtype), h, "prompt"), carry


@dataclass(frozen=True, kw_only=True)
class AlphaSteer(Method):
    """Steer source prompts along a direction, each as far as a map says that hardly sees control prompts.

    At each layer the map is learnt within the approximate null space of the control prompts' activations: there it
    carries the source prompts' activations to the direction (ridge regression). So no gate is needed: for control
    prompts what is added is close to zero.

    Source:
        "AlphaSteer", ICLR 2026, arXiv 2506.07022, section 3, and the authors' code. All source prompts are carried to
        one direction, so the learnt matrix is exactly the outer product of a reader and that direction: these two
        vectors are kept in place of a width x width matrix. Deviations: the direction is the difference of means of
        target and source texts (a refusal vector from other data there), so positive strengths steer towards the target
        (negative ones there); one share of the width for all layers (.3 to .6 there); the authors' rule that finds the
        share by itself is left out: it takes square roots before it compares with a tolerance, and misses most of the
        null space.

    Parameters:
        strength: any sign, 0 changes nothing, 1 moves a source prompt by about the whole direction at every layer;
            .1 to .5 there.

    Steers:
        The block input of several layers, at the prompt's tokens, in the pass that holds the prompt.

    Requires:
        Source texts (to be steered), target texts and control texts (to be left alone), each read at its last token.

    Access:
        Texts of the training split.

    Artifact:
        ``reader``, ``direction``: steered layers x width; ``layers``: their numbers.

    Fidelity:
        Checked against the authors' values: null space, both matrices, edit.
    """

    requires: ClassVar = frozenset({"texts"})
    access: ClassVar = frozenset({Access.TEXTS})

    null_share: float = 0.4
    """Share of the width that counts as null space: the directions along which control prompts have least."""
    regularisation: float = 10.0
    """Ridge penalty on the map; 0 takes the pseudo-inverse."""
    layers: tuple[int, ...] | None = None
    """None takes those from ``depth[0]`` up to ``depth[1]`` of the model."""
    depth: tuple[float, float] = (0.25, 0.6)
    raw: bool = False
    """Take texts as they are instead of as prompts in the run's template."""
    strength: float | Range = Range(low=0.0, high=2.0, default=0.4)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings, layers that the model lacks and an empty null space."""
        super().check(layout)
        steered = self._layers(layout)
        if not steered:
            raise ValueError(f"depth must span at least one layer, got {list(self.depth)}")
        for layer in steered:
            layout.check_layer("layers", layer)
        if not 1 <= int(layout.width * self.null_share) < layout.width:
            raise ValueError(f"null_share must leave 1 to {layout.width - 1} directions, got {self.null_share}")
        if self.regularisation < 0:
            raise ValueError(f"regularisation must be at least 0, got {self.regularisation}")

    def _layers(self, layout: Layout) -> list[int]:
        first, end = (math.ceil(share * layout.num_layers) for share in self.depth)
        return sorted(self.layers or range(first, end))

    def null(self, layout: Layout) -> Parameters:
        """Nothing is added."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """One reader and one direction per layer.

        Raises:
            ValueError: source, target or control texts are missing.
        """
        for role in ("source", "target", "control"):
            if not getattr(data, role):
                raise ValueError(f"alphasteer needs source, target and control texts, got no {role} texts")

        sites = [Site(layer, "block_input") for layer in self._layers(subject.layout)]
        source, target, control = (
            self._states(subject, texts, sites) for texts in (data.source, data.target, data.control)
        )

        null_dim = int(subject.layout.width * self.null_share)
        readers = [
            reader(quiet_directions(left, null_dim), moved, self.regularisation)
            for left, moved in zip(control, source, strict=True)
        ]
        differences = [directions.mean_difference(*pair) for pair in zip(target, source, strict=True)]
        return {
            "reader": torch.stack(readers).float(),
            "direction": torch.stack(differences).float(),
            "layers": torch.tensor([site.layer for site in sites]),
        }

    def _states(self, subject: Subject, texts: Sequence[str], sites: Sequence[Site]) -> list[Float[Tensor, "N D"]]:
        states = subject.capture(texts, None, sites, tokens="last_prompt", pool="last", raw=self.raw)
        return [states[site].double() for site in sites]

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit at the input of every fitted layer."""
        rows = zip(artifact["layers"].tolist(), artifact["reader"], artifact["direction"], strict=True)
        strength = parameters["strength"]
        return Intervention({Site(n, "block_input"): ReadAndShift(strength, *vectors) for n, *vectors in rows})


def quiet_directions(states: Float[Tensor, "N D"], count: int) -> Float[Tensor, "D K"]:
    """Orthonormal directions along which the (uncentred) states have least, in float64."""
    _, axes = torch.linalg.eigh(states.T @ states)
    return axes[:, :count]


def reader(quiet: Float[Tensor, "D K"], states: Float[Tensor, "N D"], regularisation: float) -> Float[Tensor, "D"]:
    """The vector within the quiet directions that reads 1 from every state as nearly as the ridge penalty lets it."""
    seen = states @ quiet
    ones = torch.ones_like(seen[:, 0])
    if regularisation == 0:
        return quiet @ (torch.linalg.pinv(seen) @ ones)
    penalty = regularisation * torch.eye(quiet.shape[1]).to(seen)
    return quiet @ torch.linalg.solve(seen.T @ seen + penalty, seen.T @ ones)
