"""HyperSteer: a network makes the steering vector of a concept's words and the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.attention_blocks import rms_norm
from harness.concept_texts import ConceptLearner, concept_states, words_of
from harness.hypernetwork import AddVectorRead, Hypernetwork, NetworkShape, ReadPrompt, first_weights
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
    Parameters,
    Range,
    Site,
    Subject,
)

EMBEDDINGS = Site(0, "block_input")


@dataclass(frozen=True, kw_only=True)
class HyperSteer(Method):
    """Add ``strength * vector`` to one layer's output, the vector being made for each row by a trained network.

    The network reads the concept's words, embedded as the model embeds them, and in every layer the states of the
    prompt that enter the steered block. What its last layer makes of the concept's last token becomes the vector. One
    network serves all concepts, so that a concept that no training text showed can be steered towards.

    Source:
        Sun et al. 2025, arXiv 2506.03292, the variant with cross-attention, and the authors' code; values are of its
        copy inside the code of CDAS. Loss: that of the language model on completions with the concept. Deviations: (1)
        the network starts anew, as in that code; the paper's is a copy of the model's first layers; (2) a concept's
        embeddings are brought to root mean square 1, where the authors multiply by the root of the width, which does
        about that to Gemma's; (3) tokens see what stands before them in their own row: in the copy, which lacks masks,
        padding changes vectors; (4) the sparse selection of tokens, an option there, is left out; (5) 2 layers unless
        set (4 and 8 there).

    Parameters:
        strength: AxBench's factor, any sign; 0 changes nothing, 1 is what was trained.

    Steers:
        The block output of one layer, at all tokens.

    Requires:
        Demonstrations with their concepts in words; wanted ones alone count.

    Access:
        The item's concept in words; training texts and which of them are wanted.

    Artifact:
        ``net.*``: the network, named as in the authors' code; ``shape``: its sizes as JSON bytes; ``layer``: ().

    Fidelity:
        Checked against the authors' values: vectors with masks and without, loss, gradients, edit.
    """

    requires: ClassVar = frozenset({"demonstrations"})
    access: ClassVar = frozenset({Access.CONCEPT, Access.LABELS})

    layer: int | None = None
    """Counted from 0; None is the one at three quarters of the depth."""
    num_layers: int = 2
    """Of the network."""
    num_heads: int = 8
    num_key_heads: int = 4
    head_width: int = 64
    inner_width: int | None = None
    """Of the network's MLPs; None is twice the model's width."""
    softcap: float = 50.0
    """Bound of attention scores, Gemma-2's unless set; 0 for none."""
    concept_tokens: int = 64
    """Of a concept's words; longer ones are cut."""
    training: Training = field(default_factory=Training)
    strength: float | Range = Range(low=0.0, high=5.0, default=1.0)

    def check(self, layout: Layout) -> None:
        """Refuse a layer that the model lacks, and sizes that make no network."""
        super().check(layout)
        layout.check_layer("layer", self._layer(layout))
        for name in ("num_layers", "num_heads", "num_key_heads", "concept_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_key_heads or self.head_width % 2 or self.head_width < 2:
            raise ValueError(
                "num_key_heads must divide num_heads and head_width be even, got "
                f"{self.num_key_heads}, {self.num_heads} and {self.head_width}"
            )

    def _layer(self, layout: Layout) -> int:
        return round(0.75 * (layout.num_layers - 1)) if self.layer is None else self.layer

    def null(self, layout: Layout) -> Parameters:
        """No vector."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Train the network."""
        layer = self._layer(subject.layout)
        learner = VectorLearner(subject, [text for text in data.demonstrations if text.wanted], layer, self)
        learner.learn(self.training, "hypersteer")
        return {**learner.network.tensors(), "layer": torch.tensor(layer)}

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``concept`` (B x tokens x width) and ``length`` (B): each item's embedded concept."""
        concept, lengths = embedded(subject, words_of(examples), self.concept_tokens)
        return {"concept": concept, "length": lengths}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """A probe that makes the vectors where the prompt enters the block, and an edit that adds them behind it."""
        probe = ReadPrompt(condition["concept"], condition["length"], Hypernetwork.of(artifact))
        return vectors_read(int(artifact["layer"]), probe, parameters["strength"])


def vectors_read(layer: int, probe: ReadPrompt, strength: Float[Tensor, "B"]) -> Intervention:
    """Vectors made at a block's input and added to its output."""
    return Intervention({Site(layer): AddVectorRead(strength)}, {Site(layer, "block_input"): probe})


def embedded(subject: Subject, concepts: Sequence[str], limit: int) -> tuple[Float[Tensor, "N C D"], Int[Tensor, "N"]]:
    """Embeddings of each concept's tokens at root mean square 1, and how many there are."""
    states, lengths = concept_states(subject, concepts, EMBEDDINGS, limit)
    return rms_norm(states, torch.ones_like(states[0, 0]), epsilon=1e-6), lengths


class VectorLearner(ConceptLearner):
    """The network's weights, trained on texts with concepts."""

    def __init__(self, subject: Subject, texts: Sequence[Demonstration], layer: int, method: HyperSteer) -> None:
        super().__init__(subject, texts)
        self.layer, self.limit, width = layer, method.concept_tokens, subject.layout.width
        self.shape = NetworkShape(
            method.num_layers,
            method.num_heads,
            method.num_key_heads,
            method.head_width,
            method.softcap,
            method.head_width**-0.5,
        )
        start = first_weights(self.shape, width, method.inner_width or 2 * width, method.training.seed)
        self.weight_names = list(start)
        self.weights = nn.ParameterList(value.to(subject.device) for value in start.values())

    @property
    def network(self) -> Hypernetwork:
        """The network with the weights of this moment."""
        return Hypernetwork(dict(zip(self.weight_names, self.weights, strict=True)), self.shape)

    def loss(self, part: Part) -> Float[Tensor, ""]:
        """The language-model loss with each text's own vector at strength 1."""
        concepts, place = self.concepts_in(part)
        states, lengths = embedded(self.subject, concepts, self.limit)
        concept = states[:, : int(lengths.max())][place]
        probe = ReadPrompt(concept, lengths[place], self.network)
        strength = torch.ones(len(place), device=place.device)
        return self.language_loss(part, self.pass_over(part, vectors_read(self.layer, probe, strength)))
