"""Activations of whole texts: pooled per text, or token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from harness.model_view import TokenStates
from harness.steering import Intervention, Site, Tokens, Where
from harness.subject.network import Network, pass_tokens
from harness.subject.passes import Text, run_pass, steered_batches, steering_of
from harness.subject.tally import Tally

if TYPE_CHECKING:
    from jaxtyping import Float


@torch.no_grad()
def capture(
    network: Network,
    texts: Sequence[Text],
    sites: Sequence[Site],
    *,
    tokens: Tokens,
    pool: Literal["mean", "last"],
    intervention: Intervention,
    tally: Tally,
) -> dict[Site, Float[Tensor, "N D"]]:
    """Activations after the edit of each site, pooled over the chosen tokens of each text, float32.

    Nothing is computed behind the last of the sites.

    Raises:
        ValueError: a text has none of the chosen tokens, or the model never comes through a site.
    """
    states = {site: torch.empty(len(texts), network.layout.site_width(site), device=network.device) for site in sites}
    for batch in steered_batches([len(text.ids) for text in texts], pass_tokens(network.device), intervention):
        rows = torch.tensor(batch, device=network.device)

        def pool_into(site: Site, h: Tensor, where: Where, rows: Tensor = rows) -> None:
            states[site][rows] = _pooled(h.float(), where, tokens, pool)

        chosen = [texts[index] for index in batch]
        run_pass(network, chosen, steering_of(intervention, rows), tally, sites, pool_into, stop=True)
    return states


@torch.no_grad()
def capture_tokens(
    network: Network,
    texts: Sequence[Text],
    sites: Sequence[Site],
    *,
    tokens: Tokens,
    intervention: Intervention,
    tally: Tally,
) -> Iterator[TokenStates]:
    """Activations of every chosen token after the edit of each site, float32, a batch of texts at a time.

    Nothing is computed behind the last of the sites.

    Raises:
        ValueError: the model never comes through a site.
    """
    for batch in steered_batches([len(text.ids) for text in texts], pass_tokens(network.device), intervention):
        rows = torch.tensor(batch, device=network.device)
        states: dict[Site, Tensor] = {}

        def keep(site: Site, h: Tensor, where: Where, states: dict[Site, Tensor] = states) -> None:
            mask = where.mask(tokens)
            states[site] = (h.flatten(0, 1) if mask is None else h[mask]).float()

        chosen = [texts[index] for index in batch]
        passed = run_pass(network, chosen, steering_of(intervention, rows), tally, sites, keep, stop=True)
        mask = passed.where.mask(tokens)
        mask = torch.ones_like(passed.ids, dtype=torch.bool) if mask is None else mask
        text = rows[:, None].expand_as(passed.ids)
        yield TokenStates(states, text[mask], passed.where.positions[mask], passed.ids[mask])


def _pooled(h: Tensor, where: Where, tokens: Tokens, pool: Literal["mean", "last"]) -> Float[Tensor, "B D"]:
    mask = where.mask(tokens)
    if mask is not None and not bool(mask.any(1).all()):
        raise ValueError(f"a text has no tokens of the kind '{tokens}' to read activations from")
    if pool == "mean":
        return where.mean(h, tokens)
    at = where.positions if mask is None else where.positions.masked_fill(~mask, -1)
    return h[torch.arange(h.shape[0], device=h.device), at.argmax(1)]
