"""From records to scores and estimates, and from these into a run's folder. Needs no subject."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data import Access
from harness.job import Scoring
from harness.progress import phase
from harness.records.lines import mark_of, replaced, write_lines
from harness.records.rows import Selected, score_row
from harness.records.run import SCORES_FILE, Cost, EvaluatorNote, RunRecord
from harness.records.store import GenerationStore
from harness.scoring import Estimate, Evaluator, Metric, Record, Score, Scorer, Tools
from harness.statistics import estimate

OpenScorer = Callable[[], Scorer]


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
        records: what was generated, and what was read; each evaluator gets those of its own kind.
        evaluators: by name.
        tools: opens what an evaluator needs.
        seed: seed of bootstrap intervals.
        trials: all trials by example id; an example that has some counts as its best one instead of the selected one.

    Raises:
        ValueError: an evaluator did not give exactly one score per record and metric, or one outside its range.
    """
    scores: list[Score] = []
    estimates: dict[str, Estimate] = {}
    derived: dict[str, float] = {}
    problems: list[str] = []
    for name, evaluator in evaluators.items():
        own = [record for record in records if record.kind == evaluator.reads]
        with phase(f"score {name}"):
            if trials:
                own_scores = _best_of_trials(name, evaluator, own, trials, tools(evaluator))
            else:
                own_scores = evaluator.score(own, tools(evaluator))

        # Checked before anything is added up: an evaluator may be anybody's.
        columns = _columns(name, evaluator, own, own_scores)
        units = [record.example.unit for record in own]
        scores += own_scores
        derived |= evaluator.derived(own_scores)

        for metric in evaluator.metrics:
            column = columns[metric.name]
            estimates[metric.name] = estimate(metric, [score.value for score in column], units, seed)
            problems += _unscored_problem(name, metric, column, evaluator.max_unscored)
    return Evaluation(tuple(scores), estimates, derived, tuple(problems))


def _best_of_trials(
    name: str, evaluator: Evaluator, records: Sequence[Record], trials: Mapping[str, Sequence[Record]], tools: Tools
) -> list[Score]:
    """Each example's scores from the text that is best on the evaluator's first metric; of equal ones the selected."""
    tried = [text for record in records for text in (record, *trials.get(record.example.id, ()))]
    columns = _columns(name, evaluator, tried, evaluator.score(tried, tools))
    first = evaluator.metrics[0]

    # The selected text comes first, and only a better one takes its place.
    best: dict[str, int] = {}
    for index, score in enumerate(columns[first.name]):
        leader = best.setdefault(score.example_id, index)
        if _worth(first, score) > _worth(first, columns[first.name][leader]):
            best[score.example_id] = index
    return [column[best[record.example.id]] for column in columns.values() for record in records]


def _worth(metric: Metric, score: Score) -> float:
    if score.value is None:
        return -math.inf
    return score.value if metric.higher_is_better else -score.value


def _columns(
    name: str, evaluator: Evaluator, records: Sequence[Record], scores: Sequence[Score]
) -> dict[str, list[Score]]:
    """The scores by metric, after a check that each record has one and that it lies in the metric's range."""
    if others := [score for score in scores if not isinstance(score, Score)]:
        raise ValueError(
            f"evaluator {name}: score must return a list of Score, one for each record and metric; got a "
            f"{type(others[0]).__name__} among them"
        )
    columns = {metric.name: [s for s in scores if s.metric == metric.name] for metric in evaluator.metrics}
    ids = [record.example.id for record in records]

    for metric in evaluator.metrics:
        column = columns[metric.name]
        if [score.example_id for score in column] != ids:
            raise ValueError(
                f"evaluator {name}: {metric.name} has {len(column)} scores for {len(ids)} records, one each is due"
            )

        for score in column:
            if score.value is not None and not metric.low - 1e-9 <= score.value <= metric.high + 1e-9:
                raise ValueError(
                    f"evaluator {name}: {metric.name} must lie between {metric.low:g} and {metric.high:g}, got "
                    f"{score.value:g} for {score.example_id}"
                )
    return columns


def _unscored_problem(name: str, metric: Metric, column: Sequence[Score], limit: float) -> list[str]:
    missing = [score for score in column if score.value is None]
    if not column or len(missing) / len(column) <= limit:
        return []
    share = f"{len(missing)} of {len(column)}"
    return [f"{name}: {share} records have no {metric.name} (allowed: {limit:.0%}); first reason: {missing[0].reason}"]


