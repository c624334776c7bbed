"""Decoding steps as graphs of torch.compile, and the slots that stay in place for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.subject.attention import Span
from harness.subject.sizes import Shapes
from harness.subject.slots import Slots

MOST_GRAPHS = 64
"""Graphs of one process, at most: one for each kind of intervention, task and number of rows."""

_kept: WeakKeyDictionary[nn.Module, Slots] = WeakKeyDictionary()


class Step(Protocol):
    """A decoding step: how many slots, how many stored positions, and which rows read how many of them."""

    def __call__(self, count: int, window: int, spans: Sequence[Span]) -> None:
        """Do it."""
        ...


def compiled(step: Step, device: torch.device, backend: str | Callable[..., Any] = "inductor") -> Step:
    """The same step as one graph per pair of shapes, replayed as a CUDA graph where there is CUDA.

    Args:
        step: touches nothing but tensors, hooks included.
        device: where it runs.
        backend: of torch.compile.
    """
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    mode = "reduce-overhead" if device.type == "cuda" and backend == "inductor" else None
    return torch.compile(step, fullgraph=True, dynamic=False, backend=backend, mode=mode)


def kept_slots(model: nn.Module) -> Slots | None:
    """The slots that were last made for this model's graphs."""
    return _kept.get(model)


def lasting_slots(model: nn.Module, shapes: Shapes, draws: int, device: torch.device, num_layers: int) -> Slots:
    """Slots that stay in memory, and in place, between pools of rows: graphs made for them stay valid."""
    kept = _kept.get(model)
    if kept is None or (kept.count, kept.capacity, kept.draws) != (shapes.slots, shapes.capacity, draws):
        _kept.pop(model, None)  # before the new ones are made: there may be no room for both
        kept = _kept[model] = Slots(num_layers, shapes.slots, shapes.capacity, draws, device)
    kept.clear()
    return kept


def hold_in_place(buffers: Iterable[Tensor]) -> None:
    """Promise that these buffers keep their place in memory: a graph then writes to them instead of to copies."""
    for buffer in buffers:
        torch._dynamo.mark_static_address(buffer)
