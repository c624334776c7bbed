"""Proof of steering: what the selected parameters really do to hidden states, measured once outside the hot path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.data import Parameters
from harness.records.run import Receipt, SiteChange
from harness.steering import Intervention, Site, Where
from harness.subject.attention import Plan
from harness.subject.hooks import Steering
from harness.subject.network import Padded
from harness.subject.passes import groups_of, next_token_logprobs
from harness.workbench import Request, Workbench

if TYPE_CHECKING:
    from jaxtyping import Float

    LogProbs = Float[Tensor, "N V"]

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

    def summary(self) -> dict[str, SiteChange]:
        """Per site: mean relative change over edited tokens, and how many tokens were edited."""
        # Not validated here: a change that is no number must end as an error that names the method.
        return {
            str(site): SiteChange.model_construct(
                relative_change=self.change[site] / max(1, sum(self.tokens[site])),
                tokens_prompt=self.tokens[site][0],
                tokens_completion=self.tokens[site][1],
            )
            for site in sorted(self.change)
        }


def prove(
    bench: Workbench, requests: Sequence[Request], completions: Sequence[tuple[int, ...]], method: str
) -> Receipt:
    """Run prompts with their completions once more, steered, and compare with the un-steered model.

    Args:
        bench: the workbench.
        requests: rows with the selected parameters.
        completions: token ids that each row produced.
        method: its name, for messages.

    Raises:
        NotSteeredError: an edit was never reached, no hidden state changed although the parameters are not the
            method's null and no control may have left it with nothing to do, or the change is not a number.
    """
    is_null = all(_is_null(bench, request.parameters) for request in requests)
    requests, completions = requests[:MEASURED_ROWS], completions[:MEASURED_ROWS]
    intervention = bench.intervention(requests)
    prompts = [bench.subject.encode(bench.prompt(request.example)) for request in requests]
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]

    meter = _measure_sites(bench, intervention, prompts, rows)
    missed = [str(site) for site in sorted(intervention.edits) if site not in meter.change]
    sites = meter.summary()
    steered, plain = _prompt_end_logprobs(bench, requests)
    kl = _divergence(steered, plain)
    changed = any(site.relative_change > 0 for site in sites.values())
    # A gate that learnt from shuffled labels may never open. The method itself is held to its own proof.
    is_idle = not changed and not is_null and bench.control.may_do_nothing
    _demand_effect(sites, missed, kl, is_null or is_idle, method)
    return Receipt(
        rows=len(requests),
        sites_hit=sum(site.relative_change > 0 for site in sites.values()),
        sites_missed=tuple(missed),
        sites=sites,
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        branching=float(_branching(steered).mean()),
        branching_unsteered=float(_branching(plain).mean()),
        null=is_null,
        idle=is_idle,
    )


def _is_null(bench: Workbench, parameters: Parameters) -> bool:
    """Whether the method is meant to change nothing at these parameters."""
    layout = bench.subject.layout
    null, defaults = bench.method.null(layout), bench.method.defaults(layout)
    if not null:
        return False
    # Only what turns the method off counts: at strength 0, every layer is as good as any other.
    decisive = [name for name in null if null[name] != defaults.get(name)] or list(null)
    return all(parameters.get(name) == null[name] for name in decisive)


def prompt_end_kl(bench: Workbench, requests: Sequence[Request]) -> Float[Tensor, "N"]:
    """Kullback-Leibler divergence in nats of the next-token distribution after each prompt, steered from un-steered."""
    return _divergence(*_prompt_end_logprobs(bench, requests))


def _prompt_end_logprobs(bench: Workbench, requests: Sequence[Request]) -> tuple[LogProbs, LogProbs]:
    """Next-token log-probabilities after each prompt, steered and un-steered."""
    network, tally = bench.subject.network, bench.subject.tally
    prompts = [bench.subject.encode(bench.prompt(request.example)) for request in requests]
    steered = next_token_logprobs(network, prompts, bench.intervention(requests), tally)
    return steered, bench.subject.next_token_logprobs(prompts)


def _divergence(steered: LogProbs, plain: LogProbs) -> Float[Tensor, "N"]:
    return (steered.exp() * (steered - plain)).sum(-1).clamp(min=0)


def _branching(logprobs: LogProbs) -> Float[Tensor, "N"]:
    """Among how many tokens the model wavers: the exponential of the entropy, 1 to the size of the vocabulary.

    Source: the branching factor of "Mechanistic Indicators of Steering Effectiveness" (2026), arXiv:2602.01716, at the
    prompt's end; not normalised.
    """
    return torch.special.entr(logprobs.exp()).sum(-1).exp()


@torch.no_grad()
def _measure_sites(
    bench: Workbench, intervention: Intervention, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]
) -> _SiteMeter:
    network, meter = bench.subject.network, _SiteMeter()
    together = None if intervention.groups is None else groups_of(intervention.groups)
    for members in together or torch.arange(len(rows)).split(8):
        index = torch.as_tensor(members)
        padded = Padded.of([rows[i] for i in index.tolist()], network.device)
        lengths = torch.tensor([len(prompts[i]) for i in index.tolist()], device=network.device)
        chosen = intervention.take(index)
        with Steering(network.blocks, chosen, observer=meter) as steering:
            steering.where = padded.where(lengths, chosen.groups)
            network.hidden(padded.ids, padded.positions, Plan())
    return meter


def _demand_effect(
    sites: Mapping[str, SiteChange], missed: Sequence[str], kl: Tensor, may_do_nothing: bool, method: str
) -> None:
    if missed:
        raise NotSteeredError(
            f"method {method} steers at sites that the model never passes through ({', '.join(missed)}): "
            "hooks on the wrong modules, or layers that are bypassed; no result was recorded"
        )

    changes = [site.relative_change for site in sites.values()]
    if not all(math.isfinite(change) for change in changes) or not bool(kl.isfinite().all()):
        raise NotSteeredError(f"method {method} made hidden states that are not numbers; lower its strength")
    if not may_do_nothing and not any(change > 0 for change in changes):
        raise NotSteeredError(
            f"method {method} did not change any hidden state ({len(changes)} sites were watched, 0 changed): "
            "its vectors are zero or its hooks do not reach the model; no result was recorded"
        )
