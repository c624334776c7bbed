"""How many rows run at once, and the few shapes that their passes take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.subject.memory import available_memory
from harness.subject.network import Network
from harness.subject.sharding import is_sharded, least

CPU_ROWS, ACCELERATOR_ROWS = 64, 1024
"""Rows at once, at most, where nothing is set: more do not decode faster."""
MEMORY_SHARE = 0.5
"""Share of the free memory that rows may take."""
LOGIT_BYTES = 16
"""For each row and each entry of the vocabulary: logits, and what choosing a token makes of them."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the engine runs. Token ids depend on it at near ties alone.

    Args:
        token_budget: tokens (prompt and completion, over all rows) held at once; None finds it from free memory.
        max_rows: rows at once, at most; None means 64 on a CPU and 1,024 on an accelerator.
        compile: decode with a graph made by torch.compile: minutes at the start for less time per token. Meant for
            accelerators, where it takes the host out of the way.
    """

    token_budget: int | None = None
    max_rows: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that hold nothing."""
        for name, value in (("token_budget", self.token_budget), ("max_rows", self.max_rows)):
            if value is not None and value < 1:
                raise ValueError(f"engine.{name} must be at least 1, got {value}")


def rows_that_fit(network: Network, engine: EngineConfig, tokens_per_row: int, bytes_per_token: int = 0) -> int:
    """How many rows of this length to hold at once.

    Args:
        network: the model; its device's free memory counts unless a token budget is set.
        engine: limits.
        tokens_per_row: prompt and completion.
        bytes_per_token: what edits keep for each token, besides keys and values.
    """
    limit = engine.max_rows or (CPU_ROWS if network.device.type == "cpu" else ACCELERATOR_ROWS)
    if engine.token_budget is not None:
        return max(1, min(limit, engine.token_budget // tokens_per_row))
    per_row = bytes_per_row(network, tokens_per_row, bytes_per_token)
    rows = max(1, min(limit, int(_free_bytes(network.device) * MEMORY_SHARE) // per_row))
    return least(rows, network.device) if is_sharded(network.model) else rows


def bytes_per_row(network: Network, tokens_per_row: int, bytes_per_token: int = 0) -> int:
    """What a row of this length holds while it runs: keys, values, what edits keep per token, and its logits."""
    vocabulary = network.model.config.get_text_config().vocab_size
    return (network.cache_bytes_per_token() + bytes_per_token) * tokens_per_row + LOGIT_BYTES * vocabulary


def _free_bytes(device: torch.device) -> int:
    return available_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


@dataclass(frozen=True)
class Shapes:
    """Which shapes decoding passes have.

    A CPU computes exactly the rows and positions that there are. An accelerator takes as long for a few more, but each
    new shape costs it dearly, most of all where graphs are compiled: it gets few.

    Args:
        slots: rows that fit at once.
        capacity: positions of a slot.
        rows_steps: the numbers of rows that passes have, rising; empty: any.
        window_step: stored positions that attention reads are a multiple of it, or all.
    """

    slots: int
    capacity: int
    rows_steps: tuple[int, ...] = ()
    window_step: int = 1

    @classmethod
    def of(cls, device: torch.device, slots: int, tokens: int, compiled: bool = False) -> Shapes:
        """The shapes for so many rows of at most so many tokens.

        Compiled, all slots are computed as long as more than a quarter of them is in use, and all positions are read:
        two graphs in all.
        """
        if compiled:
            capacity = _up(tokens, 128)
            return cls(slots, capacity, tuple(sorted({-(-slots // 4), slots})), capacity)
        if device.type == "cpu":
            return cls(slots, tokens)
        halves = {-(-slots // 2**power) for power in range(5)}
        return cls(slots, _up(tokens, 64), tuple(sorted(halves)), 64)

    def rows(self, count: int) -> int:
        """Rows of the pass that computes the first ``count`` slots."""
        return next((step for step in self.rows_steps if step >= count), count)

    @property
    def varied(self) -> bool:
        """Whether rows of different lengths may read their keys in several spans, each of a shape of its own."""
        return self.window_step < self.capacity

    def window(self, longest: int) -> int:
        """Positions that attention reads where the longest row has so many."""
        return min(_up(longest, self.window_step), self.capacity)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
