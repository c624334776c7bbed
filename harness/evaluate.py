"""From records to scores and estimates. Needs no subject: everything is read from disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.statistics import estimate
from harness.types import Estimate, Evaluator, Metric, Record, Score, Tools


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of records and what they add up to."""

    scores: tuple[Score, ...]
    estimates: Mapping[str, Estimate]
    derived: Mapping[str, float]
    problems: tuple[str, ...]
    """Why the run must count as failed, e.g. too many unscored records."""


def evaluate(
    records: Sequence[Record], evaluators: Mapping[str, Evaluator], tools: Callable[[Evaluator], Tools], seed: int
) -> Evaluation:
    """Score records with every evaluator.

    Args:
        records: what was generated.
        evaluators: by name.
        tools: opens what an evaluator needs.
        seed: seed of bootstrap intervals.

    Raises:
        ValueError: an evaluator did not give exactly one score per record and metric.
    """
    scores: list[Score] = []
    estimates: dict[str, Estimate] = {}
    derived: dict[str, float] = {}
    problems: list[str] = []
    for name, evaluator in evaluators.items():
        found = evaluator.score(records, tools(evaluator))
        columns = _columns(name, evaluator, records, found)
        scores += found
        derived |= evaluator.derived(found)
        for metric in evaluator.metrics:
            column = columns[metric.name]
            estimates[metric.name] = estimate(metric, [score.value for score in column], seed)
            problems += _unscored_problem(name, metric, column, evaluator.max_unscored)
    return Evaluation(tuple(scores), estimates, derived, tuple(problems))


def _columns(
    name: str, evaluator: Evaluator, records: Sequence[Record], scores: Sequence[Score]
) -> dict[str, list[Score]]:
    columns = {metric.name: [s for s in scores if s.metric == metric.name] for metric in evaluator.metrics}
    ids = [record.example.id for record in records]
    for metric, column in columns.items():
        if [score.example_id for score in column] != ids:
            raise ValueError(
                f"evaluator {name}: {metric} has {len(column)} scores for {len(ids)} records, one each is due"
            )
    return columns


def _unscored_problem(name: str, metric: Metric, column: Sequence[Score], limit: float) -> list[str]:
    missing = [score for score in column if score.value is None]
    if not column or len(missing) / len(column) <= limit:
        return []
    share = f"{len(missing)} of {len(column)}"
    return [f"{name}: {share} records have no {metric.name} (allowed: {limit:.0%}); first reason: {missing[0].reason}"]


def describe(evaluators: Mapping[str, Evaluator]) -> dict[str, Any]:
    """Evaluators for run.json; infinite bounds become null."""
    return {
        name: {
            "version": evaluator.version,
            "metrics": [_finite(dataclasses.asdict(metric)) | {"evaluator": name} for metric in evaluator.metrics],
        }
        for name, evaluator in evaluators.items()
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
