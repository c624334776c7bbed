"""KV cache steering: what later tokens look back at is changed once, behind the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harness import directions
from harness.types import (
    Access,
    Artifact,
    Carry,
    Edit,
    Example,
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
class AddToPrompt(Edit):
    """``h + vector`` at one token of the prompt, counted from its end."""

    vector: Float[Tensor, "B D"]
    back: int = shared(default=0)
    """0 is the last token of the prompt, 1 the one before it."""

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Shift that token; tokens of the completion are left alone, and so is a prompt that is too short."""
        if not where.prefill:
            return h, carry
        chosen = where.positions == where.prompt_lengths[:, None] - 1 - self.back
        if where.real is not None:
            chosen = chosen & where.real
        return torch.where(chosen[..., None], h + self.vector[:, None].to(h), h), carry


@dataclass(frozen=True, kw_only=True)
class KVCache(Method):
    """Add mean differences of wanted and unwanted completions to the stored keys and values of one prompt token.

    The token's own pass has happened by then: its states, and those of all tokens before it, are those of the
    un-steered model. Only tokens behind it read the new key and value, at every later step, at no further cost.

    Source:
        "KV Cache Steering for Controlling Frozen LLMs", 2025, arXiv 2507.08799, section 3, and the authors' code. They
        append a line break to the prompt, so that the prompt's last token is stored before the first token is chosen:
        what is edited is the token before the last one that is read. Deviations: nothing is appended;
        ``position="before_last"`` edits what the authors' code edits, of whatever text the model reads: chat templates
        end with a mark or line break of their own, and ``model.prompt_template`` can end with one. Completions of
        contrast pairs take the place of few-shot prompts with and without reasoning written by a larger model. Several
        groups of pairs have vectors of their own.

    Parameters:
        layer: counted from 0; this layer and all above it are steered, free per row.
        strength: c_v in the paper, 1 to 10 there: how often the values' difference is added; 0 changes no value,
            negative steers away.
        key_strength: c_k in the paper, 0 to 0.4 there: the same for keys.

    Steers:
        ``keys`` and ``values`` of one prompt token, ``position``, once.

    Requires:
        Contrast pairs in every group.

    Access:
        Pairs of the training split.

    Artifact:
        ``keys``, ``values``: groups x layers x (key heads * head width), differences at the completions' last token,
        keys behind the rotary embedding; ``groups``: names as JSON bytes.

    Fidelity:
        Checked against the authors' values: differences, kept heads, logits of the first token, greedy tokens.
    """

    requires: ClassVar = frozenset({"pairs"})
    access: ClassVar = frozenset({Access.PAIRS})

    position: Literal["before_last", "last"] = "before_last"
    """Which prompt token is edited. Behind ``last``, the first token of the completion is still un-steered."""
    heads: Literal["all", "strongest"] = "all"
    """Heads that are edited: all, or in each layer the one whose values' difference is longest (the release's
    pruning)."""
    layer: float | Range = Range(low=0, high=None, default=0, integer=True)
    strength: float | Range = Range(low=0.0, high=10.0, default=3.0)
    key_strength: float | Range = 0.0

    def check(self, layout: Layout) -> None:
        """Refuse unknown settings and layers that the model lacks."""
        super().check(layout)
        layout.check_stream("stream", "keys")
        layout.check_layer("layer", self.layer)

    def null(self, layout: Layout) -> Parameters:
        """Nothing is added."""
        return self.defaults(layout) | {"strength": 0.0, "key_strength": 0.0}

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Mean differences at the last token of the completions, for every group and layer."""
        groups = directions.grouped(data.pairs)
        prompts, layout = [pair.prompt for pair in data.pairs], subject.layout
        sites = [*directions.every_layer(subject, "keys"), *directions.every_layer(subject, "values")]
        positive, negative = (
            subject.capture(prompts, completions, sites, tokens="completion", pool="last")
            for completions in ([pair.positive for pair in data.pairs], [pair.negative for pair in data.pairs])
        )

        by_group = [
            torch.stack([directions.mean_difference(positive[site][rows], negative[site][rows]) for site in sites])
            for rows in groups.values()
        ]
        keys, values = torch.stack(by_group).split(layout.num_layers, dim=1)
        if self.heads == "strongest":
            kept = strongest_head(values.unflatten(-1, (-1, layout.head_width)))
            keys, values = keys * kept, values * kept

        return {
            "keys": keys.contiguous(),
            "values": values.contiguous(),
            "groups": directions.encoded_names(list(groups)),
        }

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """``group`` (B): whose differences each row adds."""
        return {"group": directions.group_rows(artifact, examples)}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """Edits of values, and of keys if some row asks for them; nothing is added below a row's first layer."""
        first, group = parameters["layer"].round(), condition["group"]
        back = 1 if self.position == "before_last" else 0
        edits: dict[Site, Edit] = {}
        for stream, amount in (("keys", parameters["key_strength"]), ("values", parameters["strength"])):
            if stream == "keys" and not bool(amount.any()):
                continue
            vectors = artifact[stream]
            for layer in range(int(first.min()), vectors.shape[1]):
                factor = torch.where(first <= layer, amount, 0.0)
                edits[Site(layer, stream)] = AddToPrompt(factor[:, None] * vectors[group, layer], back)
        return Intervention(edits)


def strongest_head(values: Float[Tensor, "*shape K E"]) -> Float[Tensor, "*shape K*E"]:
    """1 on the units of the head whose vector is longest (the first of several), 0 on all others."""
    longest = values.norm(dim=-1).argmax(-1)
    kept = torch.nn.functional.one_hot(longest, values.shape[-2]).to(values)
    return kept.repeat_interleave(values.shape[-1], -1)
