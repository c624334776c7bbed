"""A judge whose verdicts are checked by a second one, on a random part of the answers of every entry."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.judges.usage import Usage
from harness.scoring import Grading, Judge, Verdict


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditedJudge(Judge):
    """The first judge grades every answer, the second a part of them; both verdicts are kept.

    The part is drawn by question, with the same questions in every entry, so that differences of entries can be
    corrected too. `harness.report.audit.corrected` turns the two into a mean and an interval that covers the first
    judge's error.

    Args:
        first: grades every answer; its verdict is the score.
        second: the better and dearer judge.
        sample: how many answers the second judge grades, per entry and rubric.
        seed: which ones.
    """

    first: Judge
    second: Judge
    sample: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: nothing would be audited, or the judges are the same.
        """
        if self.sample < 1:
            raise ValueError(f"judge.sample must be above 0, got {self.sample}")
        if self.first.identity == self.second.identity:
            raise ValueError(f"judge.first and judge.second must differ, both are {self.first.identity}")

    @property
    def rubrics(self) -> frozenset[str]:  # type: ignore[override]
        """What both can grade."""
        return self.first.rubrics & self.second.rubrics

    @property
    def identity(self) -> str:
        """Both judges, and how many answers the second one grades."""
        return f"{self.first.identity}, {self.sample} audited by {self.second.identity} (seed {self.seed})"

    @property
    def calibration(self) -> Mapping[str, Any]:
        """The first judge's, for its verdicts are the scores, with the second judge's beside it."""
        return {**self.first.calibration, "audited_by": self.second.calibration}

    @property
    def usage(self) -> Usage:  # type: ignore[override]
        """What both used."""
        parts = [judge.usage for judge in (self.first, self.second) if judge.usage is not None]
        costs = [part.cost for part in parts if part.cost is not None]
        return Usage(
            calls=sum(part.calls for part in parts),
            cached=sum(part.cached for part in parts),
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            completion_tokens=sum(part.completion_tokens for part in parts),
            cost=sum(costs) if len(costs) == len(parts) else None,
            possible_cost=sum(part.possible_cost for part in parts),
        )

    def preflight(self) -> None:
        """Raise before any weights load if either judge cannot be reached."""
        self.first.preflight()
        self.second.preflight()

    def forecast(self, gradings: Sequence[Grading]) -> str:
        """What both would need."""
        part = [gradings[index] for index in self._chosen(gradings)]
        return f"{self.first.forecast(gradings)}; audit: {self.second.forecast(part)}"

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """One verdict of the first judge per grading, in order, with the second judge's where it was asked."""
        verdicts = self.first.grade(gradings)
        chosen = self._chosen(gradings)
        for index, audit in zip(chosen, self.second.grade([gradings[index] for index in chosen]), strict=True):
            named = dataclasses.replace(audit, details={"judge": self.second.identity, **audit.details})
            verdicts[index] = dataclasses.replace(verdicts[index], audit=named)
        return verdicts

    def _chosen(self, gradings: Sequence[Grading]) -> list[int]:
        """The part of each rubric, by a hash of the question: it hangs neither on the answers nor on their order."""
        by_rubric: dict[str, list[int]] = {}
        for index, grading in enumerate(gradings):
            by_rubric.setdefault(grading.rubric, []).append(index)
        ranked = (sorted(places, key=lambda index: self._rank(gradings[index])) for places in by_rubric.values())
        return sorted(index for places in ranked for index in places[: self.sample])

    def _rank(self, grading: Grading) -> tuple[str, str]:
        question = f"{self.seed} {grading.question} {grading.gold}"
        return hashlib.sha256(question.encode()).hexdigest(), hashlib.sha256(grading.answer.encode()).hexdigest()
