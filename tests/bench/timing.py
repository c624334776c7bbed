"""What one run of one way took, and the medians of several."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Literal

import torch

Clock = Literal["wall", "cpu"]
_CLOCKS: dict[Clock, Callable[[], float]] = {"wall": perf_counter, "cpu": process_time}


@dataclass(frozen=True)
class Stopwatch:
    """Seconds of wall time, or of this process's CPU time: with one thread the latter holds on a busy machine too."""

    device: torch.device
    clock: Clock = "wall"

    @property
    def seconds(self) -> Callable[[], float]:
        """The clock itself."""
        return _CLOCKS[self.clock]

    def now(self) -> float:
        """Seconds, when everything asked of the device so far is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.seconds()


@dataclass(frozen=True)
class Timing:
    """Seconds of wall time for a number of trials.

    Args:
        trials: rows decoded.
        prefill: prompts, up to the first token.
        decode: all further tokens.
        scoring: log-likelihood of the completions under the un-steered model.
        completions: token ids, to check that the ways write the same.
    """

    trials: int
    prefill: float
    decode: float
    scoring: float
    completions: tuple[tuple[int, ...], ...] = ()

    def __add__(self, other: Timing) -> Timing:
        """Both, one after the other."""
        return Timing(*(getattr(self, item.name) + getattr(other, item.name) for item in dataclasses.fields(self)))

    def scored_in(self, seconds: float) -> Timing:
        """The same with another scoring time."""
        return dataclasses.replace(self, scoring=seconds)

    @property
    def generation(self) -> float:
        """Seconds of prefill and decoding."""
        return self.prefill + self.decode

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.generation + self.scoring


Figure = Callable[[Timing], float]


def median(timings: Sequence[Timing], figure: Figure) -> float:
    """Median of a figure over repeats."""
    return statistics.median(figure(timing) for timing in timings)


def ratio(timings: Sequence[Timing], others: Sequence[Timing], figure: Figure) -> float:
    """How many times faster ``timings`` are than ``others``, per trial: median over repeats taken side by side."""
    pairs = zip(timings, others, strict=True)
    return statistics.median((figure(b) / b.trials) / (figure(a) / a.trials) for a, b in pairs)
