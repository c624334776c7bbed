"""Batched steered decoding: rows in, rows out.

Each row has its own prompt, length, edits and randomness. Finished rows leave the batch at once and waiting rows take
their place, so nothing is computed for rows that are done. New rows may be offered while others run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from harness.steering import Intervention
from harness.subject import graphs
from harness.subject.batch import Batch, Decoded, Pool, Row
from harness.subject.hooks import Observer, Steering
from harness.subject.network import Network
from harness.subject.sampling import Sampling, uniform_draws
from harness.subject.sharding import is_sharded
from harness.subject.sizes import EngineConfig, Shapes, rows_that_fit
from harness.subject.tally import Tally


class Decoder:
    """Decodes rows, offered all at once or some while others run.

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
        """Steps until the host hears that a row is done: one costs each row a step and spares the device all waits."""
        self._offered = 0
        self._waiting: list[Row] = []
        self._most_slots = 2**31
        self.offer(prompts, intervention, seeds)

    def offer(self, prompts: Sequence[Sequence[int]], intervention: Intervention, seeds: Sequence[int]) -> None:
        """Add rows, also while others run. Their numbers count on from those of earlier ones.

        Raises:
            ValueError: rows are steered together, and every group has but one, or the texts are computed anew.
        """
        groups = _first_rows(intervention) if prompts else []
        uniform = None
        if self.sampling.temperature > 0 and prompts:
            uniform = uniform_draws(seeds, self.sampling.max_new_tokens)
        pool = Pool(intervention, uniform)
        rows = [Row(self._offered + place, pool, place, tuple(prompt)) for place, prompt in enumerate(prompts)]
        for row in rows:
            row.group = self._offered + groups[row.place] if groups else row.number
        self._wait(rows)
        self._offered += len(prompts)

    def _wait(self, rows: Sequence[Row]) -> None:
        # Longest first (from the end): neighbours then need little padding, and memory peaks at the start.
        self._waiting = sorted([*self._waiting, *rows], key=lambda row: len(row.prompt))

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
        # One batch takes all rows; only where memory ran out is there another, with half the slots.
        while self._waiting:
            with Steering(self.network.blocks, Intervention(), observer=observer) as steering:
                batch = self._batch(engine, steering)
                finished = 0

                while self._pass(batch):
                    with batch.mode():
                        left = batch.leave()
                    finished += len(left)
                    for row in left:
                        if on_finish is not None:
                            on_finish(row.number)

                    if refill is not None and finished and not self._waiting and batch.has_room:
                        self.results.update(batch.results())
                        finished = 0
                        refill()
                self.results.update(batch.results())
        return [self.results[number] for number in range(self._offered)]

    def _batch(self, engine: EngineConfig, steering: Steering) -> Batch:
        """Slots for the rows that wait; after memory ran out, half as many as before."""
        longest = len(self._waiting[-1].prompt) + self.sampling.max_new_tokens
        kept = graphs.kept_slots(self.network.model) if engine.compile else None
        if kept is not None and kept.capacity >= longest:
            longest = kept.capacity  # graphs are made for it
        if kept is not None and kept.capacity == longest and engine.token_budget is None:
            fitting = min(kept.count, engine.max_rows or kept.count)  # the free memory lacks what they hold already
        else:
            remembered = max(row.pool.intervention.bytes_per_token for row in self._waiting)
            fitting = rows_that_fit(self.network, engine, longest, remembered)
        # A graph is made for a number of slots, so that stays; otherwise there are no more than rows.
        slots = min(fitting, self._most_slots, 2**31 if engine.compile else len(self._waiting))
        self._check_groups(slots, engine)
        shapes = Shapes.of(self.network.device, slots, longest, engine.compile)
        return Batch(
            self.network,
            self.sampling,
            shapes,
            steering,
            self.tally,
            lateness=self.lateness,
            compiled=engine.compile,
            gradients=self._waiting[-1].pool.intervention.gradients,
        )

    def _check_groups(self, slots: int, engine: EngineConfig) -> None:
        """Raise unless all rows that are steered together can run at once, and as they are."""
        coupled = [row for row in self._waiting if row.pool.intervention.groups is not None]
        if coupled and engine.compile:
            raise ValueError("engine.compile must be false for a method that steers samples of one prompt together")
        largest = max(Counter(row.group for row in coupled).values(), default=0)
        if largest > slots:
            raise ValueError(
                f"{largest} samples of one prompt are steered together, but only {slots} rows fit at once: raise "
                "engine.max_rows or engine.token_budget, or lower task.num_samples"
            )

    def _pass(self, batch: Batch) -> bool:
        """Compute prompts of waiting rows, or a step of those in flight; False if these slots have nothing to do."""
        start = self.tally.clock()
        try:
            with batch.mode():
                joined = batch.join(self._waiting)
                if not joined and not batch.rows:
                    return False
                if not joined:
                    batch.step()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not batch.gradients and _lacks_gradients(error):
                raise RuntimeError("an edit takes gradients: build its Intervention with gradients=True") from error
            # Rows that have ended cannot come back, and those that were steered with them would become others.
            coupled = any(row.pool.intervention.groups is not None for row in batch.rows.values())
            # Processes that share a model must run the same rows, and only this one lacks memory.
            shared = is_sharded(self.network.model)
            if not _is_out_of_memory(error) or batch.shapes.slots == 1 or coupled or shared:
                raise
            self._most_slots = batch.shapes.slots // 2
            self.tally.batch_shrinks += 1
            self._wait(list(batch.rows.values()))
            return False

        seconds = self.tally.clock() - start
        self.tally.prefill_seconds += seconds if joined else 0
        self.tally.decode_seconds += 0 if joined else seconds
        return True


def _first_rows(intervention: Intervention) -> list[int]:
    """For each row, the first one of its group; empty where rows are not steered together."""
    if intervention.groups is None:
        return []
    if not intervention.uses_cache:
        raise ValueError("rows that are steered together need a cache: those that have ended are not computed again")
    numbers: list[int] = intervention.groups.tolist()
    first = {number: place for place, number in reversed(list(enumerate(numbers)))}
    if len(first) == len(numbers):
        raise ValueError(
            "this method steers samples of one prompt apart from each other, and every prompt is here once: set "
            "task.num_samples to 2 or more"
        )
    return [first[number] for number in numbers]


def _lacks_gradients(error: Exception) -> bool:
    """Whether autograd refused to work because of inference mode."""
    return "inference tensor" in str(error).lower() or "does not require grad" in str(error)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
