"""The first pass of a method's edits, looked at closely: mistakes in a plug-in are named before anything is searched.

The engine itself checks nothing in its passes, which are many; an edit that breaks the contract would end there as an
error of some library, or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.steering import Carry, Edit, Intervention, RowData, Site, Where
from harness.subject.attention import Plan
from harness.subject.hooks import Steering
from harness.subject.network import Padded

if TYPE_CHECKING:
    from harness.workbench import Request, Workbench

_MOST_ROWS = 2
_TOLERANCE = 1e-3
"""Relative difference of a row's states that batches of one shape may make."""


class ContractError(TypeError):
    """A plug-in does something that `harness.types` rules out."""


def check_intervention(intervention: Any, method: object, rows: int) -> None:
    """Look at what `Method.intervention` returned, without a pass.

    Args:
        intervention: what it returned.
        method: the method, for messages.
        rows: of the batch.

    Raises:
        ContractError: it is no `Intervention`, holds other things than edits, or a tensor has no row for each row.
    """
    name = type(method).__qualname__
    if not isinstance(intervention, Intervention):
        raise ContractError(f"{name}.intervention must return an Intervention, got {_kind(intervention)}")
    for part, kind in (("edits", "Edit"), ("probes", "Probe")):
        for site, acting in getattr(intervention, part).items():
            if not isinstance(site, Site):
                raise ContractError(f"{name}.intervention: the keys of {part} must be Sites, got {site!r}")
            if not isinstance(acting, RowData):
                raise ContractError(f"{name}.intervention: {part}[{site}] must be an {kind}, got {_kind(acting)}")
            _check_rows(acting, f"{type(acting).__qualname__} at {site}", rows)


def check_first_pass(bench: Workbench, requests: Sequence[Request]) -> None:
    """Run the prompts of one or two requests once, steered, with every edit watched.

    Args:
        bench: the workbench.
        requests: steered rows; at most two are looked at.

    Raises:
        ContractError: an edit breaks the contract of `harness.types.Edit.apply`; the message names class and site.
    """
    requests = requests[:_MOST_ROWS]
    prompts = [bench.subject.encode(bench.prompt(request.example)) for request in requests]
    intervention = bench.intervention(requests)
    watched = dataclasses.replace(
        intervention, edits={site: _Watched(edit) for site, edit in intervention.edits.items()}
    )
    states = _first_rows(bench, prompts, watched)
    # The same shapes with other neighbours: whatever the first row's states are, they must not depend on these.
    others = [tuple(reversed(prompt)) for prompt in prompts[1:]]
    if not others or intervention.groups is not None:
        return
    again = _first_rows(bench, [prompts[0], *others], intervention)
    for site, state in states.items():
        apart = (again[site].float() - state.float()).norm() / state.float().norm().clamp(min=1e-6)
        if apart > _TOLERANCE:
            edit = intervention.edits[site]
            raise ContractError(
                f"{type(edit).__qualname__} at {site} mixes rows: a row's states change by {float(apart):.1%} with the "
                "prompts beside it in the batch; every operation must work along the axes behind the first"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class _Watched(Edit):
    """An edit, and a look at what it does."""

    inner: Edit

    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        """What the edit returns, if it may."""
        name = f"{type(self.inner).__qualname__}.apply at {where.site}"
        before, kept = h.clone(), {key: value.clone() for key, value in carry.items()}
        result: Any = self.inner.apply(h, where, carry)

        if not isinstance(result, tuple) or len(result) != 2:
            raise ContractError(f"{name} must return the new state and the carry, got {_kind(result)}")
        new, learnt = result
        if not isinstance(new, Tensor):
            raise ContractError(f"{name} must return a tensor as the new state, got {_kind(new)}")
        if new.shape != before.shape:
            raise ContractError(f"{name} changed the shape of the state from {_shape(before)} to {_shape(new)}")
        if not torch.equal(h, before):
            raise ContractError(f"{name} changed the state in place; it must return a new tensor")
        if not isinstance(learnt, Mapping):
            raise ContractError(f"{name} must return a mapping of tensors as the carry, got {_kind(learnt)}")
        if any(not torch.equal(carry[key], value) for key, value in kept.items()):
            raise ContractError(f"{name} changed the carry in place; it must return a new mapping")
        for key, value in learnt.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(before):
                actual = _shape(value) if isinstance(value, Tensor) else _kind(value)
                raise ContractError(f"{name}: carry[{key!r}] must be a tensor with {len(before)} rows, got {actual}")
        return new, learnt


@torch.no_grad()
def _first_rows(bench: Workbench, prompts: Sequence[Sequence[int]], intervention: Intervention) -> dict[Site, Tensor]:
    """The first row's real states behind the edit of each site."""
    network = bench.subject.network
    states: dict[Site, Tensor] = {}

    def observe(site: Site, _before: Tensor, after: Tensor, _where: Where) -> None:
        if site in intervention.edits:
            states[site] = after[0, : len(prompts[0])].clone()

    padded = Padded.of(prompts, network.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=network.device)
    bench.subject.tally.forward_tokens += padded.ids.numel()
    with Steering(network.blocks, intervention, observer=observe) as steering:
        steering.where = padded.where(lengths, intervention.groups)
        network.hidden(padded.ids, padded.positions, Plan())
    return states


def _check_rows(part: RowData, name: str, rows: int) -> None:
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, RowData):
            _check_rows(value, name, rows)
            continue
        if not isinstance(value, Tensor) or field.metadata.get("shared"):
            continue
        if value.ndim == 0 or len(value) != rows:
            raise ContractError(
                f"{name}: {field.name} must have one row for each of {rows} rows, got {_shape(value)}; what all rows "
                "have in common is declared with shared()"
            )


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _shape(tensor: Tensor) -> str:
    return "a single number" if tensor.ndim == 0 else f"the shape {list(tensor.shape)}"
