"""What the report draws, as numbers: strength curves, searches over trials, chosen strengths, breakdowns, loops."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from harness.report.compare import Comparison
from harness.report.contrasts import baseline_of
from harness.report.entries import Entry
from harness.scoring import Estimate, Metric
from harness.statistics import estimate, mean_interval, means_by

LOOP_SHARE = 0.5
_DRAWS = 2_000
_STRENGTHS = ("method.", "search.parameters.")


@dataclass(frozen=True)
class StrengthCurve:
    """Entries of one method that differ in a single number, in its order.

    Args:
        method: name of the method.
        setting: the setting that differs, e.g. "strength".
        points: the setting's value and the entry.
    """

    method: str
    setting: str
    points: tuple[tuple[float, Entry], ...]


def strength_curves(entries: Sequence[Entry]) -> list[StrengthCurve]:
    """Every family of at least two entries that differ in one number of the method alone."""
    families: dict[tuple[str, str], list[tuple[float, Entry]]] = defaultdict(list)
    for entry in entries:
        for key, value in entry.settings.items():
            if key.startswith(_STRENGTHS) and isinstance(value, (int, float)) and not isinstance(value, bool):
                others = {name: leaf for name, leaf in entry.settings.items() if name != key}
                families[key, json.dumps(others, sort_keys=True, default=str)].append((float(value), entry))
    return [
        StrengthCurve(points[0][1].label("method"), _leaf(key), tuple(sorted(points, key=lambda point: point[0])))
        for (key, _), points in families.items()
        if len(points) > 1
    ]


def _leaf(key: str) -> str:
    return key.removeprefix("method.").removeprefix("search.parameters.").removesuffix(".default")


@dataclass(frozen=True)
class Steerability:
    """How a metric of single units, examples or clusters of them, follows the strength.

    **Source:** Tan et al. 2024, arXiv:2407.12404.

    Args:
        method: name of the method.
        setting: the setting that differs.
        oracle: whether the method saw the answers.
        metric: the metric.
        slope: least-squares slope of a unit's metric over the strengths, per unit of strength; mean over units.
        anti_steerable: share of units with a slope on the metric's worse side.
    """

    method: str
    setting: str
    oracle: bool
    metric: str
    slope: Estimate
    anti_steerable: Estimate


def steerability(comparison: Comparison) -> list[Steerability]:
    """For every strength curve of at least three points (the un-steered model stands at 0) and every headline mean."""
    curves = [curve for curve in strength_curves(comparison.entries) if curve.setting.endswith("strength")]
    points = [(curve, _with_zero(curve, baseline_of(curve.points[0][1], comparison.entries))) for curve in curves]
    # An example that only passes or fails has no slope.
    headline = [comparison.metrics[name] for name in comparison.headline]
    graded = [metric for metric in headline if metric.kind != "proportion"]
    return [
        _steerability(curve, measured, metric) for curve, measured in points if len(measured) > 2 for metric in graded
    ]


def _with_zero(curve: StrengthCurve, baseline: Entry | None) -> list[tuple[float, Entry]]:
    unsteered = [] if baseline is None or any(strength == 0 for strength, _ in curve.points) else [(0.0, baseline)]
    return [*unsteered, *curve.points]


def _steerability(curve: StrengthCurve, measured: Sequence[tuple[float, Entry]], metric: Metric) -> Steerability:
    points = [(strength, entry.means(metric.name)) for strength, entry in measured]
    shared = set.intersection(*(set(means) for _, means in points))

    offsets = np.array([strength for strength, _ in points])
    offsets -= offsets.mean()
    slopes = [float(offsets @ [means[unit] for _, means in points] / (offsets @ offsets)) for unit in sorted(shared)]

    better = 1 if metric.higher_is_better else -1
    return Steerability(
        curve.method,
        curve.setting,
        curve.points[0][1].oracle,
        metric.name,
        estimate(Metric(f"slope of {metric.name}", metric.higher_is_better, -np.inf, np.inf), slopes),
        estimate(Metric("anti-steerable", False, 0.0, 1.0, "proportion"), [float(better * s < 0) for s in slopes]),
    )


@dataclass(frozen=True)
class SearchCurve:
    """Best objective so far after ``start``, ``start + 1``, … trials: mean over examples with its 95 % interval."""

    start: int
    mean: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


def search_curve(entry: Entry) -> SearchCurve | None:
    """How the search of an entry's first seed improved; None if there are under two trials.

    A search per example keeps the best of each example; one that tries the same parameters on all examples keeps the
    set with the best mean. Trial -1, the un-steered text, stands at 0 trials.
    """
    tried = _tried(entry.first.trial_rows())
    shared = sorted(set.intersection(*(set(trials.numbers) for trials in tried.values()))) if tried else []
    if len(shared) < 2:
        return None
    objectives_NT, settings_NT = (_at(tried, shared, column) for column in ("objectives", "settings"))
    # Samples of the un-steered model have no parameters to be the same.
    is_for_all = len(tried) > 1 and (settings_NT != hash(())).any() and (settings_NT == settings_NT[0]).all()
    best_NT = _best_for_all(objectives_NT) if is_for_all else np.maximum.accumulate(objectives_NT, axis=1)
    ends = [_ends(column, list(tried), entry) for column in best_NT.T]
    lows, highs = (tuple(end if math.isfinite(end) else None for end in side) for side in zip(*ends, strict=True))
    return SearchCurve(0 if shared[0] < 0 else 1, tuple(best_NT.mean(0).tolist()), lows, highs)


def _ends(values: np.ndarray, examples: Sequence[str], entry: Entry) -> tuple[float, float]:
    """Interval of a mean objective over units. Dev items may belong together too, but no trial says which do."""
    tested = entry.first.counted
    is_clustered = any(example.cluster for example in tested.values())
    if is_clustered and not tested.keys() >= set(examples):
        return -math.inf, math.inf
    units = map(entry.first.unit, examples)
    means = means_by(zip(units, values.tolist(), strict=True))
    return mean_interval(list(means.values()), draws=_DRAWS)


class _Tried(NamedTuple):
    """What a search curve needs of an example's trials: numbers alone, since there may be a million of them.

    Args:
        numbers: of the trials.
        objectives: of each.
        settings: hash of each one's parameters.
    """

    numbers: array[int]
    objectives: array[float]
    settings: array[int]


def _tried(rows: Iterable[Mapping[str, Any]]) -> dict[str, _Tried]:
    """Trials by example. Texts and token ids stay on disk: a large search has gigabytes of them."""
    tried: dict[str, _Tried] = {}
    for row in rows:
        if row["example_id"] not in tried:
            tried[row["example_id"]] = _Tried(array("q"), array("d"), array("q"))
        trials = tried[row["example_id"]]
        trials.numbers.append(row["trial"])
        trials.objectives.append(row["objective"])
        trials.settings.append(hash(tuple(row["parameters"].items())))
    return tried


def _at(tried: Mapping[str, _Tried], numbers: Sequence[int], column: str) -> np.ndarray:
    """A column of every example at these trials, of shape (examples, trials)."""
    rows = []
    for trials in tried.values():
        values = np.array(getattr(trials, column))
        order = np.argsort(trials.numbers)
        rows.append(values[order[np.searchsorted(np.array(trials.numbers)[order], numbers)]])
    return np.array(rows)


def _best_for_all(values_NT: np.ndarray) -> np.ndarray:
    """Each example's objective under the set of parameters that was best on average so far."""
    means = values_NT.mean(0)
    best = [int(means[: count + 1].argmax()) for count in range(means.size)]
    return values_NT[:, best]


