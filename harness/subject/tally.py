"""Work that the engine has done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter


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
