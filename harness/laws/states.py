"""Hidden states of real rows, batched by hand with padding on either side, and an intervention applied to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from harness.subject.attention import Plan
from harness.subject.hooks import Steering
from harness.subject.network import Network, Padded
from harness.types import Carry, Intervention, Site, Stream, Where

FLOW = get_args(Stream)
"""The order in which a forward pass reaches the streams of a block."""
GARBAGE = 9e3
"""What padding holds: large enough to be seen in any mean that counts it."""
Side = Literal["left", "right"]


def in_flow(sites: Sequence[Site] | set[Site]) -> list[Site]:
    """Sites in the order in which a forward pass reaches them."""
    return sorted(sites, key=lambda site: (site.layer, FLOW.index(site.stream)))


def sites_of(intervention: Intervention) -> list[Site]:
    """Every site that is read or edited."""
    return in_flow({*intervention.edits, *intervention.probes})


@dataclass(frozen=True)
class Rows:
    """Un-steered states of each row, token by token, at each site; ``prompts`` counts the prompt's tokens."""

    states: Mapping[Site, Sequence[Tensor]]
    prompts: Sequence[int]

    @classmethod
    @torch.no_grad()
    def of(
        cls, network: Network, sites: Sequence[Site], texts: Sequence[Sequence[int]], prompts: Sequence[int]
    ) -> Rows:
        """Read the states of each text, alone in its batch."""
        by_site: dict[Site, list[Tensor]] = {site: [] for site in sites}

        def note(site: Site, before: Tensor, _after: Tensor, _where: Where) -> None:
            by_site[site].append(before[0].clone())

        for text, prompt in zip(texts, prompts, strict=True):
            padded = Padded.of([text], network.device)
            with Steering(network.blocks, Intervention(), sites, note) as steering:
                steering.where = padded.where(torch.tensor([prompt]))
                network.hidden(padded.ids, padded.positions, Plan())
        return cls(by_site, prompts)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.prompts)

    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in next(iter(self.states.values()))]

    def take(self, rows: Sequence[int]) -> Rows:
        """The chosen rows; they may repeat."""
        return Rows(
            {site: [own[row] for row in rows] for site, own in self.states.items()},
            [self.prompts[row] for row in rows],
        )

    def without_last(self) -> Rows:
        """All but each row's last token."""
        return Rows({site: [row[:-1] for row in own] for site, own in self.states.items()}, self.prompts)

    def to(self, dtype: torch.dtype) -> Rows:
        """The states in another precision."""
        return Rows({site: [row.to(dtype) for row in own] for site, own in self.states.items()}, self.prompts)

    def prefill(self, side: Side) -> Pass:
        """A pass over whole rows from position 0, padded on one side where lengths differ."""
        lengths, longest = torch.tensor(self.lengths())[:, None], max(self.lengths())
        columns = torch.arange(longest).expand(len(self), -1)
        positions = columns - (longest - lengths) if side == "left" else columns
        real = (positions >= 0) & (positions < lengths)
        where = Where(positions, None if bool(real.all()) else real, torch.tensor(self.prompts), prefill=True)
        states = {}
        for site, own in self.states.items():
            states[site] = torch.full((*positions.shape, own[0].shape[1]), GARBAGE, dtype=own[0].dtype)
            states[site][real] = torch.cat(list(own))
        return Pass(states, where)

    def last(self) -> Pass:
        """The decoding pass over each row's last token."""
        positions = torch.tensor(self.lengths())[:, None] - 1
        states = {site: torch.stack([row[-1:] for row in own]) for site, own in self.states.items()}
        return Pass(states, Where(positions, None, torch.tensor(self.prompts), prefill=False))


@dataclass(frozen=True)
class Pass:
    """States that reach each site in one forward pass."""

    states: Mapping[Site, Tensor]
    where: Where

    def through(self, intervention: Intervention, carry: Carry | None = None) -> tuple[dict[Site, Tensor], Carry]:
        """The states after the intervention, each site fed with the given states, and the carry to keep."""
        carry = MappingProxyType(dict(carry or {}))
        after = {}
        for site, h in self.states.items():
            where = dataclasses.replace(self.where, groups=intervention.groups).at(site)
            if site in intervention.probes:
                carry = MappingProxyType(dict(intervention.probes[site].read(h, where, carry)))
            after[site] = h
            if site in intervention.edits:
                after[site], carry = intervention.edits[site].apply(h, where, carry)
        return after, carry

    def real(self, after: Mapping[Site, Tensor]) -> dict[Site, list[Tensor]]:
        """Each row's states without padding."""
        real = self.where.real
        if real is None:
            return {site: list(h) for site, h in after.items()}
        return {site: [row[mask] for row, mask in zip(h, real, strict=True)] for site, h in after.items()}


def chosen(carry: Carry, rows: Sequence[int]) -> Carry:
    """The carry of the chosen rows, indexed as the engine indexes it."""
    index = torch.tensor(list(rows))
    return {key: value[index] for key, value in carry.items()}
