"""Attention and key/value storage for batches whose rows have lengths of their own and come and go.

Every row owns a *slot*: its keys and values lie at positions 0, 1, 2 … of that slot, so a row never carries another
row's padding. Prompts enter right-padded (causal attention hides the padding from real tokens, and the next token
overwrites it); afterwards every row writes at its own position.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache
from transformers.cache_utils import CacheLayerMixin

if TYPE_CHECKING:
    from jaxtyping import Float, Int

IMPLEMENTATION = "harness_slots"


@dataclass
class Plan:
    """How the tokens of one forward pass may look at each other.

    Args:
        lengths: decoding: the number of tokens each row holds, this one included. None: a pass over right-padded rows
            from position 0.
        at: positions of the queries and of all keys, for rows that go on from a shared prompt; a key at a position
            behind the query's is hidden.
    """

    lengths: Int[Tensor, "B"] | None = None
    at: tuple[Int[Tensor, "B T"], Int[Tensor, "B W"]] | None = None
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def decode_mask(self, window: int, sliding: int | None, like: Tensor) -> Float[Tensor, "B 1 1 W"]:
        """0 where a stored position may be seen, minus infinity elsewhere; computed once per forward pass."""
        assert self.lengths is not None
        if (window, sliding) not in self._masks:
            stored = torch.arange(window, device=like.device)
            hidden = stored >= self.lengths[:, None]
            if sliding is not None:
                hidden |= stored < self.lengths[:, None] - sliding
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[window, sliding] = mask.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self._masks[window, sliding]

    def continued_mask(self, sliding: int | None, like: Tensor) -> Float[Tensor, "B 1 T W"]:
        """0 where a key's position is not behind the query's and not out of the sliding window."""
        assert self.at is not None
        if (0, sliding) not in self._masks:
            query, key = self.at[0][:, :, None], self.at[1][:, None, :]
            hidden = key > query
            if sliding is not None:
                hidden |= key <= query - sliding
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[0, sliding] = mask.masked_fill_(hidden, float("-inf"))[:, None]
        return self._masks[0, sliding]

    def prefill_mask(self, length: int, sliding: int, like: Tensor) -> Float[Tensor, "1 1 T T"]:
        """Causal and no further back than the sliding window."""
        if (length, sliding) not in self._masks:
            at = torch.arange(length, device=like.device)
            hidden = (at[None] > at[:, None]) | (at[None] <= at[:, None] - sliding)
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[length, sliding] = mask.masked_fill_(hidden, float("-inf"))[None, None]
        return self._masks[length, sliding]


def attend(
    module: nn.Module,
    query: Float[Tensor, "B H T E"],
    key: Float[Tensor, "B K W E"],
    value: Float[Tensor, "B K W E"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    plan: Plan | None = None,
    **_unused: Any,
) -> tuple[Float[Tensor, "B T H E"], None]:
    """Attention as transformers calls it, masked by the plan instead of a mask tensor."""
    if plan is None:
        raise ValueError("this model is held by the harness; reload it to call it directly")
    if plan.lengths is not None:
        out = _decode_attention(query, key, value, plan, scaling, softcap, sliding_window)
    else:
        mask = (
            plan.continued_mask(sliding_window, query)
            if plan.at
            else _causal_mask(query, plan, sliding_window, softcap)
        )
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = _masked(query, key, value, mask, scaling, softcap)
    return out.transpose(1, 2), None


def _causal_mask(query: Tensor, plan: Plan, sliding_window: int | None, softcap: float | None) -> Tensor | None:
    length = query.shape[2]
    if sliding_window is not None and length > sliding_window:
        return plan.prefill_mask(length, sliding_window, query)
    return plan.prefill_mask(length, length, query) if softcap else None


def _decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    scaling: float | None,
    softcap: float | None,
    sliding_window: int | None,
) -> Float[Tensor, "B H 1 E"]:
    # The query heads that share a key head become query positions, so that keys are not repeated in memory.
    batch, heads, _, width = query.shape
    packed = query.reshape(batch, key.shape[1], heads // key.shape[1], width)
    mask = plan.decode_mask(key.shape[2], sliding_window, query)
    return _masked(packed, key, value, mask, scaling, softcap).reshape(batch, heads, 1, width)


def _masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None and query.shape[2] > 1, scale=scaling
        )
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores if mask is None else scores + mask
    return torch.softmax(scores, -1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype) @ value


AttentionInterface.register(IMPLEMENTATION, attend)


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: slots x heads x positions x width, allocated on first use."""

    def __init__(self, storage: SlotCache) -> None:
        super().__init__()
        self.storage = storage

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate all slots in the dtype and on the device of the first keys."""
        slots, capacity = self.storage.slots, self.storage.capacity
        self.keys = key_states.new_zeros((slots, key_states.shape[1], capacity, key_states.shape[3]))
        self.values = value_states.new_zeros((slots, value_states.shape[1], capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store this pass's keys and values; return those that its queries may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        first, count = self.storage.first, key_states.shape[0]
        if self.storage.positions is None:
            self.keys[first : first + count, :, : key_states.shape[2]] = key_states
            self.values[first : first + count, :, : key_states.shape[2]] = value_states
            return key_states, value_states
        rows, positions, window = self.storage.rows, self.storage.positions, self.storage.window
        self.keys[rows, :, positions] = key_states[:, :, 0]
        self.values[rows, :, positions] = value_states[:, :, 0]
        return self.keys[:count, :, :window], self.values[:count, :, :window]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Part of transformers' interface; masks come from the plan."""
        return self.storage.window, 0

    def get_seq_length(self) -> int:
        """Part of transformers' interface; positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """Positions per slot."""
        return self.storage.capacity


class SlotCache(Cache):
    """Key/value storage in which rows leave and join.

    Args:
        num_layers: layers of the model.
        slots: rows that fit at once.
        capacity: tokens that fit in one slot.
    """

    def __init__(self, num_layers: int, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self.first = 0
        self.positions: Tensor | None = None
        self.rows: Tensor = torch.empty(0, dtype=torch.long)
        self.window = 0
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def expect_prompts(self, first: int) -> None:
        """The next pass brings whole prompts for the slots from ``first`` on."""
        self.first, self.positions = first, None

    def expect_tokens(self, positions: Int[Tensor, "B"], longest: int) -> None:
        """The next pass brings one token for each of the first B slots, to be stored at these positions."""
        self.positions, self.window = positions, longest
        self.rows = torch.arange(positions.shape[0], device=positions.device)

    def move(self, source: int, target: int) -> None:
        """Copy one slot's content over another's."""
        for layer in self.layers:
            if isinstance(layer, SlotLayer) and layer.keys is not None and layer.values is not None:
                layer.keys[target] = layer.keys[source]
                layer.values[target] = layer.values[source]
