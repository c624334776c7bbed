"""Rows that run while others are still being decided: requests in, and those that follow from their results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.scoring import Generation
from harness.subject.decode import Decoder
from harness.subject.sampling import Sampling

if TYPE_CHECKING:
    from harness.workbench import Request, Workbench

POOL_ROWS = 1024
"""Rows that are offered to the engine together: their per-row tensors exist at once."""

Following = Callable[[Sequence[tuple["Request", Generation]]], Sequence["Request"]]
"""Is handed requests that are done, with their generations, and returns those to run next."""


class Flow:
    """Generates for requests in batches that stay full as long as any can run.

    Args:
        bench: what runs them; all requests are of one kind, steered or not and at one temperature.
        following: decides what runs next, whenever there is room and something is done; None: nothing.
        on_finish: called once per finished row.
    """

    def __init__(
        self, bench: Workbench, following: Following | None = None, on_finish: Callable[[], None] | None = None
    ) -> None:
        self._bench, self._following, self._on_finish = bench, following, on_finish
        self._coming: deque[Request] = deque()
        self._asked: list[Request] = []
        self._prompt_tokens: list[int] = []
        self._generations: dict[int, Generation] = {}

    def run(self, requests: Sequence[Request]) -> list[Generation]:
        """Run these requests and all that follow; their generations in the order in which they were asked for."""
        bench, subject = self._bench, self._bench.subject
        sampling = Sampling(bench.task.max_new_tokens, requests[0].temperature, prune_loops=bench.prune_loops)
        decoder = subject.decoder(sampling)
        self._coming.extend(requests)
        self._offer(decoder)
        decoder.run(
            subject.engine,
            None if self._on_finish is None else lambda _number: self._on_finish(),  # pyright: ignore
            refill=lambda: self._refill(decoder),
        )
        return [self._generations[number] for number in range(len(self._asked))]

    def _refill(self, decoder: Decoder) -> None:
        if not self._coming:
            finished = self._read(decoder)
            self._coming.extend(self._following(finished) if self._following is not None else ())
        self._offer(decoder)

    def _read(self, decoder: Decoder) -> list[tuple[Request, Generation]]:
        """Generations of the rows that have finished since the last time."""
        numbers = [number for number in decoder.results if number not in self._generations]
        requests = [self._asked[number] for number in numbers]
        generations = [
            self._bench.generation(self._asked[number], decoder.results[number], self._prompt_tokens[number])
            for number in numbers
        ]
        if self._bench.task.kind != "generate":
            generations = self._bench.with_choices(requests, generations)
        self._generations.update(zip(numbers, generations, strict=True))
        return list(zip(requests, generations, strict=True))

    def _offer(self, decoder: Decoder) -> None:
        """Hand the next requests to the engine."""
        samples = self._bench.task.num_samples
        most = max(1, POOL_ROWS // samples) * samples  # samples of one item stay together
        pool = [self._coming.popleft() for _ in range(min(most, len(self._coming)))]
        if not pool:
            return
        prompts = [self._bench.subject.encode(self._bench.prompt(request.example)) for request in pool]
        decoder.offer(prompts, self._bench.intervention(pool), [self._bench.seed_of(request) for request in pool])
        self._asked += pool
        self._prompt_tokens += map(len, prompts)
