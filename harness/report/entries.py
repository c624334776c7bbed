"""Groups runs into entries (one line of the leaderboard, several seeds) and refuses what cannot be compared."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.records.run import printable
from harness.records.stored import StoredRun
from harness.scoring import Metric
from harness.statistics import in_own_unit, means_by, on_scale, unit_means

_SETTINGS = ("method", "search", "control", "objective", "task", "model", "protocol", "prune_loops")
"""Nodes of a configuration that decide what is generated and counted: they tell entries of one method apart."""


_PARAMETERS_NAMED = 4


@dataclass(frozen=True)
class Entry:
    """One line of the leaderboard: a method with its search and control, over one or more seeds.

    Args:
        name: says no more than is needed to tell it from the others.
        runs: one for each seed.
        settings: what decides its generations, by dotted name.
    """

    name: str
    runs: tuple[StoredRun, ...]
    settings: Mapping[str, Any]

    @property
    def first(self) -> StoredRun:
        """The run that stands for what all seeds share."""
        return self.runs[0]

    def label(self, axis: str) -> str:
        """One of method, search, control, task, model; "" if it does not apply."""
        return self.first.record.labels.shown(axis)

    @property
    def control(self) -> str:
        """Name of the control, "" for the method itself."""
        return self.label("control")

    @property
    def is_baseline(self) -> bool:
        """Whether this is the un-steered model itself."""
        return self.label("method") == "baseline" and not self.control

    @property
    def oracle(self) -> bool:
        """Whether anything in this entry saw the gold answers of the test examples."""
        return any(run.record.oracle for run in self.runs)

    @property
    def access(self) -> tuple[str, ...]:
        """What method, search and control were shown besides the question."""
        return tuple(sorted({item for run in self.runs for item in run.record.access}))

    @property
    def optimised_metrics(self) -> frozenset[str]:
        """Metrics that the search optimised, knowing the gold answer of the same example."""
        return frozenset(metric for run in self.runs for metric in run.record.optimised_metrics)

    @property
    def trials(self) -> float:
        """Trials of the search, mean over seeds."""
        return sum(run.record.cost.trials for run in self.runs) / len(self.runs)

    @cached_property
    def setting(self) -> str:
        """Layer and parameters of its steered answers, such as ``layer 18, strength 0.15``.

        Seeds that differ stand one behind the other; "chosen per item" where items differ; "" for what has neither.
        """
        return " | ".join(dict.fromkeys(filter(None, map(_setting, self.runs))))

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Metrics of any of the runs."""
        return {name: metric for run in self.runs for name, metric in run.record.metrics.items()}

    @cached_property
    def _scores(self) -> dict[str, dict[str, float]]:
        by_metric = {}
        for name, metric in self.metrics.items():
            # Averaged on the metric's own scale: perplexities, for one, by their logarithms.
            scores = [pair for run in self.runs for pair in run.scores.get(name, {}).items()]
            means = means_by((example, None if s is None else on_scale(metric, s)) for example, s in scores)
            by_metric[name] = {example: in_own_unit(metric, mean) for example, mean in means.items()}
        return by_metric

    def scores(self, metric: str) -> dict[str, float]:
        """Score by example id, averaged over seeds; unscored examples are left out."""
        return self._scores.get(metric, {})

    def column(self, metric: str) -> list[float | None]:
        """One value per example over all seeds, None where no seed was scored."""
        scores = self.scores(metric)
        return [scores.get(example) for example in self._examples(metric)]

    def units_of(self, metric: str) -> list[str]:
        """To which unit each value of `column` belongs."""
        return [self.first.unit(example) for example in self._examples(metric)]

    def means(self, metric: str) -> dict[str, float]:
        """What is compared and tested: the mean of every unit over its examples and seeds, on the metric's scale."""
        return unit_means(self.metrics[metric], self.column(metric), self.units_of(metric))

    def audited_means(self, metric: str) -> dict[str, float | None]:
        """The means of every unit as the second judge's verdicts move them, None where it was not asked.

        A unit of several items or seeds moves by the mean of what its audited ones move: these were drawn by chance.
        """
        shifts = means_by(
            (run.unit(example), audit - score)
            for run in self.runs
            for example, audit in run.audits.get(metric, {}).items()
            if (score := run.scores[metric].get(example)) is not None
        )
        return {unit: mean + shifts[unit] if unit in shifts else None for unit, mean in self.means(metric).items()}

    def _examples(self, metric: str) -> list[str]:
        return list(dict.fromkeys(example for run in self.runs for example in run.scores.get(metric, ())))

    def is_same_method(self, other: Entry) -> bool:
        """Whether the two differ in nothing but a control or a setting."""
        return all(self.label(axis) == other.label(axis) for axis in ("method", "search", "model"))


