"""Token overlap and judged quality in one number, as Fusion Steering reports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from harness.types import Evaluator, Grading, Metric, Record, Score, Tools, Verdict

_PARTS = {"factual_accuracy": "accuracy", "coherence": "coherence", "relevance": "relevance"}
_WHOLE = {"quality": "quality"}


@dataclass(frozen=True, kw_only=True)
class Composite(Evaluator):
    """Half token overlap with the gold, half judged quality.

    - ``composite`` = 0.5 * overlap + 0.5 * quality / 5; 0.1 to 1; higher is better.
    - ``accurate``: 1 if the composite reaches the threshold, else 0.
    - ``quality``: 1 to 5: the mean of the three sub-scores, or the judge's one score under ``single_score``.
    - ``factual_accuracy``, ``coherence``, ``relevance``: the judge's sub-scores, each 1 to 5; not under
      ``single_score``.

    Unscored: what hangs on a sub-score that the judge did not give. Cost: three gradings per record, one under
    ``single_score``. A search that optimised the overlap has optimised half of this number.

    Source: Chang & Yasin 2025 (arXiv:2505.22572). Deviations: grader prompts of our own; the paper's text names the
    three sub-scores, its data hold one score from 1 to 5, which is ``single_score=true``; the paper measures the
    overlap of prompt and completion together in NLTK's tokens (see token_overlap) and shows its grader both, which is
    ``graded_text=full``; ours by default is the completion alone.

    Args:
        overlap: the evaluator that gives ``overlap``.
        single_score: ask for one score in place of three.
        graded_text: what the judge reads as the answer: ``completion``, or ``full`` for prompt and completion.
        threshold: composite from which an answer counts as accurate.
        max_unscored: largest share of records that may stay unscored.
    """

    needs: ClassVar[frozenset[Literal["scorer", "judge"]]] = frozenset({"judge"})
    gold: ClassVar[bool] = True

    overlap: Evaluator
    single_score: bool = False
    graded_text: Literal["completion", "full"] = "completion"
    threshold: float = 0.6
    max_unscored: float = 0.2

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        for name in ("threshold", "max_unscored"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"composite.{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.graded_text not in ("completion", "full"):
            raise ValueError(f"composite.graded_text must be completion or full, got {self.graded_text!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The metrics under these settings."""
        parts = () if self.single_score else tuple(_PARTS)
        return (
            Metric("composite", higher_is_better=True, low=0.1, high=1),
            Metric("accurate", higher_is_better=True, low=0, high=1, kind="proportion"),
            *(Metric(name, higher_is_better=True, low=1, high=5) for name in ("quality", *parts)),
        )

    @property
    def _asked(self) -> dict[str, str]:
        return _WHOLE if self.single_score else _PARTS

    @property
    def rubrics(self) -> frozenset[str]:
        """The rubrics under these settings."""
        return frozenset(self._asked.values())

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Five scores per record, or three under ``single_score``.

        Raises:
            ValueError: there is no judge.
        """
        if tools.judge is None:
            raise ValueError("composite needs a judge, got none: choose one with judge=...")
        examples = [record.example for record in records]
        gradings = [
            Grading(rubric, example.question, example.answer, example.aliases, self._graded(record))
            for rubric in self._asked.values()
            for example, record in zip(examples, records, strict=True)
        ]
        verdicts = tools.judge.grade(gradings)
        overlaps = [score for score in self.overlap.score(records, Tools()) if score.metric == "overlap"]
        scores = []
        for index, (record, overlap) in enumerate(zip(records, overlaps, strict=True)):
            own = dict(zip(self._asked, verdicts[index :: len(records)], strict=True))
            plain = self._scores(record, overlap, own, tools.judge.identity)
            audits = {name: verdict.audit for name, verdict in own.items() if verdict.audit}
            if len(audits) == len(own):  # a total hangs on all of its parts
                second = self._scores(record, overlap, audits, tools.judge.identity)
                auditor = str(next(iter(audits.values())).details.get("judge", "unnamed judge"))
                plain = [score.audited(other, auditor) for score, other in zip(plain, second, strict=True)]
            scores += plain
        return scores

    def _graded(self, record: Record) -> str:
        return record.prompt + record.generation.text if self.graded_text == "full" else record.generation.text

    def _scores(self, record: Record, overlap: Score, verdicts: dict[str, Verdict], grader: str) -> list[Score]:
        example = record.example
        judged = [_judged(example.id, name, verdict, grader) for name, verdict in verdicts.items()]
        values = [score.value for score in judged if score.value is not None]
        missing = "; ".join(f"{score.metric}: {score.reason}" for score in judged if score.value is None)
        details: dict[str, Any] = {
            "judge": grader,
            **{name: dict(verdict.details) for name, verdict in verdicts.items()},
        }

        if overlap.value is None:
            missing = "; ".join(filter(None, (missing, f"overlap: {overlap.reason}")))
        if missing or overlap.value is None:
            totals = [Score(example.id, name, None, missing, details) for name in ("composite", "accurate")]
            quality = [] if self.single_score else [Score(example.id, "quality", None, missing, details)]
            return totals + quality + judged

        quality_mean = sum(values) / len(values)
        composite = 0.5 * overlap.value + 0.5 * quality_mean / 5
        details |= {"overlap": overlap.value, "quality": quality_mean}
        totals = [
            Score(example.id, "composite", composite, details=details),
            Score(example.id, "accurate", float(composite >= self.threshold - 1e-12), details=details),
        ]
        quality = [] if self.single_score else [Score(example.id, "quality", quality_mean, details=details)]
        return totals + quality + judged


def _judged(example_id: str, metric: str, verdict: Verdict, grader: str) -> Score:
    details = {
        "judge": grader,
        **verdict.details,
        "raw": verdict.raw,
        "expected": verdict.expected,
        "entropy": verdict.entropy,
    }
    if verdict.value not in ("1", "2", "3", "4", "5"):
        reason = verdict.reason or f"the judge gave no score from 1 to 5 but {verdict.value!r}"
        return Score(example_id, metric, None, reason, details)
    return Score(example_id, metric, float(verdict.value), details=details)
