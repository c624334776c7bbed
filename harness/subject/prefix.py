"""Prompts computed once: what blocks below the first edit make of a prompt serves all rows that go on from it.

That holds for the trials of a search, whose edits begin at the same site, and for its texts, which the un-steered model
scores. The states are kept over rounds, until they would take too much memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from harness.steering import Intervention, Site
from harness.subject.attention import Plan
from harness.subject.hooks import skipped, stopped_behind
from harness.subject.network import Network, Padded, pass_tokens
from harness.subject.slots import SlotCache

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from harness.subject.tally import Tally

_NEVER = 2**40
"""A position that no query reaches."""
_LEAST_SHARE = 8
"""Blocks are shared if they are at least one in so many: fewer are computed faster than they are kept."""
_MOST_BYTES = {"cpu": 2**28, "other": 2**32}
"""Memory for prompts' states. It does not depend on what is free, so that a restart finds the same ones kept."""


def shared_depth(intervention: Intervention, num_layers: int, read: Sequence[Site] = ()) -> int:
    """How many blocks, from the first, compute the same for every row of a prompt; 0 if they are too few.

    Args:
        intervention: what acts on the rows.
        num_layers: blocks of the model.
        read: further sites, whose states are asked for.
    """
    sites = {*intervention.edits, *intervention.probes, *read}
    if not sites:
        return num_layers
    # Never all of them: the final norm belongs to the states of prompts that were computed to the end.
    depth = min(num_layers - 1, *(site.layer + (site.stream == "block") for site in sites))
    return depth if depth * _LEAST_SHARE >= num_layers else 0


