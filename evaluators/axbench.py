"""Steering towards a concept: is it there, is the instruction still followed, is the text still language?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.types import Evaluator, Grading, Metric, Record, Score, Tools, Verdict

_PARTS = {f"{part}_rating": f"axbench_{part}" for part in ("concept", "instruct", "fluency")}
"""Rubric of each rating."""


@dataclass(frozen=True, kw_only=True)
class AxBench(Evaluator):
    """The three ratings of AxBench, given by the judge, and their harmonic mean.

    - ``concept_rating``: how far the text brings in the example's concept; ``instruct_rating``: how far it replies to
      the instruction; ``fluency_rating``: how well it reads; each 0, 1 or 2.
    - ``axbench``: their harmonic mean, 0 if one of them is 0; 0 to 2. The headline: the mean over all texts, their
      strengths chosen on other prompts of the same concept (`harness.search.dev_split`).
    - derived: ``axbench_authors``, the same over the second half of each concept's prompts alone, averaged over
      concepts: the authors' number, whose strengths were chosen on the first half.

    Direction: higher is better, for all. Unscored: a rating that the judge did not give (never counted as 0, as the
    authors' code does), and then the harmonic mean; an example that names no concept. Cost: three gradings per record.

    Source: Wu et al. 2025 (AxBench), arXiv:2501.17148, section 3.
    Deviations: judge's prompts of our own wording with the rubric's facts; whole ratings only.

    Args:
        max_unscored: largest share of records that may stay unscored.
    """

    # Raise it whenever the wording of a rubric changes: the judges' identities do not tell.
    version: ClassVar[int] = 1
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("axbench", higher_is_better=True, low=0, high=2, rubrics=tuple(_PARTS.values())),
        *(Metric(name, higher_is_better=True, low=0, high=2, rubrics=(rubric,)) for name, rubric in _PARTS.items()),
    )
    needs: ClassVar[frozenset[Literal["scorer", "judge"]]] = frozenset({"judge"})

    max_unscored: float = 0.2

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not 0 <= self.max_unscored <= 1:
            raise ValueError(f"axbench.max_unscored must be between 0 and 1, got {self.max_unscored}")

    @property
    def rubrics(self) -> frozenset[str]:
        """The three rubrics."""
        return frozenset(_PARTS.values())

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Four scores per record.

        Raises:
            ValueError: there is no judge.
        """
        if tools.judge is None:
            raise ValueError("axbench needs a judge, got none: choose one with judge=...")
        with_concept = [record for record in records if record.example.concept]
        gradings = [_grading(rubric, record) for record in with_concept for rubric in _PARTS.values()]
        verdicts = iter(tools.judge.grade(gradings))
        return [score for record in records for score in self._scores(record, verdicts)]

    def _scores(self, record: Record, verdicts: Iterator[Verdict]) -> list[Score]:
        name = record.example.id
        if not record.example.concept:
            return [Score(name, metric.name, None, "the example names no concept") for metric in self.metrics]

        ratings = [_rating(name, metric, next(verdicts)) for metric in _PARTS]
        missing = [rating for rating in ratings if rating.value is None]
        values = [rating.value for rating in ratings if rating.value is not None]
        mean = None if missing else harmonic_mean(values)
        reason = f"no {missing[0].metric}: {missing[0].reason}" if missing else ""
        details = {"group": record.example.group, "half": record.example.metadata.get("half", "")}
        return [Score(name, "axbench", mean, reason, details), *ratings]

    def derived(self, scores: Sequence[Score]) -> dict[str, float]:
        """The authors' number; nothing where no prompt of a second half was scored."""
        of_concept: dict[str, list[float]] = {}
        for score in scores:
            if score.metric == "axbench" and score.value is not None and score.details.get("half") == "second":
                of_concept.setdefault(score.details["group"], []).append(score.value)
        means = [sum(values) / len(values) for values in of_concept.values()]
        return {"axbench_authors": sum(means) / len(means)} if means else {}


def harmonic_mean(ratings: Sequence[float]) -> float:
    """The harmonic mean; 0 if a rating is 0."""
    return 0.0 if 0 in ratings else len(ratings) / sum(1 / rating for rating in ratings)


def _grading(rubric: str, record: Record) -> Grading:
    example = record.example
    return Grading(rubric, example.question, example.concept, (), record.generation.text)


def _rating(name: str, metric: str, verdict: Verdict) -> Score:
    details = {**verdict.details, "raw": verdict.raw, "entropy": verdict.entropy}
    if verdict.value is None:
        return Score(name, metric, None, verdict.reason or "the judge gave no rating", details)
    return Score(name, metric, float(verdict.value), details=details)
