"""Runs that scored the same generations with different evaluators belong together: one entry with all metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.runs import StoredRun

_TOGETHER = ("evaluators", "estimates", "derived")


def merged(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """The runs, those of the same generations joined where their scores and judges do not contradict each other."""
    found: list[StoredRun] = []
    for run in runs:
        partner = next((index for index, other in enumerate(found) if _fit_together(other, run)), None)
        if partner is None:
            found.append(run)
        else:
            found[partner] = _joined(found[partner], run)
    return found


def _fit_together(one: StoredRun, other: StoredRun) -> bool:
    folders = [run.trials_path.parent.resolve() for run in (one, other)]
    if folders[0] != folders[1] or not folders[0].is_dir() or one.label("seed") != other.label("seed"):
        return False
    if set(one.scored_examples) != set(other.scored_examples):
        return False
    if len({run.node("config").get("scored_trials", "selected") for run in (one, other)}) > 1:
        return False
    judges = {run.info["judge"] for run in (one, other) if run.info.get("judge")}
    shared = one.scores.keys() & other.scores.keys()
    return len(judges) <= 1 and all(one.scores[metric] == other.scores[metric] for metric in shared)


def _joined(one: StoredRun, other: StoredRun) -> StoredRun:
    info: dict[str, Any] = dict(one.info)
    for key in _TOGETHER:
        info[key] = {**other.node(key), **one.node(key)}
    for key in ("judge", "judge_calibration"):
        info[key] = one.info.get(key) or other.info.get(key)
    wanted = {**(other.node("config").get("evaluator") or {}), **(one.node("config").get("evaluator") or {})}
    info["config"] = {**one.node("config"), "evaluator": wanted}
    info["cost"] = {**one.node("cost"), **_sums(one.node("cost"), other.node("cost"))}
    scores = {**other.scores, **one.scores}
    return dataclasses.replace(one, info=info, scores=scores, judged=one.judged | other.judged)


def _sums(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Generating was paid for once, judging by each."""
    return {
        key: None if one.get(key) is None or other.get(key) is None else one[key] + other[key]
        for key in ("judge_calls", "judge_cost")
        if key in one and key in other
    }
