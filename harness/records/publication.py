"""What a finished run looks like to a tracker: read from the run's directory alone, as plain values."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from harness.records.identity import key_of
from harness.report.runs import StoredRun, read_lines, read_run

FORMAT = 1
"""Bump by hand whenever the same directory is published differently, so that earlier copies are replaced."""

INTERVAL = ("value", "low", "high", "num_scored", "num_unscored")
UNSTEERED = -1
"""Number of the trial that holds the un-steered incumbent."""
LONGEST_TAG = 64


@dataclass(frozen=True, kw_only=True)
class Publication:
    """One run as it is published. Equal directories give equal publications.

    Args:
        id: made from the run's key and name, so that publishing again replaces the earlier copy.
        name: the run's name.
        group: runs of one sweep share it.
        job_type: name of the method.
        tags: what a run is filtered by.
        notes: the error of a failed run.
        config: everything that was set, and where the run comes from.
        summary: flat; ``<metric>/value``, ``/low``, ``/high``, ``/num_scored``, ``/num_unscored``, costs and so on.
        columns: names of the table's columns.
        rows: the table, one row per example.
        curve: number of trials and mean best objective so far; 0 trials is the un-steered text.
        failed: the run did not finish.
    """

    id: str
    name: str
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    notes: str | None
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    curve: tuple[tuple[int, float], ...]
    failed: bool

    @property
    def digest(self) -> str:
        """Equal for equal content."""
        return key_of([FORMAT, asdict(self)])


def read_publication(run_folder: Path, group: str | None, tags: Iterable[str] = ()) -> Publication:
    """Read a run's directory.

    Args:
        run_folder: the directory that holds run.json.
        group: name of the sweep.
        tags: tags to add to the run's own.

    Raises:
        ValueError: there is no run.json, or a file in the directory is not valid.
    """
    run = read_run(run_folder)
    columns, rows = _table(run)
    method, error = run.label("method"), run.info.get("error")
    return Publication(
        id=key_of(["run", run.info.get("key"), run.name]),
        name=run.name,
        group=group,
        job_type=method or "run",
        tags=_tags(run, tags),
        notes=str(error) if error else None,
        config=_config(run),
        summary=_summary(run),
        columns=columns,
        rows=rows,
        curve=_curve(run),
        failed=run.info.get("status") != "done",
    )


def _tags(run: StoredRun, extra: Iterable[str]) -> tuple[str, ...]:
    labels = (run.label(name) for name in ("task", "model", "method", "search", "control"))
    side = "oracle" if run.info.get("oracle") else "deployable"
    return tuple(dict.fromkeys(tag[:LONGEST_TAG] for tag in (*labels, side, *extra) if tag))


def _config(run: StoredRun) -> dict[str, Any]:
    """The typed config with facts about the run beside it; ``entry`` and ``oracle`` are what dashboards group by."""
    parts = [run.label("method"), run.label("search"), run.label("control")]
    facts = ("key", "name", "status", "created", "access", "optimised_metrics", "provenance", "receipt", "judge")
    return {
        **run.node("config"),
        "entry": " · ".join(part for part in parts if part),
        "oracle": bool(run.info.get("oracle")),
        "labels": dict(run.node("labels")),
        "evaluators": dict(run.node("evaluators")),
        "run": {name: run.info[name] for name in facts if name in run.info},
    }


def _summary(run: StoredRun) -> dict[str, Any]:
    estimates = {
        f"{prefix}{metric}/{field}": estimate.get(field)
        for prefix, node in (("", "estimates"), ("unselected_set/", "estimates_unselected_set"))
        for metric, estimate in run.node(node).items()
        for field in INTERVAL
    }
    receipt = {name: value for name, value in run.node("receipt").items() if _is_number(value)}
    sides = {"derived": run.node("derived"), "cost": run.node("cost"), "receipt": receipt}
    return estimates | {name: value for side, node in sides.items() for name, value in _flat(side, node)}


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(f"{prefix}/{name}", item)
    else:
        yield prefix, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(run: StoredRun) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    unsteered = {trial["example_id"]: trial.get("text") for trial in run.trials() if trial["trial"] == UNSTEERED}
    reasons = _reasons(run)
    table: dict[str, list[Any]] = {}
    counted = _counted(run)
    for position, row in enumerate(counted):
        cells = _texts(row, unsteered.get(row["example_id"])) | _numbers(row, run, reasons)
        for column, cell in cells.items():
            table.setdefault(column, [None] * len(counted))[position] = cell
    return tuple(table), tuple(zip(*map(_of_one_type, table.values()), strict=True))


def _counted(run: StoredRun) -> list[Mapping[str, Any]]:
    """Records that the estimates count; all of them if nothing was scored."""
    scored = {example for column in run.scores.values() for example in column}
    return [row for row in run.records if not scored or row["example_id"] in scored]


def _texts(row: Mapping[str, Any], unsteered: str | None) -> dict[str, Any]:
    return {
        "example_id": row["example_id"],
        "group": row.get("group") or None,
        "question": row.get("question"),
        "gold": row.get("answer"),
        "aliases": "; ".join(map(str, row.get("aliases") or ())) or None,
        "baseline_text": unsteered,
        "steered_text": row.get("text"),
        "finish": row.get("finish"),
    }


def _numbers(row: Mapping[str, Any], run: StoredRun, reasons: Mapping[str, str]) -> dict[str, Any]:
    example = row["example_id"]
    scores = {metric: values.get(example) for metric, values in run.scores.items()}
    parameters = {f"parameters/{name}": value for name, value in (row.get("parameters") or {}).items()}
    metadata = {f"metadata/{name}": value for name, value in (row.get("metadata") or {}).items()}
    return {**scores, "unscored": reasons.get(example), **parameters, **metadata}


def _reasons(run: StoredRun) -> dict[str, str]:
    found: dict[str, list[str]] = defaultdict(list)
    for score in read_lines(run.path / "scores.jsonl"):
        if score["value"] is None:
            found[score["example_id"]].append(f"{score['metric']}: {score['reason']}")
    return {example: "; ".join(reasons) for example, reasons in found.items()}


def _of_one_type(column: Sequence[Any]) -> list[Any]:
    """Numbers as floats if all are numbers, otherwise text: a tracker's table refuses columns that mix both."""
    if all(value is None or _is_number(value) for value in column):
        return [None if value is None else float(value) for value in column]
    return [
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in column
    ]


def _curve(run: StoredRun) -> tuple[tuple[int, float], ...]:
    """Mean best objective so far against trials, over the examples, as far as all of them got."""
    trials = [trial for trial in run.trials() if trial.get("objective") is not None]
    tested = {row["example_id"] for row in _counted(run)}
    own = [trial for trial in trials if trial["example_id"] in tested]
    objectives: dict[str, dict[int, float]] = defaultdict(dict)
    for trial in own or trials:
        objectives[trial["example_id"]][trial["trial"]] = trial["objective"]
    if not objectives:
        return ()
    numbers = sorted(set.intersection(*map(set, objectives.values())))
    by_example = [[objective[number] for number in numbers] for objective in objectives.values()]
    return tuple(zip((number + 1 for number in numbers), _best_so_far(by_example, shared=not own), strict=True))


def _best_so_far(by_example: Sequence[Sequence[float]], shared: bool) -> list[float]:
    """One set for all (chosen on other items) is as good as its mean; otherwise every example keeps its own best."""
    if shared:
        return list(accumulate((statistics.fmean(column) for column in zip(*by_example, strict=True)), max))
    best = [accumulate(objectives, max) for objectives in by_example]
    return [statistics.fmean(column) for column in zip(*best, strict=True)]
