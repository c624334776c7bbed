"""What every search shares: trials, selections, and the plainest search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.data import Access, Example, Parameters
from harness.records.store import GenerationStore
from harness.scoring import Generation, Tools
from harness.search.objective import Objective
from harness.steering import Layout, Method, Range
from harness.workbench import Request, Workbench

CHUNK = 64
"""Test items whose generations are written together, where nothing else decides it."""

Prepared = Mapping[str, Any]
"""What `Search.prepare` decides and `Search.select` is handed back: a parameter set, or one for each group."""

Advance = Callable[[int], None]
"""Reports so many finished trials."""


@dataclass(frozen=True)
class Trial:
    """One evaluated parameter set. ``number`` -1 is the un-steered incumbent; ``round`` counts barriers."""

    number: int
    round: int
    generation: Generation
    objective: float
    terms: dict[str, float | None]

    def row(self) -> dict[str, Any]:
        """As a line of ``trials.jsonl``."""
        return {
            "example_id": self.generation.example_id,
            "generation": self.round,
            "trial": self.number,
            "parameters": self.generation.parameters,
            "objective": self.objective,
            "terms": self.terms,
            **generation_fields(self.generation),
        }

    @classmethod
    def of(cls, row: dict[str, Any]) -> Trial:
        """Back from a line of ``trials.jsonl``."""
        return cls(row["trial"], row["generation"], generation_of(row), row["objective"], row["terms"])


def generation_fields(generation: Generation) -> dict[str, Any]:
    """The fields of a generation that stand in every record of it."""
    return {
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "finish": generation.finish,
        "prompt_tokens": generation.prompt_tokens,
        "near_ties": generation.near_ties,
        "choice_logprobs": list(generation.choice_logprobs),
    }


def generation_of(row: dict[str, Any]) -> Generation:
    """A generation back from its record."""
    return Generation(
        row["example_id"],
        row["parameters"],
        row["text"],
        tuple(row["token_ids"]),
        row["finish"],
        row["prompt_tokens"],
        row["near_ties"],
        tuple(row["choice_logprobs"]),
    )


@dataclass(frozen=True)
class Selection:
    """The trial that stands for an example."""

    generation: Generation
    trial: int
    objective: float | None = None


@dataclass(frozen=True)
class Setting:
    """What a search works with besides the workbench."""

    objective: Objective
    tools: Tools
    seed: int
    store: GenerationStore
    advance: Advance


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

    @property
    def chunk_size(self) -> int:
        """Test items that `select` is handed at a time; their generations are written together."""
        return CHUNK

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


@dataclass(frozen=True, kw_only=True)
class Fixed(Search):
    """One parameter set for all: every parameter's default, or the values given here.

    Args:
        parameters: values by name; those not named keep their default.
    """

    parameters: dict[str, float]

    def check(self, method: Method, layout: Layout) -> None:
        """Raise ValueError for a parameter that the method does not have or a value out of its range."""
        known = method.parameters(layout)
        for name, value in self.parameters.items():
            if name not in known:
                raise ValueError(
                    f"search.parameters: no parameter '{name}' (the method has {', '.join(known) or 'none'})"
                )
            if name == "layer" or name.endswith(".layer"):
                layout.check_layer(f"search.parameters.{name}", value)

    def prepare(self, bench: Workbench, dev: Sequence[Example], setting: Setting) -> Parameters:
        """The parameter set."""
        return bench.method.defaults(bench.subject.layout) | self.parameters

    def select(
        self, bench: Workbench, examples: Sequence[Example], prepared: Prepared, setting: Setting
    ) -> list[Selection]:
        """Run every example once."""
        return run_all(bench, examples, prepared, setting)


def run_all(bench: Workbench, examples: Sequence[Example], parameters: Prepared, setting: Setting) -> list[Selection]:
    """Every example once with the same parameters."""
    return run_each(bench, examples, [parameters] * len(examples), setting)


def run_each(
    bench: Workbench, examples: Sequence[Example], parameters: Sequence[Prepared], setting: Setting
) -> list[Selection]:
    """Every example once with parameters of its own."""
    requests = [
        Request(example, dict(own), 0, bench.control.temperature)
        for example, own in zip(examples, parameters, strict=True)
    ]
    generations = bench.run(requests, lambda: setting.advance(1))
    return [Selection(generation, 0) for generation in generations]


def searchable(bench: Workbench) -> tuple[dict[str, Range], Parameters]:
    """The parameters to search, and those that stand fixed."""
    known = bench.method.parameters(bench.subject.layout) if bench.steers else {}
    ranges = {name: value for name, value in known.items() if isinstance(value, Range)}
    return ranges, {name: value for name, value in known.items() if not isinstance(value, Range)}
