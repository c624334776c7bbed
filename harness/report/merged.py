"""Runs that scored the same generations with different evaluators belong together: one entry with all metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harness.records.run import RunRecord
from harness.records.stored import StoredRun


def merged(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """The runs, those of the same generations joined where their scores and judges do not contradict each other."""
    joined: list[StoredRun] = []
    for run in runs:
        partner = next((index for index, other in enumerate(joined) if _fit_together(other, run)), None)
        if partner is None:
            joined.append(run)
        else:
            joined[partner] = _joined(joined[partner], run)
    return joined


def _fit_together(one: StoredRun, other: StoredRun) -> bool:
    """Same generations, same examples and trials counted, at most one judge, and no score that differs."""
    if one.record.generations is None or one.record.entry != other.record.entry:
        return False
    if one.generations_folder.resolve() != other.generations_folder.resolve():
        return False
    if set(one.counted) != set(other.counted) or one.record.scored_trials != other.record.scored_trials:
        return False
    judges = {run.record.judge for run in (one, other)} - {None}
    shared = one.scores.keys() & other.scores.keys()
    return len(judges) <= 1 and all(one.scores[metric] == other.scores[metric] for metric in shared)


def _joined(one: StoredRun, other: StoredRun) -> StoredRun:
    ours, theirs = one.record, other.record
    config = {**ours.config, "evaluator": {**theirs.config.get("evaluator", {}), **ours.config.get("evaluator", {})}}

    record = ours.model_copy(
        update={
            "config": config,
            "evaluators": {**theirs.evaluators, **ours.evaluators},
            "estimates": {**theirs.estimates, **ours.estimates},
            "derived": {**theirs.derived, **ours.derived},
            "judge": ours.judge or theirs.judge,
            "judge_calibration": ours.judge_calibration or theirs.judge_calibration,
            "cost": ours.cost.model_copy(update=_judging(ours, theirs)),
        }
    )

    scores, audits = ({**theirs, **ours} for ours, theirs in ((one.scores, other.scores), (one.audits, other.audits)))
    return dataclasses.replace(one, record=record, scores=scores, audits=audits)


def _judging(ours: RunRecord, theirs: RunRecord) -> dict[str, float | None]:
    """Generating was paid for once, judging by each."""
    costs = (ours.cost.judge_cost, theirs.cost.judge_cost)
    total = None if None in costs else sum(cost for cost in costs if cost is not None)
    return {"judge_calls": ours.cost.judge_calls + theirs.cost.judge_calls, "judge_cost": total}
