"""Compares runs on the same examples: who is better, by how much, is it real, and which runs cannot be counted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from harness.data import Example
from harness.records.run import StoredRun, read_run
from harness.report.countable import truncation, why_not_counted
from harness.report.entries import Entry, group_entries, refuse_incomparable
from harness.report.merged import merged
from harness.report.paired import Difference, detectable_effect, holm, paired_difference
from harness.scoring import Estimate, Metric
from harness.statistics import DRAWS, estimate

ALPHA = 0.05
Kind = Literal["baseline", "control", "methods"]


@dataclass(frozen=True)
class Failure:
    """A run that is listed but not counted."""

    name: str
    path: Path
    reason: str


@dataclass(frozen=True)
class Contrast:
    """One planned comparison of two entries on one metric.

    Args:
        kind: "baseline" (anything against the un-steered model), "control" (a method against what could explain its
            result) or "methods" (two methods of the same access).
        ours: name of the entry in question.
        theirs: name of the entry it is held against.
        difference: ours - theirs with its interval.
        p_holm: p-value after Holm over all tested contrasts of the comparison; None if the contrast is not tested.
        untested: why there is no p-value, "" if there is one.
        detectable: smallest effect found with 80 % power at Holm's strictest level.
        unequal_budget: trials of both where they differ, else None.
    """

    kind: Kind
    ours: str
    theirs: str
    difference: Difference
    p_holm: float | None = None
    untested: str = ""
    detectable: float | None = None
    unequal_budget: tuple[float, float] | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference stands after Holm at 5 %."""
        return self.p_holm is not None and self.p_holm <= ALPHA


@dataclass(frozen=True)
class Comparison:
    """Everything that is said about one set of runs on one set of examples."""

    title: str
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]
    metrics: Mapping[str, Metric]
    headline: tuple[str, ...]
    estimates: Mapping[str, Mapping[str, Estimate]]
    contrasts: tuple[Contrast, ...]
    baseline: Entry | None
    notices: tuple[str, ...] = ()

    @property
    def deployable(self) -> list[Entry]:
        """Entries that never saw a test example's gold answer."""
        return [entry for entry in self.entries if not entry.oracle]

    @property
    def oracles(self) -> list[Entry]:
        """Entries that did."""
        return [entry for entry in self.entries if entry.oracle]

    @property
    def examples(self) -> dict[str, Example]:
        """The examples that all entries share, by id."""
        return self.entries[0].first.counted if self.entries else {}

    def calibration(self, metric: str) -> Mapping[str, object] | None:
        """What is known about the judge that gave this metric; None for a metric without a judge."""
        records = [run.record for entry in self.entries for run in entry.runs if metric in run.record.judged_metrics]
        if not records:
            return None
        calibration = next((record.judge_calibration for record in records if record.judge_calibration), {})
        return {"judge": records[0].judge or "unnamed judge", "mark": "not calibrated"} | dict(calibration)

    def entry(self, name: str) -> Entry:
        """The entry of this name."""
        return next(entry for entry in self.entries if entry.name == name)

    def against_baseline(self, entry: Entry, metric: str) -> Contrast | None:
        """An entry against the un-steered run of its own model."""
        found = (c for c in self.contrasts if c.kind == "baseline" and c.ours == entry.name)
        return next((c for c in found if c.difference.metric == metric), None)

    def contrast(self, ours: str, theirs: str, metric: str) -> Contrast | None:
        """The planned comparison of two entries, if there is one."""
        wanted = (ours, theirs, metric)
        return next((c for c in self.contrasts if (c.ours, c.theirs, c.difference.metric) == wanted), None)


def compare(
    paths: Sequence[Path], *, across_models: bool = False, metrics: Sequence[str] = (), strict: bool = True
) -> Comparison:
    """Compare runs, which must answer the same examples and be scored by the same evaluator versions.

    Args:
        paths: run directories.
        across_models: allow runs on different models.
        metrics: metrics to test; by default the first one that each evaluator declares.
        strict: refuse truncated runs; otherwise list them with the failed ones.

    Raises:
        ValueError: naming what differs between two runs, or what a run lacks.
    """
    runs, failures = _countable(paths, strict)
    if not runs and strict:
        raise ValueError("no run can be compared: " + "; ".join(f"{item.name}: {item.reason}" for item in failures))
    if not runs:
        return listing(failures)
    runs = merged(runs)
    refuse_incomparable(runs, across_models)
    entries = in_reading_order(group_entries(runs))
    declared = {name: metric for entry in entries for name, metric in entry.metrics.items()}
    declared = {name: metric for name, metric in declared.items() if any(entry.scores(name) for entry in entries)}
    headline = _headline(runs, declared, metrics)
    baseline = next((entry for entry in entries if entry.is_baseline), None)
    contrasts = planned_contrasts(entries, declared, headline)
    estimates = {entry.name: _estimates(entry, declared) for entry in entries}
    notices = _notices(entries, baseline, contrasts)
    title = " · ".join(
        sorted({f"{run.record.labels.task or 'task'} on {run.record.labels.model or 'model'}" for run in runs})
    )
    return Comparison(
        title, tuple(entries), tuple(failures), declared, headline, estimates, contrasts, baseline, notices
    )


