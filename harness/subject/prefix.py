"""Scoring many completions of few prompts: each prompt is computed once, its completions go on from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from harness.subject.attention import Plan
from harness.subject.network import Network, Padded

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_NEVER = 2**40
"""A position that no query reaches."""


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
        super().__init__(layers=[_PromptLayer(self) for _ in range(num_layers)])


def by_prompt(prompts: Sequence[Sequence[int]], limit: int, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches that keep the rows of one prompt together, padded size at most ``limit``."""
    first = {tuple(prompt): index for index, prompt in reversed(list(enumerate(prompts)))}
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), first[tuple(prompts[i])], lengths[i]))
    batch: list[int] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if batch and longest * (len(batch) + 1) > limit:
            yield batch
            batch, longest = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch


def hidden_before_completions(
    network: Network, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[list[Float[Tensor, "C D"]], int]:
    """Final hidden states at the positions that predict each completion's tokens, and the tokens computed for them."""
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    number = {prompt: index for index, prompt in enumerate(unique)}
    device, cache = network.device, PromptCache(network.layout.num_layers)
    padded = Padded.of(unique, device)
    h = network.hidden(padded.ids, padded.positions, Plan(), cache)  # pyright: ignore[reportArgumentType]
    last = h[torch.arange(len(unique), device=device), padded.lengths - 1]
    cache.owners = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=device)
    fed = Padded.of([completion[:-1] or completion for completion in completions], device)
    positions = padded.lengths[cache.owners][:, None] + fed.positions
    stored = padded.positions.masked_fill(padded.positions >= padded.lengths[:, None], _NEVER)[cache.owners]
    plan = Plan(at=(positions, torch.cat([stored, positions], 1)))
    later = network.hidden(fed.ids, positions, plan, cache)  # pyright: ignore[reportArgumentType]
    found = [
        torch.cat([last[owner][None], later[row, : len(completion) - 1]])
        for row, (owner, completion) in enumerate(zip(cache.owners.tolist(), completions, strict=True))
    ]
    return found, padded.ids.numel() + fed.ids.numel()
