"""From records to scores and estimates. Needs no subject: everything is read from disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.report.statistics import estimate
from harness.scoring import Estimate, Evaluator, Metric, Record, Score, Tools

ScoredTrials = Literal["selected", "best"]
"""What of a search is scored: each example's selected trial, or all its trials, of which the best-scored one counts."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of records and what they add up to."""

    scores: tuple[Score, ...]
    estimates: Mapping[str, Estimate]
    derived: Mapping[str, float]
    problems: tuple[str, ...]
    """Why the run must count as failed, e.g. too many unscored records."""


def evaluate(
    records: Sequence[Record],
    evaluators: Mapping[str, Evaluator],
    tools: Callable[[Evaluator], Tools],
    seed: int,
    trials: Mapping[str, Sequence[Record]] | None = None,
) -> Evaluation:
    """Score records with every evaluator.

    Args:
        records: what was generated.
        trials: all trials by example id; an example that has some counts as its best one instead of the selected one.
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
        if trials:
            found = _best_of_trials(name, evaluator, records, trials, tools(evaluator))
        else:
            found = evaluator.score(records, tools(evaluator))
        columns = _columns(name, evaluator, records, found)
        scores += found
        derived |= evaluator.derived(found)
        for metric in evaluator.metrics:
            column = columns[metric.name]
            estimates[metric.name] = estimate(metric, [score.value for score in column], seed)
            problems += _unscored_problem(name, metric, column, evaluator.max_unscored)
    return Evaluation(tuple(scores), estimates, derived, tuple(problems))


def _best_of_trials(
    name: str, evaluator: Evaluator, records: Sequence[Record], trials: Mapping[str, Sequence[Record]], tools: Tools
) -> list[Score]:
    """Each example's scores from the text that is best on the evaluator's first metric; of equal ones the selected."""
    tried = [text for record in records for text in (record, *trials.get(record.example.id, ()))]
    columns = _columns(name, evaluator, tried, evaluator.score(tried, tools))
    best: dict[str, int] = {}
    for index, score in enumerate(columns[evaluator.metrics[0].name]):
        known = best.setdefault(score.example_id, index)
        if _worth(evaluator.metrics[0], score) > _worth(evaluator.metrics[0], columns[score.metric][known]):
            best[score.example_id] = index
    return [column[best[record.example.id]] for column in columns.values() for record in records]


def _worth(metric: Metric, score: Score) -> float:
    if score.value is None:
        return -math.inf
    return score.value if metric.higher_is_better else -score.value


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
