"""Which examples and which trials count. The standard counts all examples, each with the trial that was selected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from harness.scoring import Evaluator
from harness.steering import Artifact, Intervention, Method

SubsetName = Literal["all", "baseline_incorrect"]
ScoredTrials = Literal["selected", "best"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Departures from the standard that publications have made. They are part of a run's key and shown in the report.

    Args:
        subset: ``baseline_incorrect`` counts only the examples that the un-steered model gets wrong, which takes a run
            of it and its grading; nothing is searched or generated for the others. A method can then only gain, so the
            report tests nothing against the baseline.
        baseline_prompt: prompt template of that un-steered run; None for the run's own.
        grader: the evaluator whose metric ``incorrect`` says which these are; None takes the one among the run's own.
        scored_trials: ``best`` scores every trial of an example and counts its best one, by each evaluator's first
            metric: a choice that nobody without the answers can make.
    """

    subset: SubsetName = "all"
    baseline_prompt: str | None = None
    grader: Evaluator | None = None
    scored_trials: ScoredTrials = "selected"

    def __post_init__(self) -> None:
        """Refuse a prompt that drops the question, and a grader that calls nothing incorrect."""
        if self.baseline_prompt is not None and "{question}" not in self.baseline_prompt:
            raise ValueError(f"protocol.baseline_prompt must contain {{question}}, got {self.baseline_prompt!r}")
        if self.grader is not None and not decides(self.grader):
            raise ValueError(f"protocol.grader must have the metric incorrect; {type(self.grader).__name__} has not")


def decides(evaluator: Evaluator) -> bool:
    """Whether an evaluator says which answers are incorrect."""
    return any(metric.name == "incorrect" for metric in evaluator.metrics)


@dataclass(frozen=True, kw_only=True)
class Unsteered(Method):
    """The model as it is: what the baseline's answers come from when they decide which examples count."""

    steers: ClassVar[bool] = False

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """No edits."""
        return Intervention()
