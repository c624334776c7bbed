"""Where edits act: sites of the model, tokens of a text, and what one forward pass covers.

Tensor names carry their shape: ``h_BTD`` is batch x tokens x width. ``B`` counts rows (one row is one prompt with one
set of parameters), ``T`` the tokens of this forward pass, ``D`` the width of the site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Stream = Literal[
    "block_input",
    "attention_norm_input",
    "attention_norm",
    "keys",
    "values",
    "heads",
    "attention",
    "attention_post_norm",
    "mlp_norm_input",
    "mlp_norm",
    "neurons",
    "mlp",
    "mlp_post_norm",
    "block",
]
"""Where in a decoder block, in the order in which a forward pass reaches them.

``block_input`` and ``block`` are the residual stream before and after the block. ``attention`` and ``mlp`` are what the
two parts give out, ``heads`` the concatenated heads that enter the attention's output projection, ``neurons`` what
enters the MLP's down projection; the width of these two may differ from the model's. ``attention_norm`` and
``mlp_norm`` are the outputs of the norms before the two parts. An edit of ``attention_norm_input`` or
``mlp_norm_input`` changes what that norm reads and leaves the residual stream as it is. ``attention_post_norm`` and
``mlp_post_norm`` are the outputs of the norms that some families (Gemma 2 and 3, OLMo 2) have behind the two parts.
Where attention and MLP run side by side (GPT-NeoX), ``mlp_norm_input`` is the block's input.

``keys`` and ``values`` are what attention looks back at, all key heads side by side, keys behind the rotary embedding.
What an edit makes of a token's key and value is what *later* tokens read; the token itself, whose pass is under way,
reads its own as they were: the edit changes what is stored. Plain transformers models cannot be steered there."""

STORED_STREAMS: tuple[Stream, ...] = ("keys", "values")
"""Streams whose edits change what later tokens look back at, and nothing of a token's own pass."""

Tokens = Literal["all", "after_first", "prompt", "completion", "last_prompt", "predicting"]
"""Which tokens an edit acts on. ``after_first`` leaves out a text's first token, where many models keep activations so
large that they dominate any mean. ``predicting`` is the last prompt token and every completion token: the positions
whose output chooses a token. It is what papers call "the last position of every forward pass"."""

Artifact = dict[str, Tensor]
Carry = Mapping[str, Tensor]
"""What edits learn during one generation or pass, row-leading, keyed by ``where.key(name)``. Never modified in place.

An entry is a value per row (a decision, a shift) or, if `Where.remember` made it, a value per row and token. Its shape
and dtype stay the same from the prompt on: the engine gives each entry a place in the row's slot.

In training it is also how an edit hands out a side loss: what it leaves in the carry comes back with its graph in
`harness.types.Forward.carry`, one entry per row."""

PER_TOKEN = "/tokens"
"""How the keys of carry entries end whose second axis counts a row's tokens."""


class Site(NamedTuple):
    """A place in the model that an edit or probe can reach. ``layer`` counts from 0."""

    layer: int
    stream: Stream = "block"

    def __str__(self) -> str:
        return f"{self.layer}.{self.stream}"


