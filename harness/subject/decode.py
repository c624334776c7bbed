"""Batched steered decoding: rows in, rows out.

Each row has its own prompt, length, edits and randomness. Finished rows leave the batch at once and waiting rows take
their place, so nothing is computed for rows that are done. New rows may be offered while others run.

All that a step needs lies in the rows' slots on the model's device; the host only says how many slots are in use. On an
accelerator it learns one step late which rows are done, so that neither ever waits for the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from harness.steering import Carry, Intervention, Where
from harness.subject import graphs
from harness.subject.attention import Plan, Span, spans_of
from harness.subject.hooks import Observer, Steering
from harness.subject.mail import Mail
from harness.subject.network import Network, Padded, pass_tokens
from harness.subject.prefix import Part, memory_of, shared_depth
from harness.subject.sampling import LOOP_WINDOW, NEAR_TIE, Sampling, best_token, drawn_token, is_looping, uniform_draws
from harness.subject.sizes import EngineConfig, Shapes, rows_that_fit
from harness.subject.slots import FULL, IN_FLIGHT, PRUNED, STOPPED, SlotCache, Slots

Finish = Literal["stop", "length", "pruned"]
_FINISHES: dict[int, Finish] = {STOPPED: "stop", FULL: "length", PRUNED: "pruned"}


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

    def count(self, computed: int, needed: int, share: float = 1.0) -> None:
        """Note tokens that were fed through the model.

        Args:
            computed: all of them.
            needed: those that were not padding.
            share: how much of the model they went through.
        """
        self.forward_tokens += round(share * computed)
        self.padding_tokens += round(share * computed) - round(share * needed)


@dataclass(frozen=True, eq=False)
class _Pool:
    """Rows that were offered together; their numbers begin at ``first``."""

    first: int
    prompts: Sequence[Sequence[int]]
    intervention: Intervention
    uniform: Tensor | None


@dataclass(eq=False)
class _Row:
    """A row in flight, as far as the host knows. ``length`` counts its tokens, that chosen last included."""

    number: int
    slot: int
    length: int


class Decoder:
    """Decodes rows of one pool, or of several that are offered one after another.

    Args:
        network: the model.
        prompts: token ids of each row's prompt.
        intervention: row-leading over these rows.
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
        self.network, self.sampling = network, sampling
        self.tally = tally or Tally()
        self.results: dict[int, Decoded] = {}
        self.lateness = 0 if network.device.type == "cpu" else 1
        """Steps until the host learns that a row is done: one costs each row a step and spares the device all waits."""
        self._pools: list[_Pool] = []
        self.pool_of: list[_Pool] = []
        self._waiting: list[int] = []
        self._most_slots = 2**31
        self.offer(prompts, intervention, seeds)

    def offer(self, prompts: Sequence[Sequence[int]], intervention: Intervention, seeds: Sequence[int]) -> list[int]:
        """Add rows, also while others run.

        Returns:
            The rows' numbers, which count on from those offered before.
        """
        draws = uniform_draws(seeds, self.sampling.max_new_tokens) if self.sampling.temperature > 0 and seeds else None
        pool = _Pool(len(self.pool_of), prompts, intervention, draws)
        self._pools.append(pool)
        self.pool_of += [pool] * len(prompts)
        numbers = list(range(pool.first, len(self.pool_of)))
        self._wait(numbers)
        return numbers

    def _wait(self, numbers: Sequence[int]) -> None:
        # Longest first (from the end): neighbours then need little padding, and memory peaks at the start.
        self._waiting = sorted([*self._waiting, *numbers], key=lambda number: len(self.prompt(number)))

    def prompt(self, number: int) -> Sequence[int]:
        """Token ids of a row's prompt."""
        pool = self.pool_of[number]
        return pool.prompts[number - pool.first]

    def run(
        self,
        engine: EngineConfig,
        on_finish: Callable[[int], None] | None = None,
        observer: Observer | None = None,
        refill: Callable[[], None] | None = None,
    ) -> list[Decoded]:
        """Decode every row and return the results in order.

        Args:
            engine: batch size.
            on_finish: called with a row's number when it is done.
            observer: sees every edit.
            refill: called when slots are free, no row waits, and rows have finished since the last call; their results
                are there. It may `offer` more rows.
        """
        while self._waiting:
            with Steering(self.network.blocks, Intervention(), observer=observer) as steering:
                batch = _Batch(self, self._shapes(engine), steering, engine.compile)
                finished: list[int] = []
                while self._pass(batch):
                    for number in batch.leave():
                        finished.append(number)
                        if on_finish is not None:
                            on_finish(number)
                    if refill is not None and finished and not self._waiting and batch.has_room:
                        batch.deliver()
                        finished.clear()
                        refill()
                batch.deliver()
        return [self.results[number] for number in range(len(self.pool_of))]

    def _shapes(self, engine: EngineConfig) -> Shapes:
        """Sizes for the rows that wait; after memory ran out, with half as many slots as before."""
        longest = len(self.prompt(self._waiting[-1])) + self.sampling.max_new_tokens
        remembered = max(pool.intervention.bytes_per_token for pool in self._pools)
        kept = graphs.kept_slots(self.network.model) if engine.compile else None
        if kept is not None and kept.capacity >= longest and engine.token_budget is None:
            fitting, longest = min(kept.count, engine.max_rows or kept.count), kept.capacity
        else:
            fitting = rows_that_fit(self.network, engine, longest, remembered)
        needed = fitting if engine.compile else len(self._waiting)
        return Shapes.of(self.network.device, min(fitting, needed, self._most_slots), longest, engine.compile)

    @torch.no_grad()  # not inference mode, whose tensors no edit could take a gradient through
    def _pass(self, batch: _Batch) -> bool:
        """Compute prompts of waiting rows, or a step of those in flight; False if these slots have nothing to do."""
        start = self.tally.clock()
        try:
            if batch.join(self._waiting):
                self.tally.prefill_seconds += self.tally.clock() - start
            elif batch.rows:
                batch.step()
                self.tally.decode_seconds += self.tally.clock() - start
            else:
                return False
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or batch.shapes.slots == 1:
                raise
            self._most_slots = batch.shapes.slots // 2
            self.tally.batch_shrinks += 1
            self._wait([row.number for row in batch.rows.values()])
            return False
        return True


