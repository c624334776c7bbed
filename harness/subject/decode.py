"""Batched steered decoding: rows in, rows out.

Each row has its own prompt, length, edits and randomness. Finished rows leave the batch at once and waiting rows take
their place, so nothing is computed for rows that are done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from harness.steering import Carry, Intervention, Where
from harness.subject.attention import Plan, SlotCache
from harness.subject.hooks import Observer, Steering
from harness.subject.memory import available_memory
from harness.subject.network import Network, Padded, pass_tokens

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Finish = Literal["stop", "length", "pruned"]
NEAR_TIE = 1e-3
"""Two logits closer than this may swap places when a batch is composed differently."""
_LOOP_WINDOW, _LOOP_PERIOD = 32, 8
_BLOCK = 128


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        max_new_tokens: completion length at most.
        temperature: 0 is greedy.
        ignore_stop: go on to the full length (for timing).
        prune_loops: end rows that repeat themselves; they finish as "pruned".
    """

    max_new_tokens: int
    temperature: float = 0.0
    ignore_stop: bool = False
    prune_loops: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How large batches are.

    Args:
        token_budget: tokens (prompt and completion, over all rows) held at once; None finds it from free memory.
        max_rows: rows at once, at most; None means 64 on a CPU and 256 on an accelerator.
    """

    token_budget: int | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that hold nothing."""
        for name, value in (("token_budget", self.token_budget), ("max_rows", self.max_rows)):
            if value is not None and value < 1:
                raise ValueError(f"engine.{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Decoded:
    """One finished row. ``near_ties`` counts steps whose best two logits were closer than `NEAR_TIE`."""

    token_ids: tuple[int, ...]
    finish: Finish
    near_ties: int


@dataclass
class Tally:
    """Work done, for cost figures: tokens fed through the model, those among them that were padding, and time.

    ``prefill_seconds`` and ``decode_seconds`` count the engine's steps, by ``clock`` (wall time unless told otherwise).
    """

    forward_tokens: int = 0
    padding_tokens: int = 0
    batch_shrinks: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    clock: Callable[[], float] = perf_counter


@dataclass
class _Row:
    """A row in flight."""

    index: int
    length: int
    tokens: list[int] = field(default_factory=list)
    near_ties: int = 0


def rows_that_fit(network: Network, engine: EngineConfig, tokens_per_row: int) -> int:
    """How many rows of this length to hold at once."""
    on_cpu = network.device.type == "cpu"
    limit = engine.max_rows or (64 if on_cpu else 256)
    if engine.token_budget is not None:
        return max(1, min(limit, engine.token_budget // tokens_per_row))
    free = available_memory() if on_cpu else torch.cuda.mem_get_info(network.device)[0]
    vocabulary = network.model.config.get_text_config().vocab_size
    per_row = network.cache_bytes_per_token() * tokens_per_row + 16 * vocabulary
    return max(1, min(limit, int(free * 0.5) // per_row))


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether the last 32 tokens repeat a pattern of at most 8."""
    tail = list(tokens[-_LOOP_WINDOW:])
    return len(tail) == _LOOP_WINDOW and any(tail[p:] == tail[:-p] for p in range(1, _LOOP_PERIOD + 1))


class Decoder:
    """Decodes one pool of rows.

    Args:
        network: the model.
        prompts: token ids of each row's prompt.
        intervention: row-leading over the pool.
        sampling: how tokens are chosen.
        seeds: one integer per row; a sampled row's randomness depends on it alone.
        tally: where work is counted.
    """

    def __init__(
        self,
        network: Network,
        prompts: Sequence[Sequence[int]],
        intervention: Intervention,
        sampling: Sampling,
        seeds: Sequence[int],
        tally: Tally | None = None,
    ) -> None:
        self.network, self.prompts, self.pool, self.sampling = network, prompts, intervention, sampling
        self.tally = tally or Tally()
        self.results: dict[int, Decoded] = {}
        self._uniform = _uniform_draws(seeds, sampling) if sampling.temperature > 0 else None

    def run(
        self, engine: EngineConfig, on_finish: Callable[[int], None] | None = None, observer: Observer | None = None
    ) -> list[Decoded]:
        """Decode every row and return the results in order.

        Args:
            engine: batch size.
            on_finish: called with a row's index when it is done.
            observer: sees every edit.
        """
        longest = max((len(prompt) for prompt in self.prompts), default=1) + self.sampling.max_new_tokens
        slots = rows_that_fit(self.network, engine, longest)
        while missing := len(self.prompts) - len(self.results):
            slots = min(slots, missing)
            try:
                self._run_once(slots, longest, on_finish, observer)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not self.pool.gradients and _lacks_gradients(error):
                    raise RuntimeError("an edit takes gradients: build its Intervention with gradients=True") from error
                if not _is_out_of_memory(error) or slots == 1:
                    raise
                slots //= 2
                self.tally.batch_shrinks += 1
        return [self.results[index] for index in range(len(self.prompts))]

    def _run_once(
        self, slots: int, capacity: int, on_finish: Callable[[int], None] | None, observer: Observer | None
    ) -> None:
        with torch.no_grad() if self.pool.gradients else torch.inference_mode():
            self._run_pool(slots, capacity, on_finish, observer)

    def _run_pool(
        self, slots: int, capacity: int, on_finish: Callable[[int], None] | None, observer: Observer | None
    ) -> None:
        # Longest first: neighbours in the queue then need little padding, and memory peaks at the start.
        todo = [index for index in range(len(self.prompts)) if index not in self.results]
        waiting = sorted(todo, key=lambda index: len(self.prompts[index]))
        cache = SlotCache(self.network.layout.num_layers, slots, capacity) if self.pool.uses_cache else None
        with Steering(self.network.blocks, self.pool, observer=observer) as steering:
            batch = _Batch(self, cache, steering)
            while waiting or batch.rows:
                free = slots - len(batch.rows)
                start = self.tally.clock()
                if waiting and (not batch.rows or free >= max(1, slots // 8)):
                    batch.join([waiting.pop() for _ in range(min(free, len(waiting)))])
                    self.tally.prefill_seconds += self.tally.clock() - start
                else:
                    batch.step()
                    self.tally.decode_seconds += self.tally.clock() - start
                for index in batch.leave():
                    if on_finish is not None:
                        on_finish(index)

    def choose(self, logits_BV: Tensor, rows: Sequence[_Row]) -> None:
        """Append each row's next token, counting near ties."""
        if self._uniform is None:
            chosen, lead = best_token(logits_BV)
            ties = (lead < NEAR_TIE).tolist()
        else:
            chosen = self._draw(logits_BV, rows)
            ties = [False] * len(rows)
        for row, token, tie in zip(rows, chosen.tolist(), ties, strict=True):
            row.tokens.append(token)
            row.near_ties += tie

    def _draw(self, logits_BV: Tensor, rows: Sequence[_Row]) -> Tensor:
        assert self._uniform is not None
        probabilities = torch.softmax(logits_BV.double() / self.sampling.temperature, -1)
        cumulative = probabilities.cumsum(-1)
        draws = [self._uniform[row.index, len(row.tokens)] for row in rows]
        target = torch.tensor(draws, device=cumulative.device)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=cumulative.shape[1] - 1)


class _Batch:
    """The rows in flight, in slot order."""

    def __init__(self, decoder: Decoder, cache: SlotCache | None, steering: Steering) -> None:
        self.decoder, self.cache, self.steering = decoder, cache, steering
        self.network = decoder.network
        self.rows: list[_Row] = []
        self.carry: Carry = {}

    def join(self, indices: Sequence[int]) -> None:
        """Compute the prompts of new rows and choose their first tokens."""
        start = 0
        while start < len(indices):
            longest = len(self.decoder.prompts[indices[start]])
            stop = start + max(1, pass_tokens(self.network.device) // longest)
            self._join_chunk(indices[start:stop])
            start = stop

    def _join_chunk(self, indices: Sequence[int]) -> None:
        prompts = [self.decoder.prompts[index] for index in indices]
        new = [_Row(index, len(prompt)) for index, prompt in zip(indices, prompts, strict=True)]
        if self.cache is None:
            self.rows += new
            return
        self.cache.expect_prompts(len(self.rows))
        logits, carry = self._full_pass(prompts, new)
        first = not self.rows
        self.carry = carry if first else {key: torch.cat([self.carry[key], carry[key]]) for key in carry}
        self.rows += new
        self._steer(self.rows)
        self.decoder.choose(logits, new)

    def _full_pass(self, tokens: Sequence[Sequence[int]], rows: Sequence[_Row]) -> tuple[Tensor, Carry]:
        padded = Padded.of(tokens, self.network.device)
        prompt_lengths = torch.tensor([row.length - len(row.tokens) for row in rows], device=self.network.device)
        self._steer(rows)
        self.steering.where, self.steering.carry = padded.where(prompt_lengths), {}
        h = self.network.hidden(padded.ids, padded.positions, Plan(), self.cache)
        self._count(padded.ids.numel(), padded.ids.numel() - int(padded.lengths.sum()))
        last = h[torch.arange(len(rows), device=h.device), padded.lengths - 1]
        return self.network.logits(last), self.steering.carry

    def _steer(self, rows: Sequence[_Row]) -> None:
        self.steering.intervention = self.decoder.pool.take(torch.tensor([row.index for row in rows]))

    def step(self) -> None:
        """One more token for every row."""
        if self.cache is None:
            for row in self.rows:
                row.length = len(self.decoder.prompts[row.index]) + len(row.tokens)
            sequences = [[*self.decoder.prompts[row.index], *row.tokens] for row in self.rows]
            logits, _ = self._full_pass(sequences, self.rows)
        else:
            logits = self._cached_pass(self.cache)
        self.decoder.choose(logits, self.rows)

    def _cached_pass(self, cache: SlotCache) -> Tensor:
        device = self.network.device
        positions = torch.tensor([row.length for row in self.rows], device=device)
        prompt_lengths = torch.tensor([row.length - len(row.tokens) + 1 for row in self.rows], device=device)
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)
        cache.expect_tokens(positions, max(row.length for row in self.rows) + 1)
        self.steering.where = Where(positions[:, None], None, prompt_lengths, prefill=False)
        self.steering.carry = self.carry
        h = self.network.hidden(ids, positions[:, None], Plan(positions + 1), cache)
        self.carry = self.steering.carry
        for row in self.rows:
            row.length += 1
        self._count(len(self.rows), 0)
        return self.network.logits(h[:, 0])

    def _count(self, tokens: int, padding: int) -> None:
        self.decoder.tally.forward_tokens += tokens
        self.decoder.tally.padding_tokens += padding

    def leave(self) -> list[int]:
        """Take finished rows out, closing the gaps they leave; the indices of those rows."""
        ends = {slot: self._finish(row) for slot, row in enumerate(self.rows)}
        finished = {slot: end for slot, end in ends.items() if end is not None}
        for slot, end in finished.items():
            row = self.rows[slot]
            self.decoder.results[row.index] = Decoded(tuple(row.tokens), end, row.near_ties)
        left = [self.rows[slot].index for slot in finished]
        if finished:
            self._close_gaps(set(finished))
        return left

    def _finish(self, row: _Row) -> Finish | None:
        sampling = self.decoder.sampling
        if row.tokens and row.tokens[-1] in self.network.stop_ids and not sampling.ignore_stop:
            row.tokens.pop()
            return "stop"
        if len(row.tokens) >= sampling.max_new_tokens:
            return "length"
        return "pruned" if sampling.prune_loops and is_looping(row.tokens) else None

    def _close_gaps(self, gone: set[int]) -> None:
        kept = len(self.rows) - len(gone)
        order = list(range(kept))
        movers = (slot for slot in range(len(self.rows) - 1, -1, -1) if slot not in gone)
        for hole in sorted(slot for slot in gone if slot < kept):
            source = next(movers)
            order[hole] = source
            if self.cache is not None:
                self.cache.move(source, hole)
        self.rows = [self.rows[slot] for slot in order]
        chosen = torch.tensor(order, dtype=torch.long, device=self.network.device)
        self.carry = {key: value[chosen] for key, value in self.carry.items()}
        if self.rows:
            self._steer(self.rows)


def best_token(logits_BV: Float[Tensor, "B V"]) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """The index of each row's largest logit (the first of several), and its lead over the second largest."""
    # In two stages, for an index over a whole vocabulary costs several times what the bare maximum does.
    rows, vocabulary = logits_BV.shape
    blocks = logits_BV.reshape(rows, -1, math.gcd(vocabulary, _BLOCK))
    tops = blocks.amax(-1)
    best, block = tops.max(-1)
    row = torch.arange(rows, device=logits_BV.device)
    inside = blocks[row, block]
    offset = inside.argmax(-1)
    inside[row, offset] = tops[row, block] = float("-inf")
    second = torch.maximum(inside.amax(-1), tops.amax(-1))
    return block * blocks.shape[2] + offset, best - second


def _uniform_draws(seeds: Sequence[int], sampling: Sampling) -> np.ndarray:
    return np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])


def _lacks_gradients(error: Exception) -> bool:
    """Whether autograd refused to work because of inference mode."""
    return "inference tensor" in str(error).lower() or "does not require grad" in str(error)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
