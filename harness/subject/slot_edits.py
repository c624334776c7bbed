"""The interventions of all rows in flight as one, so that rows of different searches and rounds share a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from harness.steering import Carry, Edit, Intervention, Probe, RowData, Site, Where

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Key = tuple[Literal["edit", "probe"], Site]


class SlotEdits:
    """Edits and probes whose row-leading tensors are buffers with one entry per slot.

    Rows bring interventions of their own. They fit together if, site by site, they are of the same kind and share what
    is not theirs alone. A row is left alone at a site that its own intervention does not name.

    Args:
        slots: rows that fit at once.
        device: where the model lives.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self._slots, self._device = slots, device
        self._buffers: dict[Key, RowData] = {}
        self._acts: dict[Key, Bool[Tensor, "S"]] = {}
        self._partial: set[Key] = set()
        self._spare: dict[Key, RowData] = {}
        self._admitted = False

    def clear(self) -> None:
        """Forget all edits: no row is left. Buffers are kept for rows with edits of the same kind."""
        self._spare |= self._buffers
        for forgotten in (self._buffers, self._acts, self._partial):
            forgotten.clear()
        self._admitted = False

    def fits(self, intervention: Intervention) -> bool:
        """Whether rows with this intervention can join those that are here."""
        members = _members(intervention)
        return all(_alike(self._buffers[key], new) for key, new in members.items() if key in self._buffers)

    def admit(self, slots: Int[Tensor, "B"], intervention: Intervention) -> None:
        """Take over the edits of new rows, row-leading over ``slots``."""
        members = _members(intervention)
        for key, new in members.items():
            if key not in self._buffers:
                self._buffers[key] = self._buffer(key, new)
                self._acts[key] = torch.zeros(self._slots, dtype=torch.bool, device=self._device)
                self._partial |= {key} if self._admitted else set()

            for held, rows in zip(row_tensors(self._buffers[key]), row_tensors(new), strict=True):
                held[slots] = rows

        for key, acts in self._acts.items():
            acts[slots] = key in members
        self._partial |= self._acts.keys() - members.keys()
        self._admitted = True

    def _buffer(self, key: Key, new: RowData) -> RowData:
        spare = self._spare.get(key)
        if spare is not None and _alike(spare, new):
            return spare
        return new.mapped(lambda rows: rows.new_zeros((self._slots, *rows.shape[1:])))

    def first(self, count: int) -> Intervention:
        """The intervention of the first slots; its tensors are views."""
        edits, probes = {}, {}
        for (kind, site), buffer in self._buffers.items():
            member: Any = buffer.mapped(lambda rows: rows[:count])
            acts = self._acts[kind, site][:count]
            # Only where some rows have no edit does a mask say which: it costs every step.
            everywhere = (kind, site) not in self._partial
            if kind == "edit":
                edits[site] = member if everywhere else _SomeRowsEdit(member, acts)
            else:
                probes[site] = member if everywhere else _SomeRowsProbe(member, acts)
        return Intervention(edits, probes)

    def buffers(self) -> Iterator[Tensor]:
        """All that lies here."""
        yield from self._acts.values()
        for buffer in self._buffers.values():
            yield from row_tensors(buffer)


def _members(intervention: Intervention) -> dict[Key, RowData]:
    members: dict[Key, RowData] = {("edit", site): edit for site, edit in intervention.edits.items()}
    members.update({("probe", site): probe for site, probe in intervention.probes.items()})
    return members


def row_tensors(data: RowData) -> list[Tensor]:
    """The row-leading tensors, in an order that depends on the type alone."""
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    data.mapped(note)
    return tensors


def _alike(held: Any, new: Any) -> bool:
    """Whether two values differ at most in what belongs to their rows."""
    if type(held) is not type(new):
        return False
    if isinstance(held, RowData):
        for item in dataclasses.fields(held):
            same = _equal if item.metadata.get("shared") else _alike
            if not same(getattr(held, item.name), getattr(new, item.name)):
                return False
        return True

    if isinstance(held, Tensor):
        return held.shape[1:] == new.shape[1:] and held.dtype == new.dtype
    if isinstance(held, Mapping):
        return held.keys() == new.keys() and all(_alike(held[key], new[key]) for key in held)
    if isinstance(held, tuple):
        return len(held) == len(new) and all(map(_alike, held, new))
    return held == new


def _equal(held: Any, new: Any) -> bool:
    """Whether what rows share is the same for both."""
    if held is new:
        return True
    if type(held) is not type(new):
        return False

    # Comparing values costs a pass over them: tensors in one place are equal without it.
    if isinstance(held, Tensor):
        same_place = (held.data_ptr(), held.shape, held.stride()) == (new.data_ptr(), new.shape, new.stride())
        return same_place or (held.dtype == new.dtype and torch.equal(held, new))
    if isinstance(held, RowData):
        return all(_equal(getattr(held, item.name), getattr(new, item.name)) for item in dataclasses.fields(held))
    if isinstance(held, Mapping):
        return held.keys() == new.keys() and all(_equal(held[key], new[key]) for key in held)
    if isinstance(held, tuple):
        return len(held) == len(new) and all(map(_equal, held, new))
    return held == new


@dataclass(frozen=True, eq=False)
class _SomeRowsEdit(Edit):
    """An edit at a site that not all rows name."""

    inner: Edit
    acts: Bool[Tensor, "B"]

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """The edited state where the edit acts."""
        edited, after = self.inner.apply(h, where, carry)
        return torch.where(self.acts[:, None, None], edited, h), _kept(carry, after, self.acts)


@dataclass(frozen=True, eq=False)
class _SomeRowsProbe(Probe):
    """A probe at a site that not all rows name."""

    inner: Probe
    acts: Bool[Tensor, "B"]

    def read(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> Carry:
        """The carry, changed where the probe acts."""
        return _kept(carry, self.inner.read(h, where, carry), self.acts)


def _kept(before: Carry, after: Carry, acts: Bool[Tensor, "B"]) -> Carry:
    """Entries of rows that take no part stay as they were."""
    kept = dict(after)
    for key, value in after.items():
        if key in before and value is not before[key]:
            kept[key] = torch.where(acts.view(-1, *[1] * (value.dim() - 1)), value, before[key])
    return kept
