"""What steering costs with each method: the same questions decoded un-steered and with every method, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch

from bench import ours
from bench.jobs import Jobs, encoded, questions
from bench.report import grid
from bench.timing import Timing, median, ratio
from harness.config import first_line
from harness.data import Example
from harness.job import Job
from harness.steering import Intervention
from harness.workbench import Request

LEARNT_FROM = ("task=sentiment", "task.train_size=16")
"""What methods are fitted on: their cost in decoding does not depend on how much it is."""
UNSTEERED = "un-steered"


@dataclass(frozen=True, eq=False)
class Steered:
    """A batch ready to be decoded.

    Args:
        prompts: token ids of each row's prompt; a method may put an instruction before the question.
        intervention: one row of parameters per row of the batch.
        fit_seconds: what fitting took.
        timings: one per repeat.
    """

    prompts: Sequence[Sequence[int]]
    intervention: Intervention
    fit_seconds: float = 0.0
    timings: list[Timing] = field(default_factory=list)

    def first(self, rows: int) -> Steered:
        """The same with fewer rows, for warming up."""
        chosen = torch.arange(min(rows, len(self.prompts)))
        return dataclasses.replace(self, prompts=self.prompts[:rows], intervention=self.intervention.take(chosen))


def method_names() -> list[str]:
    """Every method that has a YAML."""
    files = resources.files("conf").joinpath("method").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def side_by_side(
    jobs: Jobs,
    names: Sequence[str],
    rows: int,
    new_tokens: int,
    repeats: int,
    note: Callable[[str], None],
    task: Sequence[str] = (),
) -> tuple[dict[str, Steered], dict[str, str]]:
    """Decode un-steered and with every method in each repeat, after a short run of each that is not counted.

    Methods learn from the task ``sentiment``, which offers nearly all that a method may require; the batch is made of
    questions of the task ``facts``, since some methods need a gold answer. Parameters are the methods' defaults.

    Args:
        jobs: makes the harness's objects.
        names: choices of the group ``method``.
        rows: questions, and rows at once.
        new_tokens: completion length; ends of text are ignored.
        repeats: timed runs of each.
        note: is told what was done.
        task: overrides that name another task, in place of both: for methods that need concepts in words.

    Returns:
        What was timed, by method (`UNSTEERED` among them), and the error of each method that could not be set up.
    """
    asked = jobs.job("method=baseline", "search=fixed", *(task or ["task=facts"]))
    examples = questions(asked, rows)
    prepared = {UNSTEERED: Steered(encoded(jobs.workbench(asked), examples), Intervention())}
    failed: dict[str, str] = {}
    _timed(jobs, prepared[UNSTEERED].first(2), 2)
    for name in names:
        try:
            steered = _prepared(jobs, name, task or LEARNT_FROM, asked, examples)
            _timed(jobs, steered.first(2), 2)
        except Exception as error:  # a method that needs what this machine lacks is a line of the table
            failed[name] = f"{type(error).__name__}: {first_line(error)}"
            note(f"{name} cannot be set up: {failed[name]}")
            continue
        prepared[name] = steered
        note(f"{name}: fitted in {steered.fit_seconds:.1f} s")
    for repeat in range(repeats):
        # Back and forth, so that what comes first in a repeat is not always the same.
        for name, steered in list(prepared.items())[:: 1 if repeat % 2 == 0 else -1]:
            steered.timings.append(_timed(jobs, steered, new_tokens))
            note(f"repeat {repeat + 1} of {repeats}, {name}: {steered.timings[-1].generation:.1f} s")
    return prepared, failed


def _prepared(jobs: Jobs, name: str, learnt_from: Sequence[str], asked: Job, examples: Sequence[Example]) -> Steered:
    job = jobs.job(f"method={name}", "search=fixed", *learnt_from)
    watch, bench = jobs.models.watch, jobs.workbench(job, task=asked.task)
    bench.subject.forget_captures()  # or a method would be timed without what those before it have read
    start = watch.now()
    bench.adopt(jobs.workbench(job).fit())
    seconds = watch.now() - start
    parameters = job.method.defaults(job.layout)
    intervention = bench.intervention([Request(example, parameters) for example in examples])
    return Steered(encoded(bench, examples), intervention, seconds)


def _timed(jobs: Jobs, steered: Steered, new_tokens: int) -> Timing:
    network = jobs.models.subject().network
    return ours.decoded(network, steered.prompts, steered.intervention, new_tokens, jobs.models.watch)


def figures(prepared: Mapping[str, Steered], failed: Mapping[str, str], new_tokens: int) -> dict[str, Any]:
    """Medians over repeats, by method; ratios are taken within a repeat."""
    reference = prepared[UNSTEERED]
    return {name: _figures(steered, reference, new_tokens) for name, steered in prepared.items()} | {
        name: {"failed": error} for name, error in failed.items()
    }


def _figures(steered: Steered, reference: Steered, new_tokens: int) -> dict[str, Any]:
    runs = steered.timings
    pairs = list(zip(runs[0].completions, reference.timings[0].completions, strict=True))
    return {
        "sites": len(steered.intervention.edits),
        "fit_seconds": steered.fit_seconds,
        "prefill_seconds": median(runs, lambda run: run.prefill),
        "decode_seconds": median(runs, lambda run: run.decode),
        "decode_tokens_per_second": median(runs, lambda run: run.trials * (new_tokens - 1) / run.decode),
        "decode_speed_over_unsteered": ratio(runs, reference.timings, lambda run: run.decode),
        "rows_changed": sum(one != other for one, other in pairs) / len(pairs),
        "repeats": [[run.prefill, run.decode] for run in runs],
    }


def table(result: Mapping[str, Any]) -> str:
    """Markdown: one line per method, then the methods that could not be set up."""
    header = ("method", "edited sites", "fit s", "prefill s", "decoded tokens/s", "over un-steered", "rows changed")
    rows = [
        (
            name,
            str(row["sites"]),
            f"{row['fit_seconds']:.1f}",
            f"{row['prefill_seconds']:.2f}",
            f"{row['decode_tokens_per_second']:.0f}",
            f"{row['decode_speed_over_unsteered']:.3f}",
            f"{row['rows_changed']:.0%}",
        )
        for name, row in result.items()
        if "failed" not in row
    ]
    failed = [f"{name} cannot be set up: {row['failed']}" for name, row in result.items() if "failed" in row]
    return "\n".join([grid(header, rows), *([""] if failed else []), *failed])