@dataclass(frozen=True, eq=False)
class Where:
    """What one forward pass covers, for every row of the batch.

    Args:
        positions: absolute position of each token among the row's real tokens, from 0; any value on padding.
        real: False on padding. None means that this pass holds no padding.
        prompt_lengths: number of real prompt tokens of each row.
        prefill: this pass starts at position 0 and so holds the whole prompt of every row.
        site: the site being visited.
        window: set by the engine while it decodes from slots: what is remembered per token lies in the slots, and so
            many positions of it are in use.
        groups: of rows that are steered together, the number of each row's group: see
            `harness.steering.Intervention`. None: every row is on its own.
    """

    positions: Int[Tensor, "B T"]
    real: Bool[Tensor, "B T"] | None
    prompt_lengths: Int[Tensor, "B"]
    prefill: bool
    site: Site = Site(0)
    window: int | None = None
    groups: Int[Tensor, "B"] | None = None
    _memo: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    def at(self, site: Site) -> Where:
        """The same pass seen from another site; masks are computed once for all sites."""
        return Where(
            self.positions,
            self.real,
            self.prompt_lengths,
            self.prefill,
            site,
            self.window,
            self.groups,
            self._memo,
        )

    def key(self, name: str) -> str:
        """A carry key of this site's own."""
        return f"{self.site}/{name}"

    def mask(self, tokens: Tokens) -> Bool[Tensor, "B T"] | None:
        """Which tokens are meant, padding excluded; None when every token of this pass is."""
        if tokens not in self._memo:
            self._memo[tokens] = self._compute_mask(tokens)
        return self._memo[tokens]

    def _compute_mask(self, tokens: Tokens) -> Tensor | None:
        if tokens == "all" or (not self.prefill and tokens in ("after_first", "completion", "predicting")):
            return self.real

        prompt_B1 = self.prompt_lengths[:, None]
        match tokens:
            case "after_first":
                chosen = self.positions >= 1
            case "prompt":
                chosen = self.positions < prompt_B1
            case "completion":
                chosen = self.positions >= prompt_B1
            case "last_prompt":
                chosen = self.positions == prompt_B1 - 1
            case "predicting":
                chosen = self.positions >= prompt_B1 - 1

        return chosen if self.real is None else chosen & self.real

    def keep(
        self, new: Float[Tensor, "B T D"], h: Float[Tensor, "B T D"], tokens: Tokens = "all"
    ) -> Float[Tensor, "B T D"]:
        """``new`` on the chosen tokens, ``h`` on all others."""
        mask = self.mask(tokens)
        return new if mask is None else torch.where(mask[..., None], new, h)

    def gather(self, h: Float[Tensor, "B T D"], tokens: Tokens = "all") -> Float[Tensor, "M D"]:
        """The chosen tokens' states alone, row after row.

        For edits that cost much per token: compute new states for these, and let `scatter` put them in their places.
        """
        mask = self.mask(tokens)
        return h.flatten(0, 1) if mask is None else h[mask]

    def rows(self, tokens: Tokens = "all") -> Int[Tensor, "M"]:
        """The row that each of the gathered states belongs to, to index row-leading tensors with."""
        mask = self.mask(tokens)
        if mask is None:
            count, length = self.positions.shape
            return torch.arange(count, device=self.positions.device).repeat_interleave(length)
        return mask.nonzero()[:, 0]

    def scatter(
        self, new: Float[Tensor, "M D"], h: Float[Tensor, "B T D"], tokens: Tokens = "all"
    ) -> Float[Tensor, "B T D"]:
        """``h`` with new states, as many as `gather` gave, in place of the chosen tokens'."""
        mask = self.mask(tokens)
        return new.view_as(h).to(h.dtype) if mask is None else h.masked_scatter(mask[..., None], new.to(h.dtype))

    def mean(self, h: Float[Tensor, "B T D"], tokens: Tokens = "all") -> Float[Tensor, "B D"]:
        """Mean over the chosen tokens of this pass (padding never counts); zero for a row without any."""
        mask = self.mask(tokens)
        if mask is None:
            return h.mean(1)
        weight = mask.to(h.dtype)
        return torch.einsum("btd,bt->bd", h, weight) / weight.sum(1, keepdim=True).clamp(min=1)

    def remember(
        self, name: str, new: Float[Tensor, "B T ..."], carry: Carry
    ) -> tuple[Float[Tensor, "B W ..."], Carry]:
        """Keep a value for every token of this pass, and get those of all tokens so far: for edits that look back.

        What an edit keeps here lives with its row as the model's own keys and values do: rows that leave, join and move
        take it along, and a decoding step writes one token's value in place.

        Args:
            name: what is kept; each site has names of its own.
            new: a value per token, of any further shape.
            carry: what the edit was handed.

        Returns:
            The values so far, this pass's included, position p of a row at index p, and the carry to hand on. Behind a
            row's last token stands anything: look only at what `sees` allows.
        """
        key = self.key(name) + PER_TOKEN
        rows = torch.arange(new.shape[0], device=new.device)[:, None]
        if self.window is not None:
            stored = carry[key]
            stored[rows, self.positions] = new  # the slots are the engine's; no other carry is ever written to
            return stored[:, : self.window], carry

        before = new[:, :0] if self.prefill else carry[key]
        width = before.shape[1] + new.shape[1]
        # Padding goes to a column of its own, which is cut off again.
        values = torch.cat([before, torch.zeros_like(new), torch.zeros_like(new[:, :1])], 1)
        places = self.positions if self.real is None else torch.where(self.real, self.positions, width)
        values = values.index_put((rows, places), new)[:, :width]
        return values, {**carry, key: values}

    def sees(self, width: int) -> Bool[Tensor, "B T W"]:
        """Which of the first ``width`` positions each token may look at: its own and those before it."""
        return torch.arange(width, device=self.positions.device) <= self.positions[..., None]