def _setting(run: StoredRun) -> str:
    """The layer that was configured and the parameters that were used, if they were the same for all items."""
    used = {tuple(sorted(item.record.generation.parameters.items())) for item in run.selected.values()} - {()}
    if len(used) > 1:
        return "chosen per item"
    parameters = dict(next(iter(used), ()))
    layer = run.record.config.get("method", {}).get("layer")
    if used and isinstance(layer, int) and "layer" not in parameters:
        parameters = {"layer": layer, **parameters}
    named = [f"{name} {value:.4g}" for name, value in parameters.items()]
    return ", ".join([*named[:_PARAMETERS_NAMED], *(["…"] if len(named) > _PARAMETERS_NAMED else [])])


def flatten(node: object, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted name."""
    if not isinstance(node, Mapping):
        return {prefix: json.dumps(node) if isinstance(node, list | tuple) else node}
    return {
        name: leaf
        for key, value in node.items()
        for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def settings(run: StoredRun) -> dict[str, Any]:
    """What decides the run's generations, by dotted name."""
    return flatten({name: run.record.config[name] for name in _SETTINGS if name in run.record.config})


def group_entries(runs: Sequence[StoredRun]) -> list[Entry]:
    """Runs that differ in their seed alone become one entry.

    Raises:
        ValueError: two runs of one entry have the same seed, so that one of them is a copy.
    """
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(run.record.entry, []).append(run)
    members = [tuple(group) for group in groups.values()]
    for group in members:
        _refuse_copies(group)

    settings_of_each = [settings(group[0]) for group in members]
    names = _names([group[0] for group in members], settings_of_each)
    return [Entry(*parts) for parts in zip(names, members, settings_of_each, strict=True)]


def _refuse_copies(group: tuple[StoredRun, ...]) -> None:
    seeds = Counter(run.record.labels.seed for run in group)
    seed, count = seeds.most_common(1)[0]
    if count > 1:
        copies = ", ".join(str(run.path) for run in group if run.record.labels.seed == seed)
        raise ValueError(f"the same run was given {count} times (same settings, same seed {seed}): {copies}")


def _names(runs: Sequence[StoredRun], settings_of_each: Sequence[Mapping[str, Any]]) -> list[str]:
    """Method and control; search, model and other settings only where they tell namesakes apart."""
    short = [_joined(run, ("method", "control")) for run in runs]
    names = []
    for run, name in zip(runs, short, strict=True):
        # An axis is named only where it tells this entry from others of the same name.
        namesakes = [other for other, same in zip(runs, short, strict=True) if same == name]
        axes = ("search", "model", "protocol")
        differing = [axis for axis in axes if len({other.record.labels.shown(axis) for other in namesakes}) > 1]
        names.append(_joined(run, ("method", *differing, "control")))

    taken = Counter(names)
    return [
        f"{name} ({_distinction(index, names, runs, settings_of_each)})" if taken[name] > 1 else name
        for index, name in enumerate(names)
    ]


def _joined(run: StoredRun, axes: Sequence[str]) -> str:
    return " · ".join(label for axis in axes if (label := run.record.labels.shown(axis))) or run.name


def _distinction(
    index: int, names: Sequence[str], runs: Sequence[StoredRun], settings_of_each: Sequence[Mapping[str, Any]]
) -> str:
    """The settings in which this entry differs from its namesakes; its key, if it is in none that is configured."""
    own = settings_of_each[index]
    namesakes = [other for other, name in zip(settings_of_each, names, strict=True) if name == names[index]]
    differing = [key for key in own if len({str(other.get(key)) for other in namesakes}) > 1]
    spelt = printable(", ".join(f"{key.rsplit('.', 1)[-1]}={own[key]}" for key in differing))
    return spelt or runs[index].record.entry[:8]


def refuse_incomparable(runs: Sequence[StoredRun], across_models: bool = False) -> None:
    """Raise ValueError, naming what differs, unless all runs answer the same examples and were scored alike."""
    first = runs[0]
    for run in runs[1:]:
        _refuse_examples(first, run)
        _refuse_scoring(first, run)
        model, other = (side.record.provenance.model_identity for side in (first, run))
        if model != other and not across_models:
            raise ValueError(
                f"different models: {first.name} ran on {model or 'an unnamed model'}, {run.name} on "
                f"{other or 'an unnamed model'}; --across-models compares them all the same"
            )


def _refuse_examples(first: StoredRun, run: StoredRun) -> None:
    start = f"different examples: {first.name} and {run.name}"
    ours, theirs = set(first.counted), set(run.counted)
    if ours != theirs:
        raise ValueError(
            f"{start} share {len(ours & theirs)} of {len(ours | theirs)} examples; only in the first: "
            f"{_few(sorted(ours - theirs))}; only in the second: {_few(sorted(theirs - ours))}"
        )

    for name, example in first.counted.items():
        other = run.counted[name]
        for part, here, there in (
            ("question", example.question, other.question), ("gold", example.answer, other.answer)
        ):  # fmt: skip
            if here != there:
                raise ValueError(f"{start} have another {part} for example {name}: {here!r} against {there!r}")

    # Examples of the same question and answer may differ in what else they hold.
    marks = [side.record.provenance.task_fingerprint for side in (first, run)]
    if all(marks) and marks[0] != marks[1]:
        raise ValueError(f"{start} have the task fingerprints {marks[0]} and {marks[1]}")


def _refuse_scoring(first: StoredRun, run: StoredRun) -> None:
    """Scores of one metric must come from the same evaluator version with the same settings, judge and scorer."""
    for name in first.record.evaluators.keys() & run.record.evaluators.keys():
        notes = [{"version": side.record.evaluators[name].version} for side in (first, run)]
        nodes = [flatten((side.record.config.get("evaluator") or {}).get(name) or {}) for side in (first, run)]
        _refuse_difference(name, notes[0] | nodes[0], notes[1] | nodes[1], first, run)
    if first.record.judge and run.record.judge:
        _refuse_difference("judge", {"judge": first.record.judge}, {"judge": run.record.judge}, first, run)
    scorers = [flatten(side.record.config.get("scorer") or {}) for side in (first, run)]
    _refuse_difference("scorer", scorers[0], scorers[1], first, run)


def _refuse_difference(
    name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], first: StoredRun, run: StoredRun
) -> None:
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            raise ValueError(
                f"scored differently: the {key} of {name} is {ours.get(key)} in {first.name} and {theirs.get(key)} in "
                f"{run.name}; score one of them again so that both are alike"
            )


def _few(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:3])
    return f"{shown} and {len(ids) - 3} more" if len(ids) > 3 else shown or "none"


def in_reading_order(entries: Sequence[Entry]) -> list[Entry]:
    """The baseline first, then as given, but settings of one method side by side and by their size; controls behind."""
    methods = [entry for entry in entries if not entry.control]

    def place(entry: Entry) -> tuple[bool, int, list[str | float]]:
        first = next(index for index, other in enumerate(methods) if other.is_same_method(entry))
        return not entry.is_baseline, first, _by_size(entry.name)

    ordered = sorted(methods, key=place)
    for control in (entry for entry in entries if entry.control):
        own = [index for index, entry in enumerate(ordered) if entry.is_same_method(control)]
        ordered.insert(own[-1] + 1 if own else len(ordered), control)
    return ordered


def _by_size(name: str) -> list[str | float]:
    """The name in pieces, words and numbers in turn, so that 10 comes after 9 and -1 before 1e-05."""
    pieces = re.split(r"((?<![\w.])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)", name)
    return [float(piece) if index % 2 else piece for index, piece in enumerate(pieces)]
