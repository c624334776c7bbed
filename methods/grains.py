"""GrAInS: what the tokens do that make a model prefer one reply, found by gradients and by taking them away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harness import directions
from harness.concepts import ConceptMethod
from harness.types import (
    Access,
    Artifact,
    Carry,
    Edit,
    FitData,
    Intervention,
    Layout,
    Pair,
    Range,
    Site,
    Subject,
    Where,
    shared,
)

EMBEDDINGS = Site(0, "block_input")
ROWS = 16
"""Texts in a pass with gradients."""


@dataclass(frozen=True, kw_only=True)
class GrAInS(ConceptMethod):
    """Add ``10 * strength * v`` to one layer's output and give every token its old length back.

    In every preferred and dispreferred text the tokens are found whose embeddings matter most to the log-probability of
    its last token. The text is read again with these replaced, and the difference that this makes to the last token's
    state is noted. ``v`` is the mean (or main axis) of the differences made by tokens that speak for the preferred
    reply, less that of tokens that speak against it.

    Source:
        GrAInS, 2025, arXiv 2507.18043, and the authors' code. Deviations: (1) The authors score a text by the
        log-probability that its last token *follows itself*: logits and token are off by one. ``score`` says which is
        taken. (2) Their last layer's vector comes from states behind the final norm and is added before it; here both
        are the block's output. (3) They restore lengths over the sequence instead of over each token where blocks
        return tuples. (4) The sign of ``vector=pca``, free there, is that of the mean. (5) Replaced tokens become zero,
        the baseline of the integral, unless ``replacement`` names a text whose last token is put there (theirs: the
        padding token). In models that add positions to embeddings it brings its own position along.

    Parameters:
        strength: the authors' alpha, 0 changes nothing, 0.5 to 4 in the paper.

    Steers:
        The block output of one layer, at all tokens.

    Requires:
        Contrast pairs, at least 2 in every group for ``vector=pca``.

    Access:
        Pairs of the training split.

    Artifact:
        ``vector``: groups x width; ``layer``: (); ``groups``: names as JSON bytes.

    Fidelity:
        Checked against the authors' values: scores of both attributions (off by one), replaced tokens, states,
        vectors, the edit.
    """

    requires: ClassVar = frozenset({"pairs"})
    access: ClassVar = frozenset({Access.PAIRS})

    layer: int | None = None
    """Counted from 0; None is the last one."""
    score: Literal["last_token", "last_token_after_itself_as_released"] = "last_token"
    attribution: Literal["integrated_gradients", "gradient"] = "integrated_gradients"
    nodes: int = 20
    """Points at which the integral is evaluated."""
    top: int = 5
    """Tokens of a text that are replaced."""
    replacement: str | None = None
    vector: Literal["mean", "pca"] = "pca"
    strength: float | Range = Range(low=0.0, high=4.0, default=0.5)

    def check(self, layout: Layout) -> None:
        """Refuse a layer that the model lacks, and counts that are none."""
        super().check(layout)
        layout.check_layer("layer", self._site(layout).layer)
        if self.nodes < 1 or self.top < 1:
            raise ValueError(f"nodes and top must be at least 1, got {self.nodes} and {self.top}")

    def _site(self, layout: Layout) -> Site:
        return Site(layout.num_layers - 1 if self.layer is None else self.layer)

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Score tokens, replace the foremost on either side, compare states."""
        site = self._site(subject.layout)
        groups = directions.grouped(data.pairs)
        vectors = [self._vector(subject, site, [data.pairs[i] for i in rows.tolist()]) for rows in groups.values()]
        return {
            "vector": torch.stack(vectors),
            "layer": torch.tensor(site.layer),
            "groups": directions.encoded_names(list(groups)),
        }

    def _vector(self, subject: Subject, site: Site, pairs: Sequence[Pair]) -> Float[Tensor, "D"]:
        prompts = [pair.prompt for pair in pairs] * 2
        replies = [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
        scores, real = self.token_scores(subject, prompts, replies)
        # What makes a dispreferred reply likely speaks against the preferred one.
        scores[len(pairs) :] *= -1
        speaking_for = self.differences(subject, site, prompts, replies, foremost(scores, real, self.top))
        against = self.differences(subject, site, prompts, replies, foremost(-scores, real, self.top))
        return self.axis(speaking_for) - self.axis(against)

    def axis(self, differences: Float[Tensor, "N D"]) -> Float[Tensor, "D"]:
        """Their mean, or their main axis turned like the mean."""
        mean = differences.mean(0)
        if self.vector == "mean":
            return mean
        main = directions.principal_direction(differences)
        return -main if main @ mean < 0 else main

    def token_scores(
        self, subject: Subject, prompts: Sequence[str], replies: Sequence[str]
    ) -> tuple[Float[Tensor, "N T"], Bool[Tensor, "N T"]]:
        """What each token's embedding adds to its text's score, in nats, and which tokens are real."""
        longest = max(count.total for count in subject.token_counts(prompts, replies))
        scores = torch.zeros(len(prompts), longest, device=subject.device)
        real = torch.zeros(len(prompts), longest, dtype=torch.bool, device=subject.device)
        for start in range(0, len(prompts), ROWS):
            rows = slice(start, start + ROWS)
            batch_scores, batch_real = self._scores_of_batch(subject, prompts[rows], replies[rows])
            scores[rows, : batch_scores.shape[1]], real[rows, : batch_scores.shape[1]] = batch_scores, batch_real
        return scores, real

    def _scores_of_batch(
        self, subject: Subject, prompts: Sequence[str], replies: Sequence[str]
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        shares, weights = [1.0], [1.0]
        if self.attribution == "integrated_gradients":
            ends, doubled = np.polynomial.legendre.leggauss(self.nodes)
            shares, weights = ((1 + ends) / 2).tolist(), (doubled / 2).tolist()

        total: Tensor | float = 0.0
        real = torch.empty(0)
        for share, weight in zip(shares, weights, strict=True):
            with torch.enable_grad():
                steering = Intervention({EMBEDDINGS: ScaledLeaf(torch.full((len(prompts),), share))})
                passed = subject.forward(prompts, replies, intervention=steering)
                last = passed.real.sum(1, keepdim=True) - 1
                ahead = last if self.score == "last_token_after_itself_as_released" else last - 1
                logprobs = passed.logits(passed.where.positions == ahead).log_softmax(-1)
                leaf = passed.carry[_LEAF]
                (slope,) = torch.autograd.grad(logprobs.gather(1, passed.ids.gather(1, last)).sum(), leaf)
            total = total + weight * (slope * leaf.detach() / share).sum(-1).float()
            real = passed.real
        assert isinstance(total, Tensor)
        return total, real

    def differences(
        self,
        subject: Subject,
        site: Site,
        prompts: Sequence[str],
        replies: Sequence[str],
        chosen: Bool[Tensor, "N T"],
    ) -> Float[Tensor, "N D"]:
        """The last token's state, less what it is without the chosen tokens."""
        filler = torch.zeros(subject.layout.width, device=subject.device)
        if self.replacement is not None:
            filler = subject.capture([self.replacement], None, [EMBEDDINGS], pool="last", raw=True)[EMBEDDINGS][0]
        without = Intervention({EMBEDDINGS: Replace(chosen, filler)})
        whole = subject.capture(prompts, replies, [site], pool="last")[site]
        return whole - subject.capture(prompts, replies, [site], pool="last", intervention=without)[site]

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit, at the layer that was fitted."""
        shift = 10 * parameters["strength"][:, None] * artifact["vector"][condition["group"]]
        return Intervention({Site(int(artifact["layer"])): Turn(shift)})


def foremost(scores: Float[Tensor, "N T"], real: Bool[Tensor, "N T"], count: int) -> Bool[Tensor, "N T"]:
    """The tokens with the highest scores of each text."""
    order = scores.masked_fill(~real, -torch.inf).topk(min(count, scores.shape[1]), dim=1).indices
    return torch.zeros_like(real).scatter(1, order, True) & real


_LEAF = "grains/embeddings"


@dataclass(frozen=True, eq=False)
class ScaledLeaf(Edit):
    """The share of every embedding, as a tensor that gradients are taken with respect to; it is left in the carry."""

    share: Float[Tensor, "B"]

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Scale, and begin the graph here."""
        leaf = (self.share.to(h)[:, None, None] * h).detach().requires_grad_()
        return leaf, {**carry, _LEAF: leaf}


@dataclass(frozen=True, eq=False)
class Replace(Edit):
    """Another embedding in the place of chosen tokens."""

    chosen: Bool[Tensor, "B P"]
    filler: Float[Tensor, "D"] = shared()

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Replace by absolute position."""
        places = where.positions.clamp(0, self.chosen.shape[1] - 1)
        return where.keep(torch.where(self.chosen.gather(1, places)[..., None], self.filler.to(h), h), h), carry


@dataclass(frozen=True, eq=False)
class Turn(Edit):
    """``h + shift`` at the length of ``h``."""

    shift: Float[Tensor, "B D"]

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Turn every token's state towards the shift."""
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        moved = wide + self.shift[:, None].to(wide)
        turned = moved * (wide.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12))
        # A shift of zero must leave the state exactly as it is.
        still = (self.shift == 0).all(1)[:, None, None]
        return where.keep(torch.where(still, h, turned.to(h.dtype)), h), carry
