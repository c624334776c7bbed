"""What every search shares: its base class, what it is given, and the selection that it makes for each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from harness.data import Access, Example, Parameters
from harness.progress import Advance, report
from harness.records.meter import Meter
from harness.records.rows import Trial
from harness.records.store import GenerationStore
from harness.scoring import Generation, Tools
from harness.search.objective import Objective
from harness.steering import Layout, Method, Range
from harness.workbench import Request, Workbench

CHUNK_ROWS = 4
"""Rows of a chunk for each that runs at once, where nothing else decides it: enough for the batch to stay full."""

Prepared = Mapping[str, Any]
"""What `Search.prepare` decides and `Search.select` is handed back: a parameter set, or one for each group."""


@dataclass(frozen=True)
class Selection:
    """The trial that stands for an example."""

    generation: Generation
    trial: int
    objective: float | None = None


@dataclass(frozen=True)
class Setting:
    """What a search works with besides the workbench.

    Args:
        objective: what it maximises.
        tools: what the objective's evaluators may call on.
        seed: of everything that it draws.
        store: where trials are written, and read again after a restart.
        meter: measures the work between two writes.
        advance: reports finished trials.
    """

    objective: Objective
    tools: Tools
    seed: int
    store: GenerationStore
    meter: Meter
    advance: Advance

    def keep(self, trials: list[Trial], work: str) -> None:
        """Write the trials of one round, and under this name what they took."""
        self.store.add_trials(trials, self.meter.lap(work))
        objectives = [trial.objective for trial in trials if trial.objective is not None]
        if objectives:
            report({"search/round_mean": fmean(objectives), "search/round_best": max(objectives)})

    def note(self, work: str) -> None:
        """Write what was done since the last write, under this name."""
        self.store.add_work(self.meter.lap(work))


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the parameters of a method are decided: derive from it and say how in `prepare` and `select`.

    A search sees a method through the workbench alone: it asks for rows and gets generations. It keeps no state between
    calls; what it has tried stands in ``setting.store.trials``, from which it continues after a restart.
    """

    access: ClassVar[frozenset[Access]] = frozenset()
    """What the search itself looks at. ``GOLD``: the answers of test items, which makes every result an oracle's."""
    needs_objective: ClassVar[bool] = False
    """Whether trials are scored with the run's objective."""
    uses_dev: ClassVar[bool] = False
    """Whether `prepare` is handed the task's dev items."""

    def chunk_size(self, rows_at_once: int) -> int:
        """Test items that `select` is handed at a time; their generations are written together.

        Args:
            rows_at_once: rows that run at once on this device. A chunk should offer more of them.
        """
        return CHUNK_ROWS * rows_at_once

    def check(self, method: Method, layout: Layout) -> None:
        """Raise ValueError for settings that cannot work with this method and model. Called before weights load."""

    def num_trials_of(self, num_examples: int) -> int:
        """Generations that `select` makes for so many test items, for progress bars and forecasts."""
        return num_examples

    def num_dev_trials_of(self, num_dev: int) -> int:
        """Generations that `prepare` makes where the task has so many dev items."""
        return 0

    def prepare(self, bench: Workbench, dev: Sequence[Example], setting: Setting) -> Prepared:
        """What is decided once, before any test item; empty if each is decided on its own."""
        return {}

    def select(
        self, bench: Workbench, examples: Sequence[Example], prepared: Prepared, setting: Setting
    ) -> list[Selection]:
        """One selection for each example, in order."""
        raise NotImplementedError


def run_all(bench: Workbench, examples: Sequence[Example], parameters: Parameters, setting: Setting) -> list[Selection]:
    """Every example once with the same parameters."""
    return run_each(bench, examples, [parameters] * len(examples), setting)


def run_each(
    bench: Workbench, examples: Sequence[Example], parameters: Sequence[Prepared], setting: Setting
) -> list[Selection]:
    """Every example once with parameters of its own."""
    requests = [
        Request(example, dict(own), 0, bench.temperature) for example, own in zip(examples, parameters, strict=True)
    ]
    generations = bench.run(requests, lambda: setting.advance(1))
    return [Selection(generation, 0) for generation in generations]


def searchable(bench: Workbench) -> tuple[dict[str, Range], Parameters]:
    """The parameters to search, and those that stand fixed."""
    known = bench.method.parameters(bench.subject.layout) if bench.steers else {}
    ranges = {name: value for name, value in known.items() if isinstance(value, Range)}
    return ranges, {name: value for name, value in known.items() if not isinstance(value, Range)}


def check_positive(name: str, value: int) -> None:
    """Raise ValueError for a count below 1."""
    if value < 1:
        raise ValueError(f"search.{name} must be at least 1, got {value}")
