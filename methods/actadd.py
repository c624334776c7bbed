"""ActAdd: the difference of two short texts, word by word, added to the first tokens of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

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
    Parameters,
    Range,
    Site,
    Subject,
    Where,
    shared,
)


@dataclass(frozen=True, eq=False)
class AddSequence(Edit):
    """Add the p-th vector of a sequence to the p-th prompt token after the offset."""

    strength: Float[Tensor, "B"]
    vectors: Float[Tensor, "P D"] = shared()
    offset: int = shared(default=0)

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Shift the first tokens of the prompt; later passes are left alone."""
        if not where.prefill:
            return h, carry
        place: Int[Tensor, "B T"] = where.positions - self.offset
        inside = (place >= 0) & (place < len(self.vectors))
        added = self.vectors[place.clamp(0, len(self.vectors) - 1)] * (self.strength[:, None] * inside)[..., None]
        return where.keep(h + added.to(h), h, "prompt"), carry


@dataclass(frozen=True, kw_only=True)
class ActAdd(Method):
    """Add ``strength * (positive - negative)`` to the first prompt tokens at one layer's input.

    Source:
        Turner et al. 2023, arXiv 2308.10248. Deviations: the two texts are compared word by word, each word by its last
        token (the same where a word is one token); both stand behind a line break, since a text's very first token has
        an activation of its own kind (there: behind an end-of-text token); the shorter text is padded with spaces, as
        there, one per missing word; the difference is rescaled to the layer's mean activation norm over both texts.

    Parameters:
        layer: whole number from 0; its input is steered.
        strength: any sign, 0 changes nothing; a share of the layer's usual activation norm.

    Steers:
        The block's input, on as many prompt tokens as the texts have words, once, while the prompt is read. They start
        at position ``offset``: 1 spares the first token; under a chat template set it to where the question starts.

    Requires:
        Nothing but the two texts of the settings.

    Access:
        A concept, as two texts of the user's.

    Artifact:
        ``vector``: layers x words x width.

    Fidelity:
        Paper formulas only, adapted as said above.
    """

    access: ClassVar = frozenset({Access.CONCEPT})

    positive: str = "Love"
    negative: str = "Hate"
    offset: int = 1
    layer: float | Range = Range(low=0, high=None, default=0.25, integer=True)
    strength: float | Range = Range(low=0.0, high=4.0, default=1.0)

    def check(self, layout: Layout) -> None:
        """Refuse a layer that the model lacks, an offset before the start, and texts without a difference."""
        super().check(layout)
        layout.check_layer("layer", self.layer)
        if self.offset < 0:
            raise ValueError(f"offset must not be negative, got {self.offset}")
        if not self.positive.split() or not self.negative.split() or self.positive == self.negative:
            raise ValueError(f"positive and negative must be two texts, got {self.positive!r} and {self.negative!r}")

    def null(self, layout: Layout) -> Parameters:
        """No shift."""
        return self.defaults(layout) | {"strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Read the two texts prefix by prefix: a token's activation does not depend on what follows."""
        length = max(len(self.positive.split()), len(self.negative.split()))
        positive, negative = (self._read(subject, text, length) for text in (self.positive, self.negative))
        norms = torch.cat([positive, negative], 1).norm(dim=-1).mean(1)
        difference = positive - negative
        return {"vector": difference * (norms / difference.norm(dim=-1).mean(1).clamp(min=1e-12))[:, None, None]}

    def _read(self, subject: Subject, text: str, length: int) -> Float[Tensor, "L P D"]:
        sites = directions.every_layer(subject, "block_input")
        words = prefixes(text, length)
        states = subject.capture(["\n"] * length, words, sites, tokens="completion", pool="last", raw=True)
        return torch.stack([states[site] for site in sites])

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per layer that some row asks for; it leaves the rows of other layers where they are."""
        layers = parameters["layer"].round().long()
        edits = {}
        for layer in layers.unique().tolist():
            strength = torch.where(layers == layer, parameters["strength"], 0.0)
            edits[Site(layer, "block_input")] = AddSequence(
                strength=strength, vectors=artifact["vector"][layer], offset=self.offset
            )
        return Intervention(edits=edits)


def prefixes(text: str, length: int) -> list[str]:
    """The text up to its first word, its second, and so on; padded with spaces to the given number."""
    words = text.split()
    padded = [*words, *[""] * (length - len(words))]
    return [" ".join(padded[: end + 1]) for end in range(length)]