def tools_for(scoring: Scoring, open_scorer: OpenScorer) -> Callable[[Evaluator], Tools]:
    """Opens what each evaluator needs and no more, the scorer when it is first needed, and once."""
    opened: list[Scorer] = []

    def tools(evaluator: Evaluator) -> Tools:
        if "scorer" in evaluator.needs and not opened:
            opened.append(open_scorer())
        return Tools(
            scorer=opened[0] if "scorer" in evaluator.needs else None,
            judge=scoring.judge if "judge" in evaluator.needs else None,
        )

    return tools


def score_run(
    record: RunRecord,
    folder: Path,
    scoring: Scoring,
    store: GenerationStore,
    selected: Sequence[Selected],
    open_scorer: OpenScorer,
) -> RunRecord:
    """Score generations, write the scores into the run's folder, and return the run's record with what came of it.

    Args:
        record: what is known of the run; its ``subset`` says which examples count.
        folder: the run's.
        scoring: evaluators and what they call on.
        store: where the generations lie.
        selected: the generation that stands for each example.
        open_scorer: loads the scorer.
    """
    tools = tools_for(scoring, open_scorer)
    records = [item.record for item in selected]
    counted = set(record.subset.ids) if record.subset else {item.example.id for item in records}
    chosen = [item for item in records if item.example.id in counted]
    trials = _trials_to_score(store, records) if scoring.protocol.scored_trials == "best" else {}

    # Where a subset counts, all examples are scored too: the report shows both.
    evaluation = evaluate(chosen, scoring.evaluators, tools, scoring.seed, trials)
    everything = evaluate(records, scoring.evaluators, tools, scoring.seed, trials) if chosen != records else None
    with replaced(folder / SCORES_FILE) as draft:
        write_lines(draft, (score_row(score) for score in evaluation.scores))

    changes = {
        "status": "failed" if evaluation.problems else "done",
        "error": "; ".join(evaluation.problems) or None,
        "scored_trials": "best" if trials else "selected",
        "evaluators": {name: EvaluatorNote.of(evaluator) for name, evaluator in scoring.evaluators.items()},
        "optimised_metrics": _optimised(record, scoring),
        "files": {**store.files_of({item.kind for item in records}), SCORES_FILE: mark_of(folder / SCORES_FILE)},
        "estimates": dict(evaluation.estimates),
        "estimates_unselected_set": None if everything is None else dict(everything.estimates),
        "derived": dict(evaluation.derived),
        "num_examples": len(chosen),
        "near_ties": sum(item.generation.near_ties for item in records),
        "cost": _cost(store.cost(), scoring),
        "judge": scoring.judge.identity if scoring.judged else None,
        "judge_calibration": getattr(scoring.judge, "calibration", None) if scoring.judged else None,
    }
    return record.model_copy(update=changes)


def _trials_to_score(store: GenerationStore, records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of all trials of these examples that a search per prompt made, by example id."""
    by_id = {record.example.id: record for record in records}
    trials: dict[str, list[Record]] = {}
    for trial in store.trials():
        name = trial.generation.example_id
        if trial.number >= 0 and name in by_id:
            trials.setdefault(name, []).append(Record(by_id[name].example, trial.generation, by_id[name].prompt))
    return trials


def _optimised(record: RunRecord, scoring: Scoring) -> tuple[str, ...]:
    """Metrics that were maximised knowing the answers: the search's, or all where each example's best trial counts."""
    search = record.searched
    if search is None or Access.GOLD not in search.access:
        return ()
    if scoring.protocol.scored_trials == "best":
        return tuple(sorted(metric.name for evaluator in scoring.evaluators.values() for metric in evaluator.metrics))
    return tuple(sorted(set(search.optimises)))


def _cost(generating: Cost, scoring: Scoring) -> Cost:
    """Generating was measured when it was done; judging is what the judge counted in this process."""
    usage: Any = getattr(scoring.judge, "usage", None) if scoring.judged else None
    if usage is None:
        return generating
    return generating.model_copy(update={"judge_calls": usage.calls, "judge_cost": usage.cost})
