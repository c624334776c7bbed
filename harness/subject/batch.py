"""The rows in flight: how they join, take steps and leave.

All that a step needs lies in the rows' slots on the model's device; the host only says how many slots are in use. On an
accelerator the host learns one step late which rows are done, so that neither ever waits for the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from harness.steering import Carry, Intervention, Where
from harness.subject import graphs
from harness.subject.attention import Plan, Span, spans_of
from harness.subject.hooks import Steering
from harness.subject.mail import Mail
from harness.subject.network import Network, Padded, pass_tokens
from harness.subject.prefix import Part, memory_of, shared_depth
from harness.subject.sampling import LOOP_WINDOW, NEAR_TIE, Sampling, best_token, drawn_token, is_looping
from harness.subject.sizes import Shapes
from harness.subject.slots import FULL, IN_FLIGHT, PRUNED, STOPPED, SlotCache, Slots
from harness.subject.tally import Tally

Finish = Literal["stop", "length", "pruned"]
_FINISHES: dict[int, Finish] = {STOPPED: "stop", FULL: "length", PRUNED: "pruned"}


@dataclass(frozen=True)
class Decoded:
    """One finished row. ``near_ties`` counts steps whose best two logits were closer than `NEAR_TIE`."""

    token_ids: tuple[int, ...]
    finish: Finish
    near_ties: int


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows that were offered together.

    Args:
        intervention: row-leading over them.
        uniform: R x N, the random numbers of sampled rows.
    """

    intervention: Intervention
    uniform: Tensor | None


@dataclass(eq=False)
class Row:
    """One row, as far as the host knows.

    Args:
        number: its own among all rows of a decoder.
        pool: where its edits are.
        place: its place in the pool.
        prompt: token ids.
        slot: where it lies while it is in flight.
        length: tokens so far, that chosen last included; one more per step that the host has not heard of.
        group: the number of the first row that it is steered together with; by default its own.
    """

    number: int
    pool: Pool
    place: int
    prompt: tuple[int, ...]
    slot: int = -1
    length: int = 0
    group: int = -1


