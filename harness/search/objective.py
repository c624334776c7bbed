"""What a search maximises: a weighted sum of evaluator metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.scoring import Evaluator, Metric, Record, Tools


@dataclass(frozen=True, kw_only=True)
class Term:
    """One metric of one evaluator in the objective.

    Args:
        evaluator: computes the metric.
        metric: its name.
        weight: factor; negative for metrics that should be low.
        cap: values are divided by it and cut at 1; None takes them as they are.
        unscored: what a record without this metric counts: ``worst`` the worst value there is, ``skip`` nothing; a
            record without any of the terms is then left out where a mean is taken.
    """

    evaluator: Evaluator
    metric: str
    weight: float
    cap: float | None = None
    unscored: Literal["worst", "skip"] = "worst"

    def __post_init__(self) -> None:
        """Refuse a metric that the evaluator does not have, or one without a worst value."""
        names = [metric.name for metric in self.evaluator.metrics]
        if self.metric not in names:
            raise ValueError(f"objective: {type(self.evaluator).__name__} has no metric {self.metric} (it has {names})")
        if self.cap is not None and self.cap <= 0:
            raise ValueError(f"objective: cap of {self.metric} must be above 0, got {self.cap}")
        if self.unscored not in ("worst", "skip"):
            raise ValueError(f"objective: unscored must be worst or skip, got '{self.unscored}'")
        if self.unscored == "worst" and not math.isfinite(self._worst):
            raise ValueError(f"objective: {self.metric} has no worst value; set unscored=skip or a cap")

    @property
    def _worst(self) -> float:
        if self.weight > 0:
            return self.declared.low
        return self.declared.high if self.cap is None else self.cap

    @property
    def declared(self) -> Metric:
        """The metric as its evaluator declares it."""
        return next(metric for metric in self.evaluator.metrics if metric.name == self.metric)

    def worth(self, value: float | None) -> float:
        """The weighted value."""
        if value is None and self.unscored == "skip":
            return 0.0
        value = self._worst if value is None else value
        scaled = value if self.cap is None else min(value / self.cap, 1.0)
        return self.weight * scaled


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``sum of weight * metric``, to be maximised.

    By default the paper's: 0.7 * overlap - 0.3 * min(perplexity / 100, 1) (arXiv:2505.22572).
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        """Refuse an empty objective; accept a list."""
        object.__setattr__(self, "terms", tuple(self.terms))
        if not self.terms:
            raise ValueError("objective needs at least one term")

    @property
    def needs(self) -> frozenset[str]:
        """Tools that its evaluators call on."""
        return frozenset().union(*(term.evaluator.needs for term in self.terms))

    def counts(self, terms: Mapping[str, float | None]) -> bool:
        """Whether a record with these metrics belongs into a mean: not if none was scored and all are skipped then."""
        return any(term.unscored == "worst" or terms[term.metric] is not None for term in self.terms)

    def score(self, records: Sequence[Record], tools: Tools) -> list[tuple[float, dict[str, float | None]]]:
        """The objective of each record, and the metrics it was made from."""
        values: list[dict[str, float | None]] = [{} for _ in records]
        for evaluator in dict.fromkeys(term.evaluator for term in self.terms):
            names = [term.metric for term in self.terms if term.evaluator == evaluator]
            scores = evaluator.score(records, tools)
            for name in names:
                column = [score.value for score in scores if score.metric == name]
                for row, value in zip(values, column, strict=True):
                    row[name] = value
        return [(sum(term.worth(row[term.metric]) for term in self.terms), row) for row in values]
