"""FLAS: hidden states flow towards a concept that is given in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from harness.attention_blocks import rms_norm
from harness.concept_texts import ConceptLearner, concept_states, words_of
from harness.training import Part, Training
from harness.types import (
    Access,
    Artifact,
    Demonstration,
    Example,
    FitData,
    Intervention,
    Layout,
    Method,
    Offer,
    Parameters,
    Range,
    Site,
    Subject,
)
from harness.velocity import FieldShape, FlowEdit, VelocityField
from harness.velocity_weights import checkpoint_files, first_weights, read_checkpoint


@dataclass(frozen=True, kw_only=True)
class FLAS(Method):
    """Move every token's state along a learnt velocity field, for a time that is the strength.

    The field is a small network, one for all concepts. It reads the state, the time, and the concept's words, which the
    model itself encodes: its first ``encoder_layers`` blocks, un-steered, then its final norm. So a concept that no
    training text showed can be steered towards. The way is found in ``num_steps`` Euler steps, at the prompt and at
    every generated token.

    Source:
        Jin et al. 2026, arXiv 2605.05892, and the authors' code. The loss is that of the language model on completions
        with the concept, plus ``diversity`` times the mean cosine between the velocities (last step, mean over tokens)
        of texts with different concepts in one pass; the time of a pass is drawn uniformly. Deviations: (1) a step that
        is computed in several passes weighs tokens equally, where the authors average the passes' means; (2) no text is
        cut (256 tokens there); (3) with ``dev_share``, weights are kept by the loss at time 1 of held-out texts after
        each epoch (every 500 steps there); (4) padding of a concept is hidden exactly, not by a score of -10,000.

    Parameters:
        flow_time: 0 changes nothing; the authors' headline is at 2, and 0.5 to 4 are stable there.
        num_steps: Euler steps, a whole number; null takes as many as in training.

    Steers:
        The block output of one layer, at all tokens.

    Requires:
        Demonstrations with their concepts in words, wanted ones alone count; nothing with a ``checkpoint``.

    Access:
        The item's concept in words; training texts and which of them are wanted.

    Artifact:
        ``flow.*``: the network, named as in the authors' checkpoints; ``frequencies``: of its rotary positions;
        ``shape``: its sizes as JSON bytes; ``final_norm``: weight; ``encoder_layers``, ``layer``, ``num_steps``: ().

    Fidelity:
        Checked against the authors' values for Llama and Gemma-2 blocks, with and without self-attention: velocities,
        Euler states, losses, gradients and steered tokens. Qwen-2 differs by biases in self-attention alone.
    """

    layer: int | None = None
    """Counted from 0; None is the layer of the checkpoint, else the one at three quarters of the depth."""
    checkpoint: str | None = None
    """A trained network: a file, a folder or OWNER/NAME on the hub, as the authors publish theirs; None trains one."""
    num_blocks: int = 1
    self_attention: bool = True
    """Let tokens look at those before them, with keys and values of its own for every step."""
    encoder_layers: int = 2
    concept_tokens: int = 64
    """Of a concept's words; longer ones are cut."""
    training_steps: int = 3
    """Euler steps in training."""
    training_time: tuple[float, float] = (0.5, 2.0)
    """Between which flow times are drawn in training."""
    diversity: float = 0.1
    training: Training = field(default_factory=Training)
    flow_time: float | Range = Range(low=0.0, high=4.0, default=2.0)
    num_steps: float | Range | None = None

    @property
    def requires(self) -> frozenset[Offer]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Texts, unless the network is trained already."""
        return frozenset() if self.checkpoint else frozenset({"demonstrations"})

    @property
    def access(self) -> frozenset[Access]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The concept's words, and texts where it learns from some."""
        return frozenset({Access.CONCEPT} if self.checkpoint else {Access.CONCEPT, Access.LABELS})

    def check(self, layout: Layout) -> None:
        """Refuse layers that the model lacks, and counts and times that mean nothing."""
        super().check(layout)
        layout.check_layer("layer", self._layer(layout))
        layout.check_layer("encoder_layers", self.encoder_layers - 1)
        for name in ("num_blocks", "concept_tokens", "training_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if (lowest := _lowest(self.num_steps)) is not None and lowest < 1:
            raise ValueError(f"num_steps must be at least 1, got {lowest:g}")
        if not 0 < self.training_time[0] <= self.training_time[1] or self.diversity < 0:
            raise ValueError(
                "training_time must be two times above 0, the lower one first, and diversity at least 0, got "
                f"{list(self.training_time)} and {self.diversity}"
            )

    def _layer(self, layout: Layout) -> int:
        return round(0.75 * (layout.num_layers - 1)) if self.layer is None else self.layer

    def null(self, layout: Layout) -> Parameters:
        """No time to flow."""
        return self.defaults(layout) | {"flow_time": 0.0}

    def files(self) -> tuple[Path, ...]:
        """Those of a checkpoint on this machine; on the hub, its name stands for it."""
        return checkpoint_files(self.checkpoint) if self.checkpoint else ()

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Train the network, or read the one that was given."""
        architecture = subject.architecture
        if self.checkpoint is not None:
            trained = read_checkpoint(self.checkpoint, architecture)
            layer = trained.layer if self.layer is None else self.layer
            subject.layout.check_layer("layer", layer)
            velocity, num_steps = trained.field, trained.num_steps
        else:
            layer, num_steps = self._layer(subject.layout), self.training_steps
            learner = FlowLearner(subject, [text for text in data.demonstrations if text.wanted], Site(layer), self)
            learner.learn(self.training, "flas")
            velocity = learner.velocity
        scalars = {"layer": layer, "num_steps": num_steps, "encoder_layers": self.encoder_layers}
        numbers = {name: torch.tensor(value) for name, value in scalars.items()}
        return {**velocity.tensors(), **numbers, "final_norm": architecture.final_norm}

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``keys``, ``values`` (B x blocks x tokens x heads x width) and ``length`` (B) of each item's concept."""
        velocity = VelocityField.of(artifact)
        encoder = ConceptEncoder(
            Site(int(artifact["encoder_layers"]) - 1), artifact["final_norm"], velocity.shape, self.concept_tokens
        )
        states, lengths = encoder.read(subject, words_of(examples))
        keys, values = velocity.concept_keys(states)
        return {"keys": keys, "values": values, "length": lengths}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit, which remembers keys and values of its own where the field has self-attention."""
        velocity, time = VelocityField.of(artifact), parameters["flow_time"]
        steps = parameters.get("num_steps", artifact["num_steps"].to(time).expand_as(time))
        most = int(steps.max())
        concept = (condition["keys"], condition["values"], condition["length"])
        edit = FlowEdit(*concept, time, steps, velocity, most)
        return Intervention({Site(int(artifact["layer"])): edit}, bytes_per_token=velocity.bytes_per_token(most))


def _lowest(value: float | Range | None) -> float | None:
    return value.low if isinstance(value, Range) else value


@dataclass(frozen=True)
class ConceptEncoder:
    """A concept's words as the model's first blocks and its final norm encode them.

    Args:
        site: the last of these blocks.
        final_norm: weight.
        shape: has the norm's other settings.
        limit: tokens that count.
    """

    site: Site
    final_norm: Float[Tensor, "D"]
    shape: FieldShape
    limit: int

    def read(self, subject: Subject, concepts: Sequence[str]) -> tuple[Float[Tensor, "N C D"], Int[Tensor, "N"]]:
        """States of each concept's tokens, and how many there are."""
        states, lengths = concept_states(subject, concepts, self.site, self.limit)
        return rms_norm(states, self.final_norm, self.shape.epsilon, self.shape.norm_offset), lengths


class FlowLearner(ConceptLearner):
    """The field's weights, trained on texts with concepts."""

    def __init__(self, subject: Subject, texts: Sequence[Demonstration], site: Site, method: FLAS) -> None:
        super().__init__(subject, texts)
        self.site, self.method, architecture = site, method, subject.architecture
        shape = FieldShape.of(architecture, method.num_blocks, method.self_attention)
        start = first_weights(architecture, site.layer, shape, method.training.seed)
        self.weight_names, self.weights = list(start), nn.ParameterList(start.values())
        self.shape, self.frequencies = shape, architecture.frequencies
        last = Site(method.encoder_layers - 1)
        self.encoder = ConceptEncoder(last, architecture.final_norm, shape, method.concept_tokens)

    @property
    def velocity(self) -> VelocityField:
        """The field with the weights of this moment."""
        weights = dict(zip(self.weight_names, self.weights, strict=True))
        return VelocityField(weights, self.frequencies, self.shape)

    def loss(self, part: Part) -> Float[Tensor, ""]:
        """Language-model loss and diversity at a time drawn for the pass; the former alone, at time 1, on dev texts."""
        learns = torch.is_grad_enabled()
        low, high = self.method.training_time if learns else (1.0, 1.0)
        time = low + (high - low) * float(torch.rand((), generator=part.generator()))

        concepts, place = self.concepts_in(part)
        passed = self.pass_over(part, Intervention({self.site: self.edit(concepts, place, time)}))
        loss = self.language_loss(part, passed)
        if not learns:
            return loss
        alike = alikeness(passed.carry[f"{self.site}/velocity"], place)
        return loss + self.method.diversity * alike * len(part.rows) / len(part.batch)

    def edit(self, concepts: Sequence[str], place: Int[Tensor, "B"], time: float) -> FlowEdit:
        """The edit for texts with these concepts, with its graph."""
        states, lengths = self.encoder.read(self.subject, concepts)
        velocity, steps = self.velocity, self.method.training_steps
        keys, values = velocity.concept_keys(states[:, : int(lengths.max())])
        full = torch.ones(len(place), device=place.device)
        row = (keys[place], values[place], lengths[place], time * full, steps * full)
        return FlowEdit(*row, velocity, steps, tells_velocity=True)


def alikeness(velocity: Float[Tensor, "B D"], concept: Int[Tensor, "B"]) -> Float[Tensor, ""]:
    """Mean cosine between the velocities of rows with different concepts; 0 where all have the same."""
    unit = functional.normalize(velocity.float(), dim=-1)
    different = concept[:, None] != concept
    return (unit @ unit.T * different).sum() / different.sum().clamp(min=1)