def listing(failures: Sequence[Failure]) -> Comparison:
    """A comparison without results, which only says what went wrong."""
    return Comparison("no results", (), tuple(failures), {}, (), {}, (), None)


def _countable(paths: Sequence[Path], strict: bool) -> tuple[list[StoredRun], list[Failure]]:
    """Runs whose results count, and those that failed, are damaged or truncated, or did not steer."""
    kept: list[StoredRun] = []
    failures: list[Failure] = []
    for path in paths:
        try:
            run = read_run(path)
        except (ValueError, OSError) as error:
            if strict:
                raise ValueError(f"{path.name}: {error}") from error
            failures.append(Failure(path.name, path, str(error)))
            continue
        if (reason := truncation(run)) and strict and run.record.status == "done":
            raise ValueError(f"{run.name}: {reason}; run its command again to complete it")
        if reason := why_not_counted(run):
            failures.append(Failure(run.name, path, reason))
        else:
            kept.append(run)
    return kept, failures


def _headline(runs: Sequence[StoredRun], declared: Mapping[str, Metric], chosen: Sequence[str]) -> tuple[str, ...]:
    """The metrics that are tested: fewer tests leave more power to each."""
    unknown = [name for name in chosen if name not in declared]
    if unknown:
        raise ValueError(f"no run has the metric {', '.join(unknown)}; there are {', '.join(declared)}")
    firsts = [note.metrics[0].name for run in runs for note in run.record.evaluators.values() if note.metrics]
    return tuple(chosen) or tuple(name for name in dict.fromkeys(firsts) if name in declared)


def _estimates(entry: Entry, declared: Mapping[str, Metric]) -> dict[str, Estimate]:
    columns = {name: entry.column(name) for name in declared}
    return {name: estimate(declared[name], column) for name, column in columns.items() if column}


def planned_pairs(entries: Sequence[Entry]) -> Iterator[tuple[Kind, Entry, Entry]]:
    """Which entries are compared with which; what is not planned is not tested."""
    methods = [entry for entry in entries if not entry.control and not entry.is_baseline]
    for entry in entries:
        if (unsteered := baseline_of(entry, entries)) is not None and entry is not unsteered:
            yield "baseline", entry, unsteered
    for index, entry in enumerate(methods):
        for control in entries:
            if control.control and _controls(control, entry):
                yield "control", entry, control
        for other in methods[index + 1 :]:
            if entry.oracle == other.oracle and not _same_method(entry, other):
                yield "methods", entry, other


def _controls(control: Entry, entry: Entry) -> bool:
    """Whether a control speaks about an entry: its own, or one run without any method that saw as much."""
    if control.label("model") != entry.label("model"):
        return False
    unsteered = control.label("method") == "baseline" and control.oracle == entry.oracle
    return unsteered or _same_method(entry, control)


