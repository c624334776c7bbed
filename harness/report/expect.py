"""Published values: what was published, what we got, inside the tolerance or outside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.report.compare import Comparison
from harness.report.entries import Entry
from harness.report.random_level import marked_source, refuse_met_by_chance


@dataclass(frozen=True)
class Published:
    """One published value held against ours.

    Args:
        label: the run that the value is about, as written in the experiment.
        metric: metric or derived figure.
        published: published value.
        tolerance: largest accepted distance, in the metric's unit.
        source: where the value was published.
        ours: our value, None if there is no such run or metric.
        verdict: "inside", "outside" or "missing".
        note: why it is missing, "" otherwise.
        oracle: whether our run saw the answers.
    """

    label: str
    metric: str
    published: float
    tolerance: float
    source: str
    ours: float | None
    verdict: Literal["inside", "outside", "missing"]
    note: str = ""
    oracle: bool = False


Expectations = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Run label -> metric -> value, tolerance, source, and what a model of random weights scores (``random_model``)."""


def read_expectations(path: Path) -> Expectations:
    """The ``expect`` node of an experiment.

    Raises:
        ValueError: if the file is not YAML or has no such node, or an entry of it lacks its value, tolerance or source.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    node = content.get("expect") if isinstance(content, dict) else None
    if not isinstance(node, dict) or not node:
        raise ValueError(f"{path} states no published values: it has no `expect:` node")
    return check_expectations(node, f"{path}: expect")


def check_expectations(node: Mapping[str, Any], name: str) -> Expectations:
    """The same node again.

    Raises:
        ValueError: if it is not what it should be, an entry lacks its value, tolerance or source, or a random model
            (``random_model``) meets it as well.
    """
    for label, metrics in node.items():
        for metric, stated in (metrics if isinstance(metrics, Mapping) else {"": None}).items():
            if not isinstance(stated, Mapping):
                raise ValueError(f"{name}.{label} must be a table of metrics, each with value, tolerance and source")
            lacking = {"value", "tolerance", "source"} - set(stated)
            if lacking:
                raise ValueError(f"{name}.{label}.{metric} lacks {', '.join(sorted(lacking))}")
            for part in ("value", "tolerance"):
                number = stated[part]
                if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                    raise ValueError(f"{name}.{label}.{metric}.{part} must be a finite number, got {number!r}")
            refuse_met_by_chance(f"{name}.{label}.{metric}", stated)
    return node


def held_against(comparison: Comparison, expectations: Expectations) -> list[Published]:
    """Every published value beside ours, in the order of the file."""
    return [
        _held(comparison, label, metric, stated)
        for label, metrics in expectations.items()
        for metric, stated in metrics.items()
    ]


def _held(comparison: Comparison, label: str, metric: str, stated: Mapping[str, Any]) -> Published:
    entry = matching_entry(comparison, label)
    ours = None if entry is None else measured(comparison, entry, metric)
    published, tolerance = float(stated["value"]), float(stated["tolerance"])
    parts = (label, metric, published, tolerance, marked_source(stated), ours)
    if entry is None:
        return Published(*parts, verdict="missing", note=f"no such run; there are {_listed(comparison)}")
    if ours is None:
        return Published(*parts, verdict="missing", note=f"{entry.name} has no metric {metric}", oracle=entry.oracle)
    is_inside = abs(ours - published) <= tolerance + 1e-12
    return Published(*parts, verdict="inside" if is_inside else "outside", oracle=entry.oracle)


def _listed(comparison: Comparison) -> str:
    return ", ".join(entry.name for entry in comparison.entries)


def matching_entry(comparison: Comparison, label: str) -> Entry | None:
    """The entry of this name, else the one with a run of this name, else the only one of this method."""
    for entry in comparison.entries:
        if entry.name == label or any(run.name == label for run in entry.runs):
            return entry
    methods = [entry for entry in comparison.entries if entry.label("method") == label and not entry.control]
    return methods[0] if len(methods) == 1 else None


def measured(comparison: Comparison, entry: Entry, metric: str) -> float | None:
    """Our value of a metric, or of a derived figure (mean over seeds)."""
    estimate = comparison.estimates[entry.name].get(metric)
    if estimate is not None:
        return estimate.value
    derived = [run.record.derived.get(metric) for run in entry.runs]
    values = [value for value in derived if value is not None]
    return sum(values) / len(values) if values else None
