"""Angular steering: rotate states within a plane, behind every norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
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
    Range,
    Site,
    Stream,
    Subject,
    Tokens,
    Where,
    shared,
)

NORMS: tuple[Stream, ...] = ("attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm")


@dataclass(frozen=True, eq=False)
class Rotate(Edit):
    """Turn the part of a state that lies in a plane to an angle from the first axis; its length stays."""

    radians: Float[Tensor, "B"]
    axes: Float[Tensor, "2 D"] = shared()
    """Orthonormal."""
    trigger: Float[Tensor, "D"] | None = shared(default=None)
    """Tokens are turned whose states have a positive product with this; None turns all."""
    tokens: Tokens = shared(default="all")

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Set the angle of every chosen token."""
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        axes = self.axes.to(x)
        inside = x @ axes.T
        angle = torch.stack([self.radians.cos(), self.radians.sin()], -1)[:, None].to(x)
        turned = x + (inside.norm(dim=-1, keepdim=True) * angle - inside) @ axes
        if self.trigger is not None:
            turned = torch.where((x @ self.trigger.to(x) > 0)[..., None], turned, x)
        return where.keep(turned.to(h.dtype), h, self.tokens), carry


@dataclass(frozen=True, kw_only=True)
class Angular(Method):
    """Rotate states to a given angle within one plane, after every normalisation layer.

    At every norm's input, the difference of class means (of states brought to length 1) is a candidate direction. The
    plane is spanned by the candidate that agrees most with the others and by the candidates' main axis. Adding a vector
    and ablating it are special cases of the angle; the length of the state never changes.

    Source:
        "Angular Steering", NeurIPS 2025, arXiv 2510.26243, section 4, and its public code. Kept: one plane for all
        norms, read at their inputs and applied at their outputs. The main axis has no sign of its own (nor has the
        sense of rotation, then): its largest component is made positive. Deviations: source and target texts of the
        task stand for harmless and harmful prompts.

    Parameters:
        angle: degrees from the first axis, which points to the target texts, towards the second; periodic: 360 is 0.
            No angle leaves all states alone, so there is no null.

    Steers:
        ``streams``, the outputs of norms, at every layer, on ``tokens`` (default all); with ``mode="adaptive"`` only
        tokens that already lean to the target.

    Requires:
        Source and target texts, unpaired; each is read at its last token.

    Access:
        Texts of the training split.

    Artifact:
        ``axes``: 2 x width, orthonormal; ``second``: width, the main axis before it was made orthogonal; ``layers``:
        how many layers are steered.

    Fidelity:
        Checked against the authors' values: candidates, choice, axes, plain and both adaptive rotations.
    """

    requires: ClassVar = frozenset({"texts"})
    access: ClassVar = frozenset({Access.TEXTS})

    mode: Literal["adaptive", "fixed", "adaptive_second"] = "adaptive"
    """Turn tokens that lie on the positive side of the first axis; all; those on the positive side of the main axis."""
    choice: Literal["most_alike", "longest"] = "most_alike"
    """First axis: the candidate with the largest mean cosine with all candidates, or the longest."""
    streams: tuple[Stream, ...] = ("attention_norm", "mlp_norm")
    tokens: Tokens = "all"
    raw: bool = False
    """Take texts as they are instead of as prompts in the run's template."""
    angle: float | Range = Range(low=0.0, high=360.0, default=0.0)

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and streams that are not norms."""
        super().check(layout)
        if not self.streams or not set(self.streams) <= set(NORMS):
            raise ValueError(f"streams must be some of {', '.join(NORMS)}, got {list(self.streams)}")

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Candidates at every norm, then the plane.

        Raises:
            ValueError: source or target texts are missing.
        """
        if not (data.source and data.target):
            counts = f"{len(data.source)} and {len(data.target)}"
            raise ValueError(f"angular steering needs source and target texts, got {counts}")

        layers = range(subject.layout.num_layers)
        sites = [Site(n, _read_at(stream)) for n in layers for stream in self.streams]
        source, target = (
            subject.capture(texts, None, sites, tokens="last_prompt", pool="last", raw=self.raw)
            for texts in (data.source, data.target)
        )

        candidates = torch.stack([candidate(source[site], target[site]) for site in sites])
        first, second = candidates[chosen(candidates, self.choice)], main_axis(candidates)
        return {"axes": plane(first, second), "second": second, "layers": torch.tensor(len(layers))}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One rotation behind every norm."""
        axes = artifact["axes"]
        trigger = {"adaptive": axes[0], "fixed": None, "adaptive_second": artifact["second"]}[self.mode]
        edit = Rotate(parameters["angle"].deg2rad(), axes, trigger, self.tokens)
        layers = range(int(artifact["layers"]))
        return Intervention({Site(n, stream): edit for n in layers for stream in self.streams})


def _read_at(stream: Stream) -> Stream:
    """The input of a norm before a part; behind a part, what the part gives out."""
    inputs: dict[Stream, Stream] = {
        "attention_norm": "attention_norm_input",
        "mlp_norm": "mlp_norm_input",
        "attention_post_norm": "attention",
        "mlp_post_norm": "mlp",
    }
    return inputs[stream]


def candidate(source: Float[Tensor, "N D"], target: Float[Tensor, "M D"]) -> Float[Tensor, "D"]:
    """Difference of the classes' mean directions, each of length 1."""
    toward, away = (directions.unit(directions.unit(states).mean(0)) for states in (target, source))
    return toward - away


def chosen(candidates: Float[Tensor, "C D"], choice: Literal["most_alike", "longest"]) -> Int[Tensor, ""]:
    """Which candidate becomes the first axis."""
    if choice == "longest":
        return candidates.norm(dim=-1).argmax()
    unit = directions.unit(candidates)
    return (unit @ unit.T).mean(1).argmax()


def main_axis(candidates: Float[Tensor, "C D"]) -> Float[Tensor, "D"]:
    """First principal component of the candidates, with a positive largest component."""
    axis = directions.principal_direction(candidates)
    return axis * axis[axis.abs().argmax()].sign()


def plane(first: Float[Tensor, "D"], second: Float[Tensor, "D"]) -> Float[Tensor, "2 D"]:
    """Orthonormal axes of the plane through both, the first one along ``first``."""
    axis = directions.unit(first)
    return torch.stack([axis, directions.unit(second - (second @ axis) * axis)])
