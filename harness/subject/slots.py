"""What rows own while they are decoded: tokens, keys and values, edits and what edits carry, each row in its slot.

All of it lies in buffers that are made once, for as many slots as rows run at once, and are written in place. A row's
keys and values lie at positions 0, 1, 2 … of its slot, so it never carries another row's padding: prompts enter
right-padded (causal attention hides the padding, and the next token overwrites it), later every row writes at its own
position. Rows in flight stand in the first slots; those that leave are overwritten by the last ones or by new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from harness.steering import PER_TOKEN, Carry
from harness.subject.slot_edits import SlotEdits

if TYPE_CHECKING:
    from jaxtyping import Int

IN_FLIGHT, STOPPED, FULL, PRUNED, EMPTY = range(5)
"""How a slot's row stands: it runs, met a stop token, has its full length, went round in circles; or there is none."""


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
        count, length = key_states.shape[0], key_states.shape[2]

        if self.storage.positions is None:
            self.keys[self.storage.rows, :, :length] = key_states
            self.values[self.storage.rows, :, :length] = value_states
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
        self.positions: Tensor | None = None
        self.rows: Tensor = torch.empty(0, dtype=torch.long)
        self.window = 0
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def expect_prompts(self, slots: Int[Tensor, "B"]) -> None:
        """The next pass brings whole prompts for these slots."""
        self.rows, self.positions = slots, None

    def expect_tokens(self, rows: Int[Tensor, "B"], positions: Int[Tensor, "B"], window: int) -> None:
        """The next pass brings one token for each of the first B slots, to be stored at these positions.

        Args:
            rows: 0 to B - 1.
            positions: below ``window``, each.
            window: how many positions attention reads.
        """
        self.rows, self.positions, self.window = rows, positions, window

    def buffers(self) -> Iterator[Tensor]:
        """All that lies here."""
        for layer in self.layers:
            if isinstance(layer, SlotLayer) and layer.keys is not None and layer.values is not None:
                yield from (layer.keys, layer.values)


class SlotTokens:
    """Token ids and counters of the rows, on the model's device, so that a step needs nothing from the host.

    Args:
        slots: rows that fit at once.
        capacity: tokens that fit in one slot.
        draws: random numbers per row.
        device: where the model lives.
    """

    def __init__(self, slots: int, capacity: int, draws: int, device: torch.device) -> None:
        # One column more than tokens fit: a row that is done goes on writing behind its end until it is taken out.
        self.ids_SC = torch.zeros(slots, capacity + 1, dtype=torch.long, device=device)
        # A slot without a row holds one token: passes of few shapes compute some such slots along.
        self.lengths_S = torch.ones(slots, dtype=torch.long, device=device)
        self.prompt_lengths_S = torch.ones_like(self.lengths_S)
        self.near_ties_S = torch.zeros_like(self.lengths_S)
        self.state_S = torch.full_like(self.lengths_S, EMPTY)
        self.groups_S = torch.zeros_like(self.lengths_S)
        self.uniform_SN = torch.zeros(slots, draws, dtype=torch.float32, device=device)
        self.slots_S = torch.arange(slots, device=device)

    def admit(
        self,
        slots: Int[Tensor, "B"],
        ids: Int[Tensor, "B T"],
        lengths: Int[Tensor, "B"],
        groups: Int[Tensor, "B"],
    ) -> None:
        """Take over prompts, padded on the right, and which of them are steered together."""
        self.ids_SC[slots, : ids.shape[1]] = ids
        self.lengths_S[slots] = self.prompt_lengths_S[slots] = lengths
        self.near_ties_S[slots] = 0
        self.state_S[slots] = IN_FLIGHT
        self.groups_S[slots] = groups

    def groups(self, slots: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """The group of each slot's row; what is done, or no row at all, belongs to none."""
        return torch.where(self.state_S[slots] == IN_FLIGHT, self.groups_S[slots], -1 - slots)

    def buffers(self) -> Iterator[Tensor]:
        """All that lies here."""
        yield from (self.ids_SC, self.lengths_S, self.prompt_lengths_S, self.near_ties_S, self.state_S, self.groups_S)
        yield self.uniform_SN


class SlotCarry:
    """What edits carry, an entry per slot.

    Args:
        slots: rows that fit at once.
        capacity: tokens that fit in one slot, for what is remembered per token.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self._slots, self._capacity = slots, capacity
        self._entries: dict[str, Tensor] = {}
        self._spare: dict[str, Tensor] = {}

    def admit(self, slots: Int[Tensor, "B"], carry: Carry) -> None:
        """Take over what the pass over the prompts of new rows has left. Entries that they lack are zero."""
        for key, entry in self._entries.items():
            if key not in carry:
                entry[slots] = 0
        for key, value in carry.items():
            if key not in self._entries:
                self._entries[key] = self._entry(key, value)
            if key.endswith(PER_TOKEN):
                self._entries[key][slots, : value.shape[1]] = value
            else:
                self._entries[key][slots] = value

    def _entry(self, key: str, value: Tensor) -> Tensor:
        further = (self._capacity, *value.shape[2:]) if key.endswith(PER_TOKEN) else value.shape[1:]
        spare = self._spare.get(key)
        if spare is not None and spare.shape[1:] == further and spare.dtype == value.dtype:
            return spare.zero_()
        return value.new_zeros((self._slots, *further))

    def clear(self) -> None:
        """Forget all entries: no row is left. Buffers are kept for entries of the same kind."""
        self._spare |= self._entries
        self._entries.clear()

    def first(self, count: int) -> dict[str, Tensor]:
        """The entries of the first slots, as views."""
        return {key: entry[:count] for key, entry in self._entries.items()}

    def store(self, handed: Carry, returned: Carry) -> None:
        """Write down what a decoding step changed in the entries that it was handed."""
        for key, value in returned.items():
            if key not in handed:
                raise KeyError(
                    f"carry entry '{key}' appeared while decoding; edits must make it when they see the prompt"
                )
            if value is not handed[key]:
                handed[key].copy_(value)

    def buffers(self) -> Iterator[Tensor]:
        """All that lies here."""
        yield from self._entries.values()


class Slots:
    """Everything that the rows in flight own.

    Args:
        num_layers: layers of the model.
        count: rows that fit at once.
        capacity: tokens that fit in one slot.
        draws: random numbers per row.
        device: where the model lives.
    """

    def __init__(self, num_layers: int, count: int, capacity: int, draws: int, device: torch.device) -> None:
        self.count, self.capacity, self.draws, self.device = count, capacity, draws, device
        self.tokens = SlotTokens(count, capacity, draws, device)
        self.cache = SlotCache(num_layers, count, capacity)
        self.edits = SlotEdits(count, device)
        self.carry = SlotCarry(count, capacity)

    def clear(self) -> None:
        """Forget the edits of rows that have left; the next ones may bring others."""
        self.edits.clear()
        self.carry.clear()

    def buffers(self) -> Iterator[Tensor]:
        """All that lies in the slots."""
        for part in (self.tokens, self.cache, self.edits, self.carry):
            yield from part.buffers()

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows over the slots of others, with all that they own."""
        source, target = (torch.tensor(slots, device=self.device) for slots in (sources, targets))
        for buffer in self.buffers():
            buffer[target] = buffer[source]