class _PromptLayer(DynamicLayer):
    """Keys and values of whole prompts, then handed out to the rows that go on from them."""

    def __init__(self, cache: PromptCache) -> None:
        super().__init__()
        self.cache = cache

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep the prompts' states; later, put each row's prompt before its own states."""
        if self.cache.owners is None:
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        assert self.keys is not None
        assert self.values is not None
        owners = self.cache.owners
        return torch.cat([self.keys[owners], key_states], 2), torch.cat([self.values[owners], value_states], 2)


class PromptCache(Cache):
    """Keys and values of prompts. ``owners`` names each later row's prompt; None while prompts are computed."""

    def __init__(self, num_layers: int) -> None:
        self.owners: Int[Tensor, "B"] | None = None
        self.kept = [_PromptLayer(self) for _ in range(num_layers)]
        super().__init__(layers=list(self.kept))

    def keys_and_values(self, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of each of the first ``depth`` layers."""
        for layer in self.kept[:depth]:
            assert layer.keys is not None
            assert layer.values is not None
            yield layer.keys, layer.values


@dataclass(eq=False)
class Group:
    """Prompts that were computed together, in the first ``depth`` blocks.

    Args:
        padded: their tokens.
        depth: how many blocks.
        cache: their keys and values in these blocks.
        states: U x T x D, behind the last of these blocks; behind the final norm too if they are all.
        in_tuple: the model's blocks give out their states in a tuple.
    """

    padded: Padded
    depth: int
    cache: PromptCache
    states: Float[Tensor, "U T D"]
    in_tuple: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        kept = self.cache.keys_and_values(self.depth)
        return self.states.nbytes + sum(keys.nbytes + values.nbytes for keys, values in kept)


@dataclass(frozen=True, eq=False)
class Part:
    """Those of the prompts asked for that lie in one group: which of them, and the group's rows that they are."""

    members: list[int]
    rows: Int[Tensor, "B"]
    group: Group

    def __getitem__(self, chosen: Sequence[int]) -> Part:
        """Some of the members, by their places."""
        places = torch.tensor(chosen, device=self.rows.device)
        return Part([self.members[place] for place in chosen], self.rows[places], self.group)

    def padded(self, longest: int) -> Padded:
        """The tokens of these prompts, none of which has more than ``longest``."""
        whole = self.group.padded
        ids, positions, lengths = (part[self.rows] for part in (whole.ids, whole.positions, whole.lengths))
        positions = positions[:, :longest]
        return Padded(ids[:, :longest], positions, lengths, positions < lengths[:, None])

    def states(self, longest: int) -> Float[Tensor, "B T D"]:
        """What the shared blocks make of these prompts."""
        return self.group.states[self.rows, :longest]

    def fill(self, cache: SlotCache, longest: int) -> None:
        """Put keys and values of the shared blocks into the slots that the cache expects prompts for."""
        for index, (keys, values) in enumerate(self.group.cache.keys_and_values(self.group.depth)):
            cache.update(keys[self.rows, :, :longest], values[self.rows, :, :longest], index)

    def skipping(self, blocks: Sequence[nn.Module], longest: int) -> AbstractContextManager[None]:
        """Let the pass inside the context begin behind the shared blocks: these compute nothing."""
        return skipped(blocks[: self.group.depth], self.states(longest), in_tuple=self.group.in_tuple)


_memories: WeakKeyDictionary[nn.Module, PromptMemory] = WeakKeyDictionary()


def memory_of(network: Network) -> PromptMemory:
    """The prompts of a model that are kept."""
    return _memories.setdefault(network.model, PromptMemory())


class PromptMemory:
    """States of prompts in blocks that no edit has touched, the least recently used given up first."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, tuple[int, ...]], tuple[Group, int]] = {}
        self._groups: dict[Group, None] = {}

    def forget(self) -> None:
        """Free everything."""
        self._places.clear()
        self._groups.clear()

    def knows(self, prompt: Sequence[int], depth: int) -> bool:
        """Whether a prompt's states in so many blocks are here."""
        return (depth, tuple(prompt)) in self._places

    def parts(self, network: Network, prompts: Sequence[Sequence[int]], depth: int, tally: Tally) -> list[Part]:
        """The prompts' states in the first ``depth`` blocks, computed where they are not known; they may repeat."""
        missing = {tuple(prompt) for prompt in prompts if not self.knows(prompt, depth)}
        for batch in _batches(sorted(missing, key=lambda prompt: (len(prompt), prompt)), pass_tokens(network.device)):
            group = _computed(network, batch, depth, tally)
            self._groups[group] = None
            self._places.update({(depth, prompt): (group, row) for row, prompt in enumerate(batch)})

        # The prompts asked for may lie in several groups, computed at different times.
        members: dict[Group, list[tuple[int, int]]] = {}
        for index, prompt in enumerate(prompts):
            group, row = self._places[depth, tuple(prompt)]
            members.setdefault(group, []).append((index, row))
        self._give_up(network.device, members)
        return [
            Part([index for index, _ in pairs], torch.tensor([row for _, row in pairs], device=network.device), group)
            for group, pairs in members.items()
        ]

    def _give_up(self, device: torch.device, used: dict[Group, list[tuple[int, int]]]) -> None:
        # The order of the dictionary is that of the last use: what is used now goes to its end.
        for group in used:
            self._groups.pop(group)
            self._groups[group] = None

        most = _MOST_BYTES["cpu" if device.type == "cpu" else "other"]
        while sum(group.size for group in self._groups) > most and len(self._groups) > len(used):
            oldest = next(iter(self._groups))
            del self._groups[oldest]
            self._places = {key: place for key, place in self._places.items() if place[0] is not oldest}


def _batches(prompts: Sequence[tuple[int, ...]], limit: int) -> Iterator[list[tuple[int, ...]]]:
    """Prompts, the shortest first, in batches whose padded size stays under the limit."""
    batch: list[tuple[int, ...]] = []
    for prompt in prompts:
        if batch and len(prompt) * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


@torch.inference_mode(False)  # or edits of later batches could take no gradients through these states
@torch.no_grad()
def _computed(network: Network, prompts: Sequence[tuple[int, ...]], depth: int, tally: Tally) -> Group:
    padded, cache = Padded.of(prompts, network.device), PromptCache(network.layout.num_layers)
    blocks = network.blocks.modules
    tally.count(padded.ids.numel(), sum(map(len, prompts)), depth / len(blocks))
    if depth == len(blocks):
        return Group(padded, depth, cache, network.hidden(padded.ids, padded.positions, Plan(), cache))
    with stopped_behind(blocks[depth - 1]) as outputs:
        network.hidden(padded.ids, padded.positions, Plan(), cache)
    (output,) = outputs
    in_tuple = isinstance(output, tuple)
    return Group(padded, depth, cache, output[0] if in_tuple else output, in_tuple)


def completion_states(
    network: Network, part: Part, completions: Sequence[Sequence[int]], tally: Tally
) -> list[Float[Tensor, "C D"]]:
    """Final states at the positions that predict each completion's tokens.

    Args:
        network: the model.
        part: prompts known in all blocks, one for each completion.
        completions: token ids.
        tally: where work is counted.
    """
    group, owners = part.group, part.rows
    lengths = group.padded.lengths[owners]
    # The last token predicts nothing, unless it is the only one: a pass needs some token.
    fed = Padded.of([completion[:-1] or completion for completion in completions], network.device)
    tally.count(fed.ids.numel(), sum(max(1, len(completion) - 1) for completion in completions))

    # Completions stand right behind their own prompts; padding behind a shorter prompt is put where nobody looks.
    positions = lengths[:, None] + fed.positions
    before = group.padded.positions[owners]
    before = before.masked_fill(before >= lengths[:, None], _NEVER)
    plan = Plan(at=(positions, torch.cat([before, positions], 1)))
    group.cache.owners = owners
    later = network.hidden(fed.ids, positions, plan, group.cache)

    last = group.states[owners, lengths - 1]
    return [
        torch.cat([last[row, None], later[row, : len(completion) - 1]]) for row, completion in enumerate(completions)
    ]
