"""Groups runs into entries (one line of the leaderboard, several seeds) and refuses what cannot be compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.report.runs import StoredRun
from harness.report.statistics import average_by_example
from harness.scoring import Metric

_NOT_IDENTITY = frozenset(
    {"out", "tracking", "evaluator", "judge", "scorer", "name", "experiment", "controls", "jobs", "expect"}
    | {"lock_wait", "engine", "hydra"}
)
"""Parts of a config that do not change what was generated, so that runs differing in them are the same entry."""


@dataclass(frozen=True)
class Entry:
    """One line of the leaderboard: a method with its search and control, over one or more seeds."""

    name: str
    runs: tuple[StoredRun, ...]
    settings: Mapping[str, Any]

    @property
    def first(self) -> StoredRun:
        """The run that stands for what all seeds share."""
        return self.runs[0]

    @property
    def control(self) -> str:
        """Name of the control, "" for the method itself."""
        return self.first.label("control")

    @property
    def is_baseline(self) -> bool:
        """Whether this is the un-steered model itself."""
        return self.first.label("method") == "baseline" and not self.control

    @property
    def oracle(self) -> bool:
        """Whether anything in this entry saw the gold answers of the test examples."""
        return any(run.info.get("oracle") or "gold" in (run.info.get("access") or ()) for run in self.runs)

    @property
    def access(self) -> tuple[str, ...]:
        """What method, search and control were shown besides the question."""
        return tuple(sorted({item for run in self.runs for item in run.info.get("access") or ()}))

    @property
    def optimised_metrics(self) -> frozenset[str]:
        """Metrics that the search optimised, knowing the gold answer of the same example."""
        named = {metric for run in self.runs for metric in run.info.get("optimised_metrics") or ()}
        return frozenset(named) if self.oracle else frozenset()

    @property
    def trials(self) -> float:
        """Trials of the search, mean over seeds."""
        counts = [run.node("cost").get("trials") or 0 for run in self.runs]
        return sum(counts) / len(counts)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Metrics of any of the runs."""
        return {name: metric for run in self.runs for name, metric in run.metrics.items()}

    def scores(self, metric: str) -> dict[str, float]:
        """Score by example id, averaged over seeds; unscored examples are left out."""
        return average_by_example([pair for run in self.runs for pair in run.scores.get(metric, {}).items()])

    def column(self, metric: str) -> list[float | None]:
        """One value per example over all seeds, None where no seed was scored."""
        scores = self.scores(metric)
        examples = dict.fromkeys(example for run in self.runs for example in run.scores.get(metric, ()))
        return [scores.get(example) for example in examples]


def flatten(node: object, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted name."""
    if not isinstance(node, Mapping):
        return {prefix: json.dumps(node) if isinstance(node, list) else node}
    return {
        name: leaf
        for key, value in node.items()
        for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def settings(run: StoredRun) -> dict[str, Any]:
    """What decides the run's generations, seeds aside."""
    config = {key: value for key, value in run.node("config").items() if key not in _NOT_IDENTITY}
    leaves = {name: leaf for name, leaf in flatten(config).items() if name.rsplit(".", 1)[-1] != "seed"}
    labels = {f"labels.{key}": run.label(key) for key in ("method", "search", "control", "task", "model")}
    return leaves | labels if config else labels | {"name": run.name}


def group_entries(runs: Sequence[StoredRun]) -> list[Entry]:
    """Runs that differ in their seed alone become one entry; names say no more than is needed to tell them apart.

    Raises:
        ValueError: if two runs of one entry have the same seed, so that one of them is a copy.
    """
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(settings(run), sort_keys=True, default=str), []).append(run)
    members = [tuple(group) for group in groups.values()]
    for group in members:
        _refuse_copies(group)
    every = [settings(group[0]) for group in members]
    names = _names([group[0] for group in members], every)
    return [Entry(*parts) for parts in zip(names, members, every, strict=True)]


def _refuse_copies(group: tuple[StoredRun, ...]) -> None:
    seeds = Counter(run.label("seed") for run in group)
    seed, count = seeds.most_common(1)[0]
    if count > 1:
        copies = ", ".join(str(run.path) for run in group if run.label("seed") == seed)
        raise ValueError(f"the same run was given {count} times (same settings, same seed {seed}): {copies}")