def chosen_parameters(entry: Entry) -> dict[str, list[float]]:
    """Value chosen for every example, by parameter; only parameters that vary over examples."""
    chosen: dict[str, list[float]] = defaultdict(list)
    for run in entry.runs:
        for selected in run.selected.values():
            for name, value in selected.record.generation.parameters.items():
                chosen[name].append(float(value))
    return {name: values for name, values in chosen.items() if len(set(values)) > 1}


def categories(comparison: Comparison, field: str, most: int = 16) -> dict[str, list[str]]:
    """Example ids by topic, answer type or group, largest first; empty if the examples do not have it."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, example in comparison.examples.items():
        value = example.group if field == "group" else example.metadata.get(field)
        if value not in (None, ""):
            groups[str(value)].append(name)
    if len(groups) < 2:
        return {}
    kept = [name for name, _ in Counter({name: len(ids) for name, ids in groups.items()}).most_common(most)]
    return {name: groups[name] for name in kept}


def is_degenerate(text: str) -> bool:
    """Whether an output is empty or a loop: over half of its word triples have occurred before in it."""
    words = text.lower().split()
    if len(words) < 6:
        return not words
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) > LOOP_SHARE


def front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Points (cost, quality, name) that no other beats on both, by rising cost."""
    kept: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept
