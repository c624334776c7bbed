"""How the time of segmented steering grows: one factor changed at a time, every row with strengths of its own."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import ours
from bench.jobs import Jobs, encoded, questions
from bench.report import grid
from bench.timing import Timing, median
from harness.data import Example
from harness.search.proposals import grid as strengths
from harness.search.search import searchable
from harness.steering import Intervention
from harness.workbench import Request, Workbench

AT_ONCE = 64
"""Rows at once; the usual points are multiples of it, so that all of them fill the batch."""
LABELS = {
    "prompts": "prompts",
    "trials": "trials per prompt",
    "layers": "steered layers",
    "new_tokens": "new tokens",
    "distinct": "distinct configurations",
}


@dataclass(frozen=True)
class Point:
    """One amount of work.

    Args:
        prompts: questions.
        trials: rows per question.
        layers: how many layers are steered, from the first; 0 steers nothing.
        new_tokens: completion length; ends of text are ignored.
        distinct: different sets of strengths among the rows; None for one per row.
    """

    prompts: int
    trials: int
    layers: int
    new_tokens: int
    distinct: int | None = None

    @property
    def rows(self) -> int:
        """Number of trials in all."""
        return self.prompts * self.trials

    def value(self, factor: str) -> int:
        """The value of one factor."""
        return self.rows if factor == "distinct" and self.distinct is None else getattr(self, factor)


@dataclass(frozen=True, eq=False)
class Timed:
    """A point, ready to be run, and how long it took."""

    prompts: Sequence[Sequence[int]]
    intervention: Intervention
    timings: list[Timing] = field(default_factory=list)


def usual_base(num_layers: int) -> Point:
    """The point from which one factor at a time is changed: 256 rows of 8 tokens, all layers steered."""
    return Point(prompts=16, trials=16, layers=num_layers, new_tokens=8)


def usual_factors(num_layers: int) -> dict[str, tuple[int, ...]]:
    """The values that each factor takes besides its base's."""
    return {
        "prompts": (4, 8),
        "trials": (4, 8),
        "layers": (0, num_layers // 2),
        "new_tokens": (4, 16),
        "distinct": (1, 16, 64),
    }


def points(base: Point, factors: Mapping[str, Sequence[int]]) -> dict[str, list[Point]]:
    """The points of each factor, the base among them, by rising value."""
    return {
        factor: sorted(
            [base, *(dataclasses.replace(base, **{factor: value}) for value in values if value != base.value(factor))],
            key=lambda point, factor=factor: point.value(factor),
        )
        for factor, values in factors.items()
    }


def measure(
    jobs: Jobs,
    base: Point,
    factors: Mapping[str, Sequence[int]],
    repeats: int,
    note: Callable[[str], None],
    at_once: int = AT_ONCE,
) -> dict[Point, list[Timing]]:
    """Decode every point in each repeat, after a short run that is not counted."""
    job = jobs.job("method=segmented", "search=per_prompt", "task=facts")
    bench, network, watch = jobs.workbench(job), jobs.models.subject().network, jobs.models.watch
    measured_points = dict.fromkeys([base, *(point for line in points(base, factors).values() for point in line)])
    examples = questions(job, max(point.prompts for point in measured_points))
    ready = {point: _ready(bench, examples, point) for point in measured_points}
    short = _ready(bench, examples, dataclasses.replace(base, prompts=1))

    ours.decoded(network, short.prompts, short.intervention, 2, watch, at_once)
    for repeat in range(repeats):
        for point, timed in ready.items():
            run = ours.decoded(network, timed.prompts, timed.intervention, point.new_tokens, watch, at_once)
            timed.timings.append(run)
            note(f"repeat {repeat + 1} of {repeats}, {point}: {run.generation:.1f} s")
    return {point: timed.timings for point, timed in ready.items()}


def _ready(bench: Workbench, examples: Sequence[Example], point: Point) -> Timed:
    chosen = [example for example in examples[: point.prompts] for _ in range(point.trials)]
    ranges, fixed = searchable(bench)
    sets = strengths(ranges, point.value("distinct"))
    requests = [Request(example, {**fixed, **sets[index % len(sets)]}) for index, example in enumerate(chosen)]
    edits = bench.intervention(requests)
    kept = dict(sorted(edits.edits.items())[: point.layers])
    return Timed(encoded(bench, chosen), dataclasses.replace(edits, edits=kept))


def figures(
    timings: Mapping[Point, Sequence[Timing]], base: Point, factors: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """Medians over repeats, one entry per factor and value; the share of the base's time is taken within a repeat."""
    return [
        _figures(factor, point, timings[point], timings[base])
        for factor, line in points(base, factors).items()
        for point in line
    ]


def _figures(factor: str, point: Point, runs: Sequence[Timing], base: Sequence[Timing]) -> dict[str, Any]:
    seconds = median(runs, lambda run: run.generation)
    return {
        "factor": factor,
        "value": point.value(factor),
        "rows": point.rows,
        "new_tokens": point.new_tokens,
        "prefill_seconds": median(runs, lambda run: run.prefill),
        "decode_seconds": median(runs, lambda run: run.decode),
        "seconds": seconds,
        "seconds_over_base": statistics.median(a.generation / b.generation for a, b in zip(runs, base, strict=True)),
        "seconds_per_row_token": seconds / (point.rows * point.new_tokens),
        "trials_per_second": point.rows / seconds,
        "repeats": [[run.prefill, run.decode] for run in runs],
    }


def table(result: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line per factor and value."""
    header = ("factor", "value", "prefill s", "decode s", "in all s", "times base", "ms per row and token", "trials/s")
    return grid(
        header,
        [
            (
                LABELS[row["factor"]],
                str(row["value"]),
                f"{row['prefill_seconds']:.2f}",
                f"{row['decode_seconds']:.2f}",
                f"{row['seconds']:.2f}",
                f"{row['seconds_over_base']:.2f}",
                f"{1000 * row['seconds_per_row_token']:.2f}",
                f"{row['trials_per_second']:.3g}",
            )
            for row in result
        ],
    )