class _Batch:
    """The rows in flight and their slots."""

    def __init__(self, decoder: Decoder, shapes: Shapes, steering: Steering, compiled: bool = False) -> None:
        self.decoder, self.network, self.sampling = decoder, decoder.network, decoder.sampling
        self.shapes, self.steering, self._compiled = shapes, steering, compiled
        draws, layers, device = self.sampling.max_new_tokens, self.network.layout.num_layers, self.network.device
        if compiled:
            self.slots = graphs.lasting_slots(self.network.model, shapes, draws, device, layers)
            self._decode = graphs.compiled(self._decode, device)
        else:
            self.slots = Slots(layers, shapes.slots, shapes.capacity, draws, device)
        self.rows: dict[int, _Row] = {}
        self._here: set[int] = set()
        self._uses_cache = True
        self._stops_V = self.network.stop_mask() & (not self.sampling.ignore_stop)
        self._posted: deque[tuple[list[_Row], list[int], Mail]] = deque()
        self._results: list[tuple[list[_Row], list[Finish], Mail]] = []

    @property
    def has_room(self) -> bool:
        """Whether enough slots are free for a pass over new prompts to be worth its while."""
        return self.shapes.slots - len(self.rows) >= max(1, self.shapes.slots // 8)

    # Joining: whole prompts, one pass after another.

    def join(self, waiting: list[int]) -> bool:
        """Take rows from the end of the queue, compute their prompts and choose their first tokens.

        Only rows join that fit into the slots and together with those in flight.

        Returns:
            Whether any row joined.
        """
        free = [slot for slot in range(self.shapes.slots) if slot not in self.rows] if self.has_room else []
        joined = False
        while waiting and free and self._takes(waiting[-1]):
            pool = self.decoder.pool_of[waiting[-1]]
            at_most = max(1, pass_tokens(self.network.device) // len(self.decoder.prompt(waiting[-1])))
            new: list[_Row] = []
            while waiting and free and len(new) < at_most and self.decoder.pool_of[waiting[-1]] is pool:
                number = waiting.pop()
                new.append(_Row(number, free.pop(0), len(self.decoder.prompt(number))))
            self.rows |= {row.slot: row for row in new}
            self._admit(new, pool)
            joined = True
        return joined

    def _takes(self, number: int) -> bool:
        """Whether a row can join; the first row of a batch decides what kind of rows the others must be."""
        pool = self.decoder.pool_of[number]
        if len(self.decoder.prompt(number)) + self.sampling.max_new_tokens > self.shapes.capacity:
            return False
        if not self.rows:
            self._here, self._uses_cache = set(), pool.intervention.uses_cache
            self.slots.clear()
        if pool.first not in self._here:
            if pool.intervention.uses_cache != self._uses_cache or not self.slots.edits.fits(pool.intervention):
                return False
            self._here.add(pool.first)
        return True

    def _admit(self, new: list[_Row], pool: _Pool) -> None:
        """Give new rows of one pool all that they own, and compute their prompts."""
        device, tokens = self.network.device, self.slots.tokens
        padded = Padded.of([self.decoder.prompt(row.number) for row in new], device)
        slots = torch.tensor([row.slot for row in new], device=device)
        places = torch.tensor([row.number - pool.first for row in new])
        tokens.admit(slots, padded.ids, padded.lengths)
        if pool.uniform is not None:
            tokens.uniform_SN[slots] = pool.uniform[places].to(device)

        intervention = pool.intervention.take(places.to(device))
        self.steering.reach({*intervention.edits, *intervention.probes})
        self.slots.edits.admit(slots, intervention)
        if not self._uses_cache:
            return

        depth = shared_depth(intervention, self.network.layout.num_layers)
        if depth and self._pays_to_share(new, depth):
            self._compute_shared(new, slots, intervention, depth)
        else:
            self._compute(new, slots, padded, intervention)
        self._post(new)
        if self._compiled:
            graphs.hold_in_place(self.slots.buffers())

    def _pays_to_share(self, new: list[_Row], depth: int) -> bool:
        """Whether new rows have prompts in common, with one another or with earlier ones."""
        prompts = [tuple(self.decoder.prompt(row.number)) for row in new]
        memory = memory_of(self.network)
        return len(set(prompts)) < len(prompts) or any(memory.knows(prompt, depth) for prompt in prompts)

    def _compute_shared(self, new: list[_Row], slots: Tensor, intervention: Intervention, depth: int) -> None:
        """Compute prompts of new rows, each prompt once in the blocks below the first edit."""
        prompts = [self.decoder.prompt(row.number) for row in new]
        for part in memory_of(self.network).parts(self.network, prompts, depth, self.decoder.tally):
            members = torch.tensor(part.members, device=slots.device)
            rows = [new[index] for index in part.members]
            longest = max(row.length for row in rows)
            self.slots.cache.expect_prompts(slots[members])
            part.fill(self.slots.cache, longest)
            self._compute(rows, slots[members], part.padded(longest), intervention.take(members), part)

    def _compute(
        self, new: list[_Row], slots: Tensor, padded: Padded, intervention: Intervention, part: Part | None = None
    ) -> None:
        """Compute prompts of new rows, from the first block on or from behind those that are shared."""
        self.slots.cache.expect_prompts(slots)
        blocks, longest = self.network.blocks.modules, padded.ids.shape[1]
        depth = part.group.depth if part is not None else 0
        if part is not None and depth == len(blocks):
            logits, carry = self.network.logits(_last(part.states(longest), padded)), {}
        else:
            with part.skipping(blocks, longest) if part is not None else nullcontext():
                logits, carry = self._whole_pass(padded, padded.lengths, intervention, self.slots.cache)
            needed = sum(row.length for row in new)
            self.decoder.tally.count(padded.ids.numel(), needed, 1 - depth / len(blocks))
        self.slots.carry.admit(slots, carry)
        self._choose(slots, logits)

    def _whole_pass(
        self, padded: Padded, prompt_lengths: Tensor, intervention: Intervention, cache: SlotCache | None
    ) -> tuple[Tensor, Carry]:
        """Logits after each row's last token, computed from position 0 on, and what edits learnt on the way."""
        with self.steering.on(padded.where(prompt_lengths), intervention, {}):
            h = self.network.hidden(padded.ids, padded.positions, Plan(), cache)
        return self.network.logits(_last(h, padded)), self.steering.carry

    # Stepping: one token for every row.

    def step(self) -> None:
        """One more token for every row."""
        rows = list(self.rows.values())
        count = self.shapes.rows(1 + max(self.rows))
        window = self.shapes.window(max(row.length for row in rows))
        if self._uses_cache:
            self._decode(count, window, self._spans(count) if self.shapes.varied else ())
            self.decoder.tally.count(count, len(rows))
        else:
            self._recompute(count, window)
            self.decoder.tally.count(count * window, sum(row.length for row in rows))
        self._post(rows)

    def _spans(self, count: int) -> tuple[Span, ...]:
        return spans_of([self.rows[slot].length if slot in self.rows else 1 for slot in range(count)])

    def _decode(self, count: int, window: int, spans: Sequence[Span]) -> None:
        """Feed the last token of each of the first slots, and choose the next one. All on the device."""
        tokens, carry = self.slots.tokens, self.slots.carry.first(count)
        slots, lengths = tokens.slots_S[:count], tokens.lengths_S[:count]
        positions_B1 = lengths[:, None] - 1
        where = Where(positions_B1, None, tokens.prompt_lengths_S[:count], prefill=False, window=window)
        self.slots.cache.expect_tokens(slots, positions_B1[:, 0], window)
        with self.steering.on(where, self.slots.edits.first(count), carry):
            ids_B1 = tokens.ids_SC[:count].gather(1, positions_B1)
            h = self.network.hidden(ids_B1, positions_B1, Plan(lengths, spans=spans), self.slots.cache)
        self.slots.carry.store(carry, self.steering.carry)
        self._choose(slots, self.network.logits(h[:, 0]))

    def _recompute(self, count: int, window: int) -> None:
        """Compute all tokens of the first slots anew, for edits that look at the whole row, and choose the next one."""
        tokens = self.slots.tokens
        lengths = tokens.lengths_S[:count]
        positions = torch.arange(window, device=lengths.device).expand(count, -1)
        padded = Padded(tokens.ids_SC[:count, :window], positions, lengths, positions < lengths[:, None])
        logits, _ = self._whole_pass(padded, tokens.prompt_lengths_S[:count], self.slots.edits.first(count), None)
        self._choose(tokens.slots_S[:count], logits)

    def _choose(self, slots: Tensor, logits_BV: Tensor) -> None:
        """Write down the next token of each row that runs, and whether the row is done with it."""
        tokens, sampling = self.slots.tokens, self.sampling
        lengths, prompt_lengths = tokens.lengths_S[slots], tokens.prompt_lengths_S[slots]
        runs = tokens.state_S[slots] == IN_FLIGHT
        if sampling.temperature > 0:
            step = (lengths - prompt_lengths).clamp(max=sampling.max_new_tokens - 1)
            chosen = drawn_token(logits_BV, sampling.temperature, tokens.uniform_SN[slots, step])
        else:
            chosen, lead = best_token(logits_BV)
            tokens.near_ties_S[slots] += runs & (lead < NEAR_TIE)

        tokens.ids_SC[slots, lengths] = chosen
        stops = self._stops_V[chosen]
        lengths = lengths + (runs & ~stops)
        state = torch.where(lengths - prompt_lengths >= sampling.max_new_tokens, FULL, IN_FLIGHT)
        if sampling.prune_loops:
            state = torch.where((state == IN_FLIGHT) & self._loops(slots, lengths, prompt_lengths), PRUNED, state)
        state = torch.where(stops, STOPPED, state)
        tokens.lengths_S[slots] = lengths
        tokens.state_S[slots] = torch.where(runs, state, tokens.state_S[slots])

    def _loops(self, slots: Tensor, lengths: Tensor, prompt_lengths: Tensor) -> Tensor:
        last = lengths[:, None] + torch.arange(-LOOP_WINDOW, 0, device=lengths.device)
        tail = self.slots.tokens.ids_SC[slots[:, None], last.clamp(min=0)]
        return is_looping(tail) & (lengths - prompt_lengths >= LOOP_WINDOW)

    # Leaving: the host reads which rows are done, and takes their tokens.

    def _post(self, rows: list[_Row]) -> None:
        """A token was chosen for these rows: send the host word of how they stand."""
        for row in rows:
            row.length += 1
        slots = [row.slot for row in rows]
        state = self.slots.tokens.state_S
        # All slots in use, rather than those of the rows: naming them would take a copy to the device.
        self._posted.append((rows, slots, Mail(state[: max(slots) + 1])))

    def leave(self) -> list[int]:
        """Take out rows that are known to be done; their numbers."""
        left: list[_Row] = []
        finishes: list[Finish] = []
        while len(self._posted) > self.decoder.lateness:
            rows, slots, mail = self._posted.popleft()
            states = mail.read()
            for row, slot in zip(rows, slots, strict=True):
                if states[slot] in _FINISHES and self.rows.get(row.slot) is row:
                    left.append(self.rows.pop(row.slot))
                    finishes.append(_FINISHES[states[slot]])
        if left:
            self._collect(left, finishes)
            self._close_gaps()
        return [row.number for row in left]

    def _collect(self, rows: list[_Row], finishes: list[Finish]) -> None:
        """Send off the tokens of rows that leave."""
        tokens = self.slots.tokens
        slots = torch.tensor([row.slot for row in rows], device=self.network.device)
        counters = torch.stack([tokens.prompt_lengths_S[slots], tokens.lengths_S[slots], tokens.near_ties_S[slots]], 1)
        self._results.append((rows, finishes, Mail(torch.cat([counters, tokens.ids_SC[slots]], 1))))

    def deliver(self) -> None:
        """Hand over the results of all rows that have left."""
        for rows, finishes, mail in self._results:
            for row, finish, (start, stop, near_ties, *ids) in zip(rows, finishes, mail.read(), strict=True):
                self.decoder.results[row.number] = Decoded(tuple(ids[start:stop]), finish, near_ties)
        self._results.clear()

    def _close_gaps(self) -> None:
        """Move the last rows into the gaps that others have left, where the passes get smaller by it."""
        count = len(self.rows)
        if not self.rows or self.shapes.rows(count) == self.shapes.rows(1 + max(self.rows)):
            return
        gaps = [slot for slot in range(count) if slot not in self.rows]
        movers = sorted(slot for slot in self.rows if slot >= count)
        self.slots.move(movers, gaps)
        for source, target in zip(movers, gaps, strict=True):
            self.rows[target] = self.rows.pop(source)
            self.rows[target].slot = target


def _last(h: Tensor, padded: Padded) -> Tensor:
    """The state of each row's last token."""
    return h[torch.arange(h.shape[0], device=h.device), padded.lengths - 1]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
