"""A stand-in for a language model whose hidden states are known: texts are looked up, blocks are plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from harness.types import Carry, Intervention, Layout, Site, Tokens, Where

Block = Callable[[Tensor], Tensor]


def where_of(lengths: Sequence[int], prompt_lengths: Sequence[int] | None = None, *, side: str = "left") -> Where:
    """A prefill pass over rows of these lengths, padded on one side."""
    width, lengths_B1 = max(lengths), torch.tensor(lengths)[:, None]
    columns = torch.arange(width).expand(len(lengths), width)
    positions = columns - (width - lengths_B1) if side == "left" else columns
    real = (positions >= 0) & (positions < lengths_B1)
    full = bool(real.all())
    return Where(positions, None if full else real, torch.tensor(prompt_lengths or lengths), True)


def decode_step(where: Where) -> Where:
    """The pass over one further token of every row, without padding."""
    following = where.positions.masked_fill(~where.real, -1) if where.real is not None else where.positions
    return Where(following.max(1, keepdim=True).values + 1, None, where.prompt_lengths, False)


def run_blocks(
    h_BTD: Tensor, blocks: Sequence[Block], where: Where, intervention: Intervention, carry: Carry | None = None
) -> tuple[dict[Site, Tensor], Carry]:
    """States at the input and output of every block, after probes and edits of the same site, and the carry."""
    states: dict[Site, Tensor] = {}
    carry = {} if carry is None else carry
    for layer, block in enumerate(blocks):
        for site in (Site(layer, "block_input"), Site(layer, "block")):
            h_BTD = block(h_BTD) if site.stream == "block" else h_BTD
            if site in intervention.probes:
                carry = intervention.probes[site].read(h_BTD, where.at(site), carry)
            if site in intervention.edits:
                h_BTD, carry = intervention.edits[site].apply(h_BTD, where.at(site), carry)
            states[site] = h_BTD
    return states, carry


@dataclass(frozen=True)
class ToySubject:
    """Texts are names of token states (T, D); a completion's states follow the prompt's."""

    texts: Mapping[str, Tensor]
    blocks: Sequence[Block]

    @property
    def layout(self) -> Layout:
        """One head as wide as the model."""
        width = next(iter(self.texts.values())).shape[1]
        return Layout(num_layers=len(self.blocks), width=width, num_heads=1, head_width=width)

    def capture(
        self,
        prompts: Sequence[str],
        completions: Sequence[str] | None,
        sites: Sequence[Site],
        *,
        tokens: Tokens = "all",
        pool: Literal["mean", "last"] = "mean",
        intervention: Intervention | None = None,
        raw: bool = False,
    ) -> dict[Site, Tensor]:
        """Pooled states of left-padded rows, one row of the intervention per text."""
        heads = [self.texts[name] for name in prompts]
        tails = [self.texts[name] for name in completions or ()] or [head[:0] for head in heads]
        rows = [torch.cat(parts) for parts in zip(heads, tails, strict=True)]
        where = where_of([len(row) for row in rows], [len(head) for head in heads])
        width = max(len(row) for row in rows)
        h_BTD = torch.stack([functional.pad(row, (0, 0, width - len(row), 0), value=9e3) for row in rows])
        states, _ = run_blocks(h_BTD, self.blocks, where, intervention or Intervention())
        if pool == "mean":
            return {site: where.mean(states[site], tokens) for site in sites}
        mask = where.mask(tokens)
        assert mask is None or bool(mask[:, -1].all()), "the last token is the last chosen one in these tests"
        return {site: states[site][:, -1] for site in sites}
