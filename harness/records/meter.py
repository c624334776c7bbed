"""What a stretch of work took: tokens, time and memory, from one lap to the next."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from harness.records.provenance import peak_memory_bytes
from harness.records.store import Work


class Meter:
    """Measures laps.

    Args:
        forward_tokens: tells how many tokens were fed through the model so far.
    """

    def __init__(self, forward_tokens: Callable[[], int]) -> None:
        self._forward_tokens = forward_tokens
        self._tokens, self._start = forward_tokens(), perf_counter()

    def lap(self, name: str, examples: int = 0, trained_tokens: int = 0) -> Work:
        """What was done since the last lap; the next one begins now."""
        tokens, now = self._forward_tokens(), perf_counter()
        work = Work(name, tokens - self._tokens, now - self._start, peak_memory_bytes(), examples, trained_tokens)
        self._tokens, self._start = tokens, now
        return work
