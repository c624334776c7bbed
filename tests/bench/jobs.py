"""The harness's own configuration, tasks and methods at the bench."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.suite import Models
from harness.build import build
from harness.config import composed
from harness.data import Example
from harness.job import Job
from harness.subject.local import LocalSubject
from harness.tasks.task import Task
from harness.workbench import Workbench


@dataclass(frozen=True, eq=False)
class Jobs:
    """Makes jobs for the model at the bench.

    Args:
        models: copies of that model.
        overrides: what names it on the harness's command line.
    """

    models: Models
    overrides: Sequence[str]

    def job(self, *overrides: str) -> Job:
        """A job with these overrides, checked; nothing is published.

        Raises:
            ValueError: there is no such choice, or the parts do not fit.
        """
        return build(*composed([*self.overrides, "tracking=none", *overrides]))

    def workbench(self, job: Job, *, task: Task | None = None, subject: LocalSubject | None = None) -> Workbench:
        """Where the job's method meets its task, or another one, and the loaded model, or another view of it."""
        return Workbench(subject or self.models.subject(), task or job.task, job.method, job.control, job.seed)


def questions(job: Job, count: int) -> list[Example]:
    """So many test items of the job's task; they come again from the start if the task has fewer."""
    examples = job.task.examples("test")
    return [examples[index % len(examples)] for index in range(count)]


def encoded(bench: Workbench, examples: Iterable[Example]) -> list[tuple[int, ...]]:
    """Token ids of what the model reads for each example."""
    return [bench.subject.encode(bench.prompt(example)) for example in examples]
