"""Proof of steering: what the selected parameters really do to hidden states, measured once outside the hot path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from harness.steering import Intervention, Site, Where
from harness.subject.attention import Plan
from harness.subject.hooks import Steering
from harness.subject.network import Padded
from harness.subject.passes import next_token_logprobs
from harness.workbench import Request, Workbench

MEASURED_ROWS = 32
"""Rows on which a receipt is measured, at most."""


class NotSteeredError(RuntimeError):
    """A method that should change hidden states did not."""


class _SiteMeter:
    """Adds up how far each site's states were moved, over real tokens."""

    def __init__(self) -> None:
        self.change: dict[Site, float] = {}
        self.tokens: dict[Site, list[int]] = {}

    def __call__(self, site: Site, before: Tensor, after: Tensor, where: Where) -> None:
        moved = (after.float() - before.float()).norm(dim=-1)
        relative = moved / before.float().norm(dim=-1).clamp(min=1e-12)
        if where.real is not None:
            relative = relative * where.real
        edited = relative > 0
        prompt = where.positions < where.prompt_lengths[:, None]
        counts = self.tokens.setdefault(site, [0, 0])
        counts[0] += int((edited & prompt).sum())
        counts[1] += int((edited & ~prompt).sum())
        self.change[site] = self.change.get(site, 0.0) + float(relative.sum())

    def summary(self) -> dict[str, dict[str, float]]:
        """Per site: mean relative change over edited tokens, and how many tokens were edited."""
        return {
            str(site): {
                "relative_change": self.change[site] / max(1, sum(self.tokens[site])),
                "tokens_prompt": self.tokens[site][0],
                "tokens_completion": self.tokens[site][1],
            }
            for site in sorted(self.change)
        }


def measure(bench: Workbench, requests: Sequence[Request], completions: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Run prompts with their completions once more, steered, and compare with the un-steered model.

    Args:
        bench: the workbench.
        requests: rows with the selected parameters.
        completions: token ids that each row produced.

    Returns:
        ``sites`` by name, ``sites_hit``, ``sites_missed`` (edits that no pass came by), ``rows``, ``kl_mean`` and
        ``kl_max``: Kullback-Leibler divergence in nats of the next-token distribution at the prompt's end, steered from
        un-steered.
    """
    requests, completions = requests[:MEASURED_ROWS], completions[:MEASURED_ROWS]
    intervention = bench.intervention(requests)
    prompts = [bench.subject.encode(bench.prompt(request.example)) for request in requests]
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    meter = _measure_sites(bench, intervention, prompts, rows)
    kl = prompt_end_kl(bench, requests)
    sites = meter.summary()
    hit = sum(1 for site in sites.values() if site["relative_change"] > 0)
    return {
        "rows": len(requests),
        "sites_hit": hit,
        "sites_missed": [str(site) for site in sorted(intervention.edits) if site not in meter.change],
        "sites": sites,
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
    }


def prompt_end_kl(bench: Workbench, requests: Sequence[Request]) -> Float[Tensor, "N"]:
    """Kullback-Leibler divergence in nats of the next-token distribution after each prompt, steered from un-steered."""
    network, tally = bench.subject.network, bench.subject.tally
    prompts = [bench.subject.encode(bench.prompt(request.example)) for request in requests]
    steered = next_token_logprobs(network, prompts, bench.intervention(requests), tally)
    plain = next_token_logprobs(network, prompts, Intervention(), tally)
    return (steered.exp() * (steered - plain)).sum(-1).clamp(min=0)


@torch.no_grad()
def _measure_sites(
    bench: Workbench, intervention: Intervention, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]
) -> _SiteMeter:
    network, meter = bench.subject.network, _SiteMeter()
    for start in range(0, len(rows), 8):
        index = torch.arange(start, min(start + 8, len(rows)))
        padded = Padded.of([rows[i] for i in index.tolist()], network.device)
        lengths = torch.tensor([len(prompts[i]) for i in index.tolist()], device=network.device)
        with Steering(network.blocks, intervention.take(index), observer=meter) as steering:
            steering.where = padded.where(lengths)
            network.hidden(padded.ids, padded.positions, Plan())
    return meter


def demand_effect(receipt: dict[str, Any], method: str) -> None:
    """Refuse the result of a method that should steer and did not.

    Raises:
        NotSteeredError: an edit was never reached, no hidden state changed, or the change is not a number.
    """
    if missed := receipt.get("sites_missed"):
        raise NotSteeredError(
            f"method {method} steers at sites that the model never passes through ({', '.join(missed)}): "
            "hooks on the wrong modules, or layers that are bypassed; no result was recorded"
        )
    changes = [site["relative_change"] for site in receipt["sites"].values()]
    if not all(math.isfinite(change) for change in changes):
        raise NotSteeredError(f"method {method} made hidden states that are not numbers; lower its strength")
    if not changes or receipt["sites_hit"] == 0:
        raise NotSteeredError(
            f"method {method} did not change any hidden state ({len(changes)} sites were watched, 0 changed): "
            "its vectors are zero or its hooks do not reach the model; no result was recorded"
        )