def baseline_of(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The un-steered run of the entry's own model."""
    model = entry.label("model")
    return next((other for other in entries if other.is_baseline and other.label("model") == model), None)


def _same_method(entry: Entry, other: Entry) -> bool:
    keys = ("method", "search", "model")
    return all(entry.label(key) == other.label(key) for key in keys)


def in_reading_order(entries: Sequence[Entry]) -> list[Entry]:
    """The baseline first, then as given, but settings of one method side by side and by their size; controls behind."""
    methods = [entry for entry in entries if not entry.control]

    def place(entry: Entry) -> tuple[bool, int, list[str | float]]:
        first = next(index for index, other in enumerate(methods) if _same_method(entry, other))
        return not entry.is_baseline, first, _by_size(entry.name)

    ordered = sorted(methods, key=place)
    for control in (entry for entry in entries if entry.control):
        own = [index for index, entry in enumerate(ordered) if _same_method(entry, control)]
        ordered.insert(own[-1] + 1 if own else len(ordered), control)
    return ordered


def _by_size(name: str) -> list[str | float]:
    """The name in pieces, words and numbers in turn, so that 10 comes after 9 and -1 before 1e-05."""
    pieces = re.split(r"((?<![\w.])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)", name)
    return [float(piece) if index % 2 else piece for index, piece in enumerate(pieces)]


def planned_contrasts(
    entries: Sequence[Entry],
    declared: Mapping[str, Metric],
    headline: Sequence[str],
    draws: int = DRAWS,
) -> tuple[Contrast, ...]:
    """Every planned pair on every metric; those on headline metrics are tested and corrected together.

    Args:
        entries: entries on the same examples.
        declared: metrics by name.
        headline: names of those that are tested.
        draws: resamples of the intervals.
    """
    found = []
    for kind, ours, theirs in planned_pairs(entries):
        for name, metric in declared.items():
            difference = paired_difference(metric, ours.scores(name), theirs.scores(name), draws=draws)
            if difference is not None:
                untested = _why_untested(kind, ours, name, headline)
                unequal = (ours.trials, theirs.trials) if kind != "baseline" and ours.trials != theirs.trials else None
                found.append(
                    Contrast(kind, ours.name, theirs.name, difference, untested=untested, unequal_budget=unequal)
                )
    return _corrected(found, entries)


def _corrected(found: Sequence[Contrast], entries: Sequence[Entry]) -> tuple[Contrast, ...]:
    """The same contrasts with Holm's correction over all that are tested, and what this n could have found."""
    adjusted = holm([None if contrast.untested else contrast.difference.p for contrast in found])
    level = ALPHA / max(1, sum(p is not None for p in adjusted))
    by_name = {entry.name: entry for entry in entries}
    return tuple(
        replace(contrast, p_holm=p, detectable=None if p is None else _detectable(contrast, by_name, level))
        for contrast, p in zip(found, adjusted, strict=True)
    )


def _detectable(contrast: Contrast, entries: Mapping[str, Entry], level: float) -> float | None:
    metric = contrast.difference.metric
    ours, theirs = (entries[name].scores(metric) for name in (contrast.ours, contrast.theirs))
    gaps = [value - theirs[example] for example, value in ours.items() if example in theirs]
    return detectable_effect(gaps, contrast.difference.test == "mcnemar", level)


def _why_untested(kind: Kind, ours: Entry, metric: str, headline: Sequence[str]) -> str:
    if metric not in headline:
        return "not a headline metric"
    if kind == "baseline" and ours.control:
        return "a control makes no claim against the baseline"
    if kind == "baseline" and chosen_by_failure(ours):
        return "the examples were chosen by the baseline's failure, so it can only lose"
    return ""


def chosen_by_failure(entry: Entry) -> bool:
    """Whether the run's examples are those that the baseline got wrong."""
    return entry.first.record.subset is not None


def _notices(entries: Sequence[Entry], baseline: Entry | None, contrasts: Sequence[Contrast]) -> tuple[str, ...]:
    """What a reader must know before believing a number."""
    notices = []
    if baseline is None:
        notices.append("There is no baseline run, so nothing is compared with the un-steered model.")
    if any(chosen_by_failure(entry) for entry in entries):
        notices.append(
            "The examples were chosen because the baseline got them wrong: its score is 0 by construction and nothing "
            "can be lost, so differences against it carry no p-value. Report the unselected set as well."
        )
    if best := [entry.name for entry in entries if entry.first.record.scored_trials == "best"]:
        notices.append(
            f"Every trial of {', '.join(best)} was scored and each example counts with its best one (per evaluator): "
            "a choice that nobody without the answers can make, and one that lifts scores by itself."
        )
    for name in dict.fromkeys(contrast.ours for contrast in contrasts if contrast.unequal_budget):
        budgets = {c.theirs: c.unequal_budget[1] for c in contrasts if c.ours == name and c.unequal_budget}
        ours = next(c.unequal_budget[0] for c in contrasts if c.ours == name and c.unequal_budget)
        others = ", ".join(f"{other} {trials:g}" for other, trials in budgets.items())
        notices.append(f"Unequal budgets: {name} used {ours:g} trials, {others}.")
    for metric in sorted({metric for entry in entries for metric in entry.optimised_metrics}):
        named = ", ".join(entry.name for entry in entries if metric in entry.optimised_metrics and not entry.control)
        notices.append(
            f"{metric} was optimised by a search that knew the gold answers of the same examples ({named}): a gain in "
            "it over the baseline is expected, only the controls at equal budget are a fair opponent."
        )
    return tuple(notices)
