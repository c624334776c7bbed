"""Which examples and which trials count. The standard counts all examples, each with the trial that was selected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from harness.steering import Artifact, Intervention, Method

SubsetName = Literal["all", "baseline_incorrect"]
ScoredTrials = Literal["selected", "best"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Departures from the standard that publications have made. They are part of a run's key and shown in the report.

    Args:
        subset: ``baseline_incorrect`` counts only the examples that the un-steered model gets wrong, which takes a run
            of it and its grading. A method can then only gain, so the report tests nothing against the baseline.
        baseline_prompt: prompt template of that un-steered run; None for the run's own.
        scored_trials: ``best`` scores every trial of an example and counts its best one, by each evaluator's first
            metric: a choice that nobody without the answers can make.
    """

    subset: SubsetName = "all"
    baseline_prompt: str | None = None
    scored_trials: ScoredTrials = "selected"

    def __post_init__(self) -> None:
        """Refuse a prompt that drops the question."""
        if self.baseline_prompt is not None and "{question}" not in self.baseline_prompt:
            raise ValueError(f"protocol.baseline_prompt must contain {{question}}, got {self.baseline_prompt!r}")


@dataclass(frozen=True, kw_only=True)
class Unsteered(Method):
    """The model as it is: what the baseline's answers come from when they decide which examples count."""

    steers: ClassVar[bool] = False

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """No edits."""
        return Intervention()
