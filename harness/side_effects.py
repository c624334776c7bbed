"""What steering does to prompts that it was not meant for.

``side_effects=standard`` gives each job a second one: the same method with the same fitted tensors and the parameters
that were chosen on the job's own task, on prompts of another task. It is a run like any other, so the gain on the task
and the loss elsewhere stand in one report, each against the un-steered model and with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.scoring import Evaluator
from harness.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class NotMeasured:
    """No second job."""


@dataclass(frozen=True, kw_only=True)
class Suite(NotMeasured):
    """Other prompts, and how their answers are scored.

    Args:
        task: the prompts; nothing is fitted or chosen on them.
        evaluators: by name.
        measure: whether this is the second job.
    """

    task: Task
    evaluators: Mapping[str, Evaluator]
    measure: bool = False