def _names(runs: Sequence[StoredRun], every: Sequence[Mapping[str, Any]]) -> list[str]:
    short = [_joined(run, ("method", "control")) for run in runs]
    names = []
    for run, name in zip(runs, short, strict=True):
        namesakes = [other for other, same in zip(runs, short, strict=True) if same == name]
        differing = [key for key in ("search", "model") if len({other.label(key) for other in namesakes}) > 1]
        names.append(_joined(run, ("method", *differing, "control")))
    taken = Counter(names)
    return [
        f"{name} ({_distinction(index, names, every) or runs[index].name})" if taken[name] > 1 else name
        for index, name in enumerate(names)
    ]


def _joined(run: StoredRun, keys: Sequence[str]) -> str:
    labels = [run.label(key) for key in keys]
    return " · ".join(label for label in labels if label) or run.name


def _distinction(index: int, names: Sequence[str], every: Sequence[Mapping[str, Any]]) -> str:
    """The settings in which this entry differs from its namesakes."""
    namesakes = [other for other, name in zip(every, names, strict=True) if name == names[index]]
    differing = [key for key in every[index] if len({str(other.get(key)) for other in namesakes}) > 1]
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={every[index][key]}" for key in differing)


def refuse_incomparable(runs: Sequence[StoredRun], across_models: bool = False) -> None:
    """Raise ValueError, naming what differs, unless all runs answer the same examples and were scored alike."""
    first = runs[0]
    for run in runs[1:]:
        _refuse_examples(first, run)
        _refuse_versions(first, run)
        model, other = (str(side.node("provenance").get("model_identity") or "") for side in (first, run))
        if model != other and not across_models:
            raise ValueError(
                f"different models: {first.name} ran on {model or 'an unnamed model'}, {run.name} on "
                f"{other or 'an unnamed model'}; --across-models compares them all the same"
            )


def _refuse_examples(first: StoredRun, run: StoredRun) -> None:
    start = f"different examples: {first.name} and {run.name}"
    ids, others = ({example for column in side.scores.values() for example in column} for side in (first, run))
    if ids != others:
        only, extra = sorted(ids - others), sorted(others - ids)
        raise ValueError(
            f"{start} share {len(ids & others)} of {len(ids | others)} examples; only in the first: "
            f"{_few(only)}; only in the second: {_few(extra)}"
        )
    for example, (question, answer) in first.scored_examples.items():
        there = run.examples.get(example, (question, answer))
        for part, ours, theirs in zip(("question", "gold"), (question, answer), there, strict=True):
            if ours != theirs:
                raise ValueError(f"{start} have another {part} for example {example}: {ours!r} against {theirs!r}")
    marks = [str(side.node("provenance").get("task_fingerprint") or "") for side in (first, run)]
    if all(marks) and marks[0] != marks[1]:
        raise ValueError(f"{start} have the task fingerprints {marks[0]} and {marks[1]}")


def _refuse_versions(first: StoredRun, run: StoredRun) -> None:
    """Scores of one metric must come from the same evaluator version with the same settings, judge and scorer."""
    for name, evaluator in first.node("evaluators").items():
        if name in run.node("evaluators"):
            _refuse_scoring(name, "version", evaluator, run.node("evaluators")[name], first, run)
            ours, theirs = (flatten(_config(side, "evaluator").get(name) or {}) for side in (first, run))
            for key in {**ours, **theirs}:
                _refuse_scoring(name, key, ours, theirs, first, run)
    if first.info.get("judge") and run.info.get("judge"):
        _refuse_scoring("judge", "judge", first.info, run.info, first, run)
    ours, theirs = (flatten(_config(side, "scorer")) for side in (first, run))
    for key in {**ours, **theirs}:
        _refuse_scoring("scorer", key, ours, theirs, first, run)


def _config(run: StoredRun, key: str) -> Mapping[str, Any]:
    node = run.node("config").get(key)
    return node if isinstance(node, Mapping) else {}


def _refuse_scoring(
    name: str, key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], first: StoredRun, run: StoredRun
) -> None:
    if ours.get(key) != theirs.get(key):
        raise ValueError(
            f"scored differently: the {key} of {name} is {ours.get(key)} in {first.name} and {theirs.get(key)} in "
            f"{run.name}; score one of them again so that both are alike"
        )


def _few(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:3])
    return f"{shown} and {len(ids) - 3} more" if len(ids) > 3 else shown or "none"