class Batch:
    """The rows in flight and their slots.

    Args:
        network: the model.
        sampling: how tokens are chosen.
        shapes: how many slots, and which sizes their passes have.
        steering: hooks on the model.
        tally: where work is counted.
        lateness: steps until the host hears that a row is done.
        compiled: decode with graphs.
        gradients: edits may take gradients.
    """

    def __init__(
        self,
        network: Network,
        sampling: Sampling,
        shapes: Shapes,
        steering: Steering,
        tally: Tally,
        *,
        lateness: int = 0,
        compiled: bool = False,
        gradients: bool = False,
    ) -> None:
        self.network, self.sampling, self.shapes, self.steering, self.tally = network, sampling, shapes, steering, tally
        self.rows: dict[int, Row] = {}
        self._lateness, self._compiled = lateness, compiled
        # Slots of graphs outlive this batch, and tensors of inference mode could not be written outside of it.
        self.gradients = gradients or compiled
        draws, layers, device = sampling.max_new_tokens, network.layout.num_layers, network.device
        if compiled:
            self.slots = graphs.lasting_slots(network.model, shapes, draws, device, layers)
            self._decode = graphs.compiled(self._decode, device)
        else:
            self.slots = Slots(layers, shapes.slots, shapes.capacity, draws, device)
        self._stops_V = network.stop_mask() & (not sampling.ignore_stop)
        self._pools: set[Pool] = set()
        self._uses_cache = True
        self._coupled = False
        self._posted: deque[tuple[list[Row], list[int], Mail]] = deque()
        self._left: list[tuple[list[Row], list[Finish], Mail]] = []

    @property
    def has_room(self) -> bool:
        """Whether enough slots are free for a pass over new prompts to be worth its while."""
        return self.shapes.slots - len(self.rows) >= max(1, self.shapes.slots // 8)

    def mode(self) -> AbstractContextManager[Any]:
        """The context in which rows join, step and leave: inference mode, unless edits take gradients."""
        return torch.no_grad() if self.gradients else torch.inference_mode()

    # Joining: whole prompts, one pass after another.

    def join(self, waiting: list[Row]) -> bool:
        """Take rows from the end of the queue, compute their prompts and choose their first tokens.

        Only rows join that fit into the slots and go together with those in flight.

        Returns:
            Whether any row joined.
        """
        free = [slot for slot in range(self.shapes.slots) if slot not in self.rows] if self.has_room else []
        joined = False
        while waiting and free and self._takes(waiting[-1]):
            pool = waiting[-1].pool
            at_most = max(1, pass_tokens(self.network.device) // len(waiting[-1].prompt))
            new: list[Row] = []
            while waiting and waiting[-1].pool is pool:
                together = self._together(waiting)
                if len(together) > len(free) or (new and len(new) + len(together) > at_most):
                    break
                for row in together:
                    waiting.remove(row)
                    row.slot, row.length = free.pop(0), len(row.prompt)
                new += together
            if not new:  # there is room, but not for a whole group
                break
            self.rows |= {row.slot: row for row in new}
            self._admit(new, pool)
            joined = True
        return joined

    def _together(self, waiting: Sequence[Row]) -> list[Row]:
        """The next row and all that must start with it."""
        return [row for row in waiting if row.group == waiting[-1].group] if self._coupled else [waiting[-1]]

    def _takes(self, row: Row) -> bool:
        """Whether a row can join; the first row of a batch decides what kind of rows the others must be."""
        intervention = row.pool.intervention
        if len(row.prompt) + self.sampling.max_new_tokens > self.shapes.capacity:
            return False
        if intervention.gradients and not self.gradients:
            return False

        if not self.rows:
            self.slots.clear()
            self._pools, self._uses_cache = set(), intervention.uses_cache
            self._coupled = intervention.groups is not None

        if row.pool not in self._pools:
            if self._coupled != (intervention.groups is not None):
                return False
            if intervention.uses_cache != self._uses_cache or not self.slots.edits.fits(intervention):
                return False
            self._pools.add(row.pool)
        return True

    def _admit(self, new: list[Row], pool: Pool) -> None:
        """Give new rows of one pool all that they own, and compute their prompts."""
        device, tokens = self.network.device, self.slots.tokens
        padded = Padded.of([row.prompt for row in new], device)
        slots = torch.tensor([row.slot for row in new], device=device)
        places = torch.tensor([row.place for row in new])
        tokens.admit(slots, padded.ids, padded.lengths, torch.tensor([row.group for row in new], device=device))
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

    def _pays_to_share(self, new: list[Row], depth: int) -> bool:
        """Whether new rows have prompts in common, with one another or with earlier ones."""
        prompts, memory = {row.prompt for row in new}, memory_of(self.network)
        return len(prompts) < len(new) or any(memory.knows(prompt, depth) for prompt in prompts)

    def _compute_shared(self, new: list[Row], slots: Tensor, intervention: Intervention, depth: int) -> None:
        """Compute prompts of new rows, each prompt once in the blocks below the first edit."""
        prompts = [row.prompt for row in new]
        for part in memory_of(self.network).parts(self.network, prompts, depth, self.tally):
            members = torch.tensor(part.members, device=slots.device)
            rows = [new[index] for index in part.members]
            longest = max(row.length for row in rows)
            self.slots.cache.expect_prompts(slots[members])
            part.fill(self.slots.cache, longest)
            self._compute(rows, slots[members], part.padded(longest), intervention.take(members), part)

    def _compute(
        self, new: list[Row], slots: Tensor, padded: Padded, intervention: Intervention, part: Part | None = None
    ) -> None:
        """Compute prompts of new rows, from the first block on or from behind those that are shared."""
        self.slots.cache.expect_prompts(slots)
        blocks, longest = self.network.blocks.modules, padded.ids.shape[1]
        depth = part.group.depth if part is not None else 0
        if part is not None and depth == len(blocks):
            logits, carry = self.network.logits(_last(part.states(longest), padded)), {}
        else:
            groups = self.slots.tokens.groups(slots) if self._coupled else None
            where = padded.where(padded.lengths, groups)
            with part.skipping(blocks, longest) if part is not None else nullcontext():
                logits, carry = self._whole_pass(padded, where, intervention, self.slots.cache)
            self.tally.count(padded.ids.numel(), sum(row.length for row in new), 1 - depth / len(blocks))
        self.slots.carry.admit(slots, carry)
        self._choose(slots, logits)

    def _whole_pass(
        self, padded: Padded, where: Where, intervention: Intervention, cache: SlotCache | None
    ) -> tuple[Tensor, Carry]:
        """Logits after each row's last token, computed from position 0 on, and what edits learnt on the way."""
        with self.steering.on(where, intervention, {}):
            h = self.network.hidden(padded.ids, padded.positions, Plan(cache=cache), cache)
        return self.network.logits(_last(h, padded)), self.steering.carry

    # Stepping: one token for every row.

    def step(self) -> None:
        """One more token for every row."""
        rows = list(self.rows.values())
        count = self.shapes.rows(1 + max(self.rows))
        window = self.shapes.window(max(row.length for row in rows))
        if self._uses_cache:
            self._decode(count, window, self._spans(count) if self.shapes.varied else ())
            self.tally.count(count, len(rows))
        else:
            self._recompute(count, window)
            self.tally.count(count * window, sum(row.length for row in rows))
        self._post(rows)

    def _spans(self, count: int) -> tuple[Span, ...]:
        return spans_of([self.rows[slot].length if slot in self.rows else 1 for slot in range(count)])

    def _decode(self, count: int, window: int, spans: Sequence[Span]) -> None:
        """Feed the last token of each of the first slots, and choose the next one. All on the device."""
        tokens, carry = self.slots.tokens, self.slots.carry.first(count)
        slots, lengths = tokens.slots_S[:count], tokens.lengths_S[:count]
        positions_B1 = lengths[:, None] - 1
        groups = tokens.groups(slots) if self._coupled else None
        prompt_lengths = tokens.prompt_lengths_S[:count]
        where = Where(positions_B1, None, prompt_lengths, prefill=False, window=window, groups=groups)
        self.slots.cache.expect_tokens(slots, positions_B1[:, 0], window)
        with self.steering.on(where, self.slots.edits.first(count), carry):
            ids_B1 = tokens.ids_SC[:count].gather(1, positions_B1)
            plan = Plan(lengths, spans=spans, cache=self.slots.cache)
            h = self.network.hidden(ids_B1, positions_B1, plan, self.slots.cache)
        self.slots.carry.store(carry, self.steering.carry)
        self._choose(slots, self.network.logits(h[:, 0]))

    def _recompute(self, count: int, window: int) -> None:
        """Compute all tokens of the first slots anew, for edits that look at the whole row, and choose the next one."""
        tokens = self.slots.tokens
        lengths = tokens.lengths_S[:count]
        positions = torch.arange(window, device=lengths.device).expand(count, -1)
        padded = Padded(tokens.ids_SC[:count, :window], positions, lengths, positions < lengths[:, None])
        where = padded.where(tokens.prompt_lengths_S[:count])
        logits, _ = self._whole_pass(padded, where, self.slots.edits.first(count), None)
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

    def _post(self, rows: list[Row]) -> None:
        """A token was chosen for these rows: send the host word of how they stand."""
        for row in rows:
            row.length += 1
        slots = [row.slot for row in rows]
        # All slots in use, rather than those of the rows: naming them would take a copy to the device.
        self._posted.append((rows, slots, Mail(self.slots.tokens.state_S[: max(slots) + 1])))

    def leave(self) -> list[Row]:
        """Take out the rows that the host has heard are done."""
        left: list[Row] = []
        finishes: list[Finish] = []
        while len(self._posted) > self._lateness:
            rows, slots, mail = self._posted.popleft()
            states = mail.read()
            for row, slot in zip(rows, slots, strict=True):
                # A row may have left already, on word of an earlier step.
                if states[slot] in _FINISHES and self.rows.get(row.slot) is row:
                    left.append(self.rows.pop(row.slot))
                    finishes.append(_FINISHES[states[slot]])
        if left:
            self._collect(left, finishes)
            self._close_gaps()
        return left

    def _collect(self, rows: list[Row], finishes: list[Finish]) -> None:
        """Send off the tokens of rows that leave."""
        tokens = self.slots.tokens
        slots = torch.tensor([row.slot for row in rows], device=self.network.device)
        counters = torch.stack([tokens.prompt_lengths_S[slots], tokens.lengths_S[slots], tokens.near_ties_S[slots]], 1)
        self._left.append((rows, finishes, Mail(torch.cat([counters, tokens.ids_SC[slots]], 1))))

    def results(self) -> dict[int, Decoded]:
        """What the rows have written that left since the last call, by their numbers."""
        results: dict[int, Decoded] = {}
        for rows, finishes, mail in self._left:
            for row, finish, (start, stop, near_ties, *ids) in zip(rows, finishes, mail.read(), strict=True):
                results[row.number] = Decoded(tuple(ids[start:stop]), finish, near_ties)
        self._left.clear()
        return results

    def _close_gaps(self) -> None:
        """Move the last rows into the gaps that others have left, where that makes the passes smaller."""
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
