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

from harness.records.keys import key_of
from harness.records.lines import stored
from harness.records.rows import UNSTEERED, Selected
from harness.records.run import ARTIFACT_FILE, TRIALS_FILE
from harness.records.stored import StoredRun, read_run

FORMAT = 3
"""Bump by hand whenever the same directory is published differently, so that earlier copies are replaced."""

INTERVAL = ("value", "low", "high", "num_scored", "num_unscored")
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
        files: the fitted tensors and the search's trials, by what they are, where there are any.
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
    files: Mapping[str, Path]

    @property
    def digest(self) -> str:
        """Equal for equal content; where the files lie is no part of it."""
        content = asdict(self) | {"files": {kind: path.name for kind, path in self.files.items()}}
        return key_of([FORMAT, content])


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
    record = run.record
    columns, rows = _table(run)

    return Publication(
        id=key_of(["run", record.key, run.name]),
        name=run.name,
        group=group or record.sweep,
        job_type=record.labels.method or "run",
        tags=_tags(run, tags),
        notes=record.error,
        config=_config(run),
        summary=_summary(run),
        columns=columns,
        rows=rows,
        curve=_curve(run),
        failed=record.status != "done",
        files=_files(run),
    )


def _files(run: StoredRun) -> dict[str, Path]:
    """Fitted tensors and trials, where the run has any."""
    candidates = {"fitted": run.generations_folder / ARTIFACT_FILE, "trials": run.generations_folder / TRIALS_FILE}
    places = {kind: stored(path) for kind, path in candidates.items()}
    return {kind: path for kind, path in places.items() if path is not None}


def _tags(run: StoredRun, extra: Iterable[str]) -> tuple[str, ...]:
    labels = (run.record.labels.shown(axis) for axis in ("task", "model", "method", "search", "control"))
    side = "oracle" if run.record.oracle else "deployable"
    return tuple(dict.fromkeys(tag[:LONGEST_TAG] for tag in (*labels, side, *extra) if tag))


def _config(run: StoredRun) -> dict[str, Any]:
    """The typed config with facts about the run beside it; ``entry`` and ``oracle`` are what dashboards group by."""
    content = run.record.model_dump(mode="json")
    axes = [run.record.labels.shown(axis) for axis in ("method", "search", "control")]
    facts = ("key", "name", "status", "created", "access", "optimised_metrics", "parameters", "provenance", "receipt")
    return {
        **run.record.config,
        "entry": " · ".join(filter(None, axes)),
        "oracle": run.record.oracle,
        "labels": content["labels"],
        "evaluators": content["evaluators"],
        "run": {name: content[name] for name in (*facts, "judge")},
    }


def _summary(run: StoredRun) -> dict[str, Any]:
    """Every figure of the run under one flat name each, as a tracker's tables want them."""
    record = run.record
    sets = {"": record.estimates, "unselected_set/": record.estimates_unselected_set or {}}

    estimates: dict[str, Any] = {}
    for prefix, by_metric in sets.items():
        for metric, estimate in by_metric.items():
            estimates |= {f"{prefix}{metric}/{field}": getattr(estimate, field) for field in INTERVAL}

    receipt = record.receipt.model_dump() if record.receipt else {}
    sides = {
        "derived": record.derived,
        "cost": record.cost.model_dump(),
        "receipt": {name: value for name, value in receipt.items() if _is_number(value)},
        "parameters": record.parameters,
    }
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
    unsteered = {row["example_id"]: row["text"] for row in run.trial_rows() if row["trial"] == UNSTEERED}
    reasons = _reasons(run)
    counted = [run.selected[example] for example in run.counted]
    table: dict[str, list[Any]] = {}
    for position, selected in enumerate(counted):
        cells = _texts(selected, unsteered) | _numbers(selected, run, reasons)
        for column, cell in cells.items():
            table.setdefault(column, [None] * len(counted))[position] = cell
    return tuple(table), tuple(zip(*map(_of_one_type, table.values()), strict=True))


def _texts(selected: Selected, unsteered: Mapping[str, str]) -> dict[str, Any]:
    example, generation = selected.record.example, selected.record.generation
    return {
        "example_id": example.id,
        "group": example.group or None,
        "question": example.question,
        "gold": example.answer,
        "aliases": "; ".join(example.aliases) or None,
        "baseline_text": unsteered.get(example.id),
        "steered_text": generation.text,
        "finish": generation.finish,
    }


def _numbers(selected: Selected, run: StoredRun, reasons: Mapping[str, str]) -> dict[str, Any]:
    example = selected.record.example
    scores = {metric: values.get(example.id) for metric, values in run.scores.items()}
    parameters = {f"parameters/{name}": value for name, value in selected.record.generation.parameters.items()}
    metadata = {f"metadata/{name}": value for name, value in example.metadata.items()}
    return {**scores, "unscored": reasons.get(example.id), **parameters, **metadata}


def _reasons(run: StoredRun) -> dict[str, str]:
    by_example: dict[str, list[str]] = defaultdict(list)
    for score in run.score_rows():
        if score.value is None:
            by_example[score.example_id].append(f"{score.metric}: {score.reason}")
    return {example: "; ".join(reasons) for example, reasons in by_example.items()}


def _of_one_type(column: Sequence[Any]) -> list[Any]:
    """Numbers as floats if all are numbers, otherwise text: a tracker's table refuses columns that mix both."""
    if all(value is None or _is_number(value) for value in column):
        return [None if value is None else float(value) for value in column]
    return [
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in column
    ]


def _curve(run: StoredRun) -> tuple[tuple[int, float], ...]:
    """Mean best objective so far against trials, over the examples, as far as all of them got."""
    tested = set(run.counted)
    of_tests: dict[str, dict[int, float]] = defaultdict(dict)
    of_others: dict[str, dict[int, float]] = defaultdict(dict)

    for row in run.trial_rows():
        objectives = of_tests if row["example_id"] in tested else of_others
        objectives[row["example_id"]][row["trial"]] = row["objective"]

    # Trials on other items say how the search went only where the test items themselves were not searched.
    objectives = of_tests or of_others
    if not objectives:
        return ()

    numbers = sorted(set.intersection(*map(set, objectives.values())))
    by_example = [[objective[number] for number in numbers] for objective in objectives.values()]
    best = _best_so_far(by_example, shared=not of_tests)
    return tuple(zip((number + 1 for number in numbers), best, strict=True))


def _best_so_far(by_example: Sequence[Sequence[float]], shared: bool) -> list[float]:
    """One set for all (chosen on other items) is as good as its mean; otherwise every example keeps its own best."""
    if shared:
        return list(accumulate((statistics.fmean(column) for column in zip(*by_example, strict=True)), max))
    best = [accumulate(objectives, max) for objectives in by_example]
    return [statistics.fmean(column) for column in zip(*best, strict=True)]
