"""RePS: preference learning of one direction that steers towards a concept when added and away when taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from harness.concepts import ConceptVector, behind_prefix
from harness.low_rank import SubspaceEdit, Subspaces
from harness.text_learner import TextLearner, per_group
from harness.training import Part, Training
from harness.types import (
    Artifact,
    Carry,
    Demonstration,
    Edit,
    FitData,
    Forward,
    Intervention,
    Layout,
    Range,
    Site,
    Subject,
    TokenCount,
    Where,
    shared,
)

FACTORS = tuple(range(2, 21, 2))
"""One of these is drawn for every text that is steered towards the concept in training."""


@dataclass(frozen=True, kw_only=True)
class RePS(ConceptVector):
    """Add ``strength * v`` to one layer's output, ``v`` learnt from replies with and without the concept.

    A reply with the concept and a plain one to the same prompt are compared twice. With ``factor * v`` added the first
    must become more likely than the second; with the part along ``v`` taken out it is the other way round.

    Source:
        Wu et al. 2025, arXiv 2505.20809, section 3 (RePS; the "scaled_simpo" branch of the authors' code, whose learnt
        bias acts in training alone). Deviations: (1) Where no unwanted text answers a prompt, the plain reply is the
        model's own, greedy and at most ``reply_tokens`` long. (2) ``form=loreft`` is written by analogy, at one layer:
        the subspace's shift times the factor is added, and the state's part in the subspace is taken out. (3) All
        groups learn side by side in the same steps.

    Parameters:
        strength: the factor; 0 changes nothing, 2 to 20 was trained, the authors' runs go up to 50.

    Steers:
        The block output of one layer, at all tokens (``form=loreft``: behind the prefix); training leaves the prefix
        out.

    Requires:
        Demonstrations, wanted ones in every group; an unwanted one of the group that has the same prompt is its rival.

    Access:
        Training texts and which of them are wanted.

    Artifact:
        ``vector``: groups x width, ``peak``: groups, ones; or ``rotation`` and ``source``: groups x rank x width,
        ``bias``: groups x rank. ``layer``: (), ``prefix``: (); ``groups``: names as JSON bytes.

    Fidelity:
        Checked against the authors' values for the vector: losses, log-probabilities, vector and bias of a training
        run, the edit in training, the loss. ``form=loreft``: no values to compare with.
    """

    form: Literal["vector", "loreft"] = "vector"
    rank: int = 4
    """Of ``form=loreft``."""
    reply_tokens: int = 64
    """Longest plain reply that is written here."""
    training: Training = field(default_factory=Training)
    strength: float | Range = Range(low=0.0, high=50.0, default=10.0)

    def check(self, layout: Layout) -> None:
        """Refuse a layer that the model lacks, and counts that are none."""
        super().check(layout)
        if not 1 <= self.rank <= layout.width or self.reply_tokens < 1:
            raise ValueError(
                f"rank must be from 1 to {layout.width} and reply_tokens at least 1, got {self.rank} and "
                f"{self.reply_tokens}"
            )

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Learn one direction or subspace per group."""
        positives = [text for text in data.demonstrations if text.wanted]
        plain = plain_replies(subject, positives, data.demonstrations, self.reply_tokens)
        kind = VectorLearner if self.form == "vector" else SubspaceLearner
        learner = kind(subject, positives, plain, self.site(subject.layout), self)
        learner.learn(self.training, "reps")
        artifact = self.artifact(learner.site, learner.names, torch.empty(0), torch.ones(len(learner.names)))
        return artifact | learner.learnt() | {"prefix": torch.tensor(subject.prefix_length)}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit, at the layer that was learnt for."""
        if self.form == "vector":
            return super().intervention(artifact, condition, parameters)
        chosen = [artifact[name][condition["group"]] for name in ("rotation", "source", "bias")]
        edit = SubspaceEdit(*chosen, parameters["strength"], prefix_length=int(artifact["prefix"]))
        return Intervention({Site(int(artifact["layer"])): edit})

    def latents(
        self, subject: Subject, artifact: Artifact, texts: Sequence[tuple[str, str]], groups: Sequence[str]
    ) -> Float[Tensor, "N"] | None:
        """As `ConceptVector.latents`; a subspace has none."""
        return super().latents(subject, artifact, texts, groups) if self.form == "vector" else None


def plain_replies(
    subject: Subject, positives: Sequence[Demonstration], texts: Sequence[Demonstration], reply_tokens: int
) -> list[str]:
    """For each wanted text the unwanted completion of its prompt, or what the un-steered model writes."""
    rivals = {(text.group, text.prompt): text.completion for text in texts if not text.wanted}
    missing = sorted({text.prompt for text in positives if (text.group, text.prompt) not in rivals})
    own = dict(zip(missing, subject.generate(missing, max_new_tokens=reply_tokens), strict=True)) if missing else {}
    for prompt, reply in own.items():
        if not reply:
            raise ValueError(
                f"the model writes nothing to {prompt!r}: give the group an unwanted text with this prompt"
            )
    return [rivals.get((text.group, text.prompt)) or own[text.prompt] for text in positives]


def preference_loss(
    preferred: Float[Tensor, "B"],
    other: Float[Tensor, "B"],
    reference_preferred: Float[Tensor, "B"],
    reference_other: Float[Tensor, "B"],
    preferred_tokens: Float[Tensor, "B"],
    other_tokens: Float[Tensor, "B"],
) -> Float[Tensor, "B"]:
    """SimPO's loss, the preferred reply weighted by how much less likely than the other it is un-steered, at least 1.

    Args:
        preferred: summed log-probabilities in nats, steered.
        other: those of the other reply.
        reference_preferred: the same un-steered.
        reference_other: the same un-steered.
        preferred_tokens: lengths.
        other_tokens: lengths.
    """
    weight = (reference_other - reference_preferred).clamp(min=1)
    return -logsigmoid(weight / preferred_tokens * preferred - other / other_tokens)


@dataclass(frozen=True, eq=False)
class AddOrRemove(Edit):
    """``h + (factor + bias) v``, or at factor 0 ``h - relu(h . v + bias) / |v|^2 v``, behind the prefix."""

    vector: Float[Tensor, "B D"]
    bias: Float[Tensor, "B"]
    factor: Float[Tensor, "B"]
    prefix_length: int = shared(default=0)

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Shift each chosen token."""
        v, bias, factor = (value.to(torch.promote_types(h.dtype, torch.float32)) for value in self._values)
        along = (torch.einsum("btd,bd->bt", h.to(v.dtype), v) + bias[:, None]).relu()
        removed = -along / v.square().sum(1, keepdim=True)
        amount = torch.where(factor[:, None] == 0, removed, (factor + bias)[:, None])
        shifted = h + (amount[..., None] * v[:, None]).to(h.dtype)
        return torch.where(behind_prefix(where, self.prefix_length)[..., None], shifted, h), carry

    @property
    def _values(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.vector, self.bias, self.factor


class PreferenceLearner(TextLearner):
    """The loss of both comparisons; what is learnt is a subclass's.

    A pass holds each pair four times: wanted and plain reply with the factor, wanted and plain reply with removal.
    """

    def __init__(
        self, subject: Subject, positives: Sequence[Demonstration], plain: Sequence[str], site: Site, method: RePS
    ) -> None:
        super().__init__(subject, positives)
        self.plain, self.site = list(plain), site
        prompts, replies = [text.prompt for text in positives], [text.completion for text in positives]
        others = subject.token_counts(prompts, self.plain)
        lengths = [[one.completion, other.completion] for one, other in zip(self.counts, others, strict=True)]
        self.num_tokens = torch.tensor(lengths, device=subject.device).float()

        # Batches are planned by tokens, and a pass holds both replies of a pair twice.
        self.counts = [
            TokenCount(2 * (one.prompt + other.prompt), 2 * (one.completion + other.completion))
            for one, other in zip(self.counts, others, strict=True)
        ]

        sums = [
            torch.stack([row.sum() for row in subject.loglikelihood(prompts, texts)]) for texts in (replies, self.plain)
        ]
        self.reference = torch.stack(sums, 1).to(subject.device).float()

    def edit(self, groups: Tensor, factors: Float[Tensor, "B"]) -> Edit:
        """Steers rows of these groups; factor 0 removes."""
        raise NotImplementedError

    def learnt(self) -> Artifact:
        """Tensors that lead with the group."""
        raise NotImplementedError

    def factors(self, part: Part) -> Float[Tensor, "2 B"]:
        """A factor for the wanted and the plain reply of each pair."""
        places = torch.randint(len(FACTORS), (2, len(part.rows)), generator=part.generator())
        return torch.tensor(FACTORS, dtype=torch.float32)[places].to(self.reference.device)

    def loss(self, part: Part) -> Float[Tensor, ""]:
        """The mean over pairs and comparisons of each group's batch, summed over groups."""
        passed = self._pass(part)
        towards, towards_plain, away, away_plain = passed.logprobs().sum(1).chunk(4)
        reference, plain_reference = self.reference[list(part.rows)].unbind(1)
        tokens, plain_tokens = self.num_tokens[list(part.rows)].unbind(1)

        added = preference_loss(towards, towards_plain, reference, plain_reference, tokens, plain_tokens)
        removed = preference_loss(away_plain, away, plain_reference, reference, plain_tokens, tokens)
        return self.mean_over_texts(part, (added + removed) / 2)

    def _pass(self, part: Part) -> Forward:
        texts = [self.texts[row] for row in part.rows]
        completions = [text.completion for text in texts] + [self.plain[row] for row in part.rows]
        factors = self.factors(part).flatten()
        edit = self.edit(self.groups_of(part).repeat(4), torch.cat([factors, torch.zeros_like(factors)]))
        prompts = [text.prompt for text in texts] * 4
        return self.pass_of(prompts, completions * 2, Intervention({self.site: edit}))

    def read_texts(self) -> tuple[list[str], list[str]]:
        """Each prompt with its wanted and with its plain reply."""
        prompts, replies = super().read_texts()
        return prompts * 2, replies + self.plain


class VectorLearner(PreferenceLearner):
    """``v`` (groups x width), starting at random as a linear layer does, and its bias."""

    def __init__(
        self, subject: Subject, positives: Sequence[Demonstration], plain: Sequence[str], site: Site, method: RePS
    ) -> None:
        super().__init__(subject, positives, plain, site, method)
        width, generator = subject.layout.width, torch.Generator().manual_seed(method.training.seed)
        start = (2 * torch.rand(width, generator=generator) - 1) / width**0.5
        self.v = per_group(start.to(subject.device), len(self.names))
        self.bias = per_group(torch.zeros(1, device=subject.device), len(self.names))

    def edit(self, groups: Tensor, factors: Float[Tensor, "B"]) -> AddOrRemove:
        """Add the vector or take it out."""
        return AddOrRemove(self.v[groups], self.bias[groups, 0], factors, self.subject.prefix_length)

    def learnt(self) -> Artifact:
        """The vector; the bias has done its work."""
        return {"vector": self.v.detach()}


class SubspaceLearner(PreferenceLearner):
    """LoReFT's subspace and map."""

    def __init__(
        self, subject: Subject, positives: Sequence[Demonstration], plain: Sequence[str], site: Site, method: RePS
    ) -> None:
        super().__init__(subject, positives, plain, site, method)
        width, seed = subject.layout.width, method.training.seed
        self.spaces = Subspaces(len(self.names), 1, width, method.rank, seed, subject.device)

    def edit(self, groups: Tensor, factors: Float[Tensor, "B"]) -> SubspaceEdit:
        """Move within the subspace, or empty it."""
        kept = (factors != 0).float()
        source, bias = self.spaces.source[groups, 0], self.spaces.bias[groups, 0]
        rotation, strength = self.spaces.rotation()[groups, 0], torch.where(factors == 0, 1.0, factors)
        prefix = self.subject.prefix_length
        source, bias = source * kept[:, None, None], bias * kept[:, None]
        return SubspaceEdit(rotation, source, bias, strength, prefix_length=prefix)

    def learnt(self) -> Artifact:
        """Everything that the edit needs."""
        learnt = {"rotation": self.spaces.rotation(), "source": self.spaces.source, "bias": self.spaces.bias}
        return {name: value.detach()[:, 0] for name, value in learnt.items()}
