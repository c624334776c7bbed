"""Right, wrong, or not attempted, as SimpleQA counts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.types import Evaluator, Grading, Metric, Record, Score, Tools, Verdict

_LABELS = {"correct": "CORRECT", "incorrect": "INCORRECT", "not_attempted": "NOT_ATTEMPTED"}


@dataclass(frozen=True, kw_only=True)
class SimpleQARubric(Evaluator):
    """The labels of SimpleQA, given by the judge, and its metrics.

    - ``correct``, ``incorrect``, ``not_attempted``: 1 for the label that was given, else 0; each 0 to 1. Higher is
      better for ``correct``, lower for ``incorrect``; lower ``not_attempted`` is counted as better, though a model
      that knows what it does not know is no worse.
    - derived, over the scored records: ``attempted`` = correct + incorrect; ``correct_given_attempted`` = correct /
      attempted, 0 if nothing was attempted; ``f1`` = harmonic mean of ``correct`` and ``correct_given_attempted``, 0 if
      both are 0.

    Unscored: a reply of the judge that states no single label, a call that failed. Never a default label. Cost: one
    grading per record. Where a second judge graded the answer too (``judge=audited``), the details of each score hold
    what its label would have made of it.

    Source: Wei et al. 2024 (arXiv:2411.04368) and, for ``rubric=simpleqa_verified``, Haas et al. 2025
        (arXiv:2509.07968).
    Deviations: grader prompts of our own, a strict parser (see `harness.judges.parsing`), records without a label are
    left out of the fractions instead of counting as not attempted.

    Args:
        rubric: ``simpleqa`` or ``simpleqa_verified`` (only the direct answer counts, several candidates are no
            attempt).
        graded_text: what the judge reads as the answer: ``completion``, or ``full`` for prompt and completion, as Chang
            & Yasin 2025 (arXiv:2505.22572) show it.
        max_unscored: largest share of records that may stay unscored.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("correct", higher_is_better=True, low=0, high=1, kind="proportion"),
        Metric("incorrect", higher_is_better=False, low=0, high=1, kind="proportion"),
        Metric("not_attempted", higher_is_better=False, low=0, high=1, kind="proportion"),
    )
    needs: ClassVar[frozenset[Literal["scorer", "judge"]]] = frozenset({"judge"})
    gold: ClassVar[bool] = True

    rubric: Literal["simpleqa", "simpleqa_verified"] = "simpleqa"
    graded_text: Literal["completion", "full"] = "completion"
    max_unscored: float = 0.2

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.rubric not in ("simpleqa", "simpleqa_verified"):
            raise ValueError(f"simpleqa_rubric.rubric must be simpleqa or simpleqa_verified, got {self.rubric!r}")
        if self.graded_text not in ("completion", "full"):
            raise ValueError(f"simpleqa_rubric.graded_text must be completion or full, got {self.graded_text!r}")
        if not 0 <= self.max_unscored <= 1:
            raise ValueError(f"simpleqa_rubric.max_unscored must be between 0 and 1, got {self.max_unscored}")

    @property
    def rubrics(self) -> frozenset[str]:
        """The one rubric in use."""
        return frozenset({self.rubric})

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Three scores per record.

        Raises:
            ValueError: there is no judge.
        """
        if tools.judge is None:
            raise ValueError("simpleqa_rubric needs a judge, got none: choose one with judge=...")
        examples = [record.example for record in records]
        verdicts = tools.judge.grade(
            [
                Grading(self.rubric, example.question, example.answer, example.aliases, self._graded(record))
                for example, record in zip(examples, records, strict=True)
            ]
        )

        grader = tools.judge.identity
        scores = []
        for example, verdict in zip(examples, verdicts, strict=True):
            own = self._scores(example.id, verdict, grader)
            if verdict.audit:
                second = self._scores(example.id, verdict.audit, grader)
                auditor = str(verdict.audit.details.get("judge", "unnamed judge"))
                own = [score.audited(other, auditor) for score, other in zip(own, second, strict=True)]
            scores += own
        return scores

    def _graded(self, record: Record) -> str:
        return record.prompt + record.generation.text if self.graded_text == "full" else record.generation.text

    def _scores(self, example_id: str, verdict: Verdict, grader: str) -> list[Score]:
        known = verdict.value in _LABELS.values()
        reason = "" if known else verdict.reason or f"the judge gave no SimpleQA label but {verdict.value!r}"
        given = {"label": verdict.value, "raw": verdict.raw, "entropy": verdict.entropy}
        details = {"judge": grader, **verdict.details, **given}
        return [
            Score(example_id, name, float(verdict.value == label) if known else None, reason, details)
            for name, label in _LABELS.items()
        ]

    def derived(self, scores: Sequence[Score]) -> dict[str, float]:
        """Attempted, correct given attempted, and F1; nothing if no record was scored."""
        sums, counts = dict.fromkeys(_LABELS, 0.0), Counter[str]()
        for score in scores:
            if score.metric in _LABELS and score.value is not None:
                sums[score.metric] += score.value
                counts[score.metric] += 1

        if not counts["correct"]:
            return {}

        correct = sums["correct"] / counts["correct"]
        attempted = correct + sums["incorrect"] / counts["correct"]
        given = correct / attempted if attempted else 0.0
        f1 = 2 * given * correct / (given + correct) if given + correct else 0.0
        return {"attempted": attempted, "correct_given_attempted": given, "f1": f1}
