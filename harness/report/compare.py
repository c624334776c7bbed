"""Compares runs on the same examples: what each method can claim, what was seen, and which runs cannot be counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.data import Example
from harness.judges.trust import of_rubrics
from harness.records.stored import StoredRun, read_run
from harness.report.audit import Corrected, corrections
from harness.report.claims import Claim, Pairs, claims_of, tested_pairs
from harness.report.contrasts import Contrast, planned_contrasts
from harness.report.countable import truncation, why_not_counted
from harness.report.entries import Entry, group_entries, in_reading_order, refuse_incomparable
from harness.report.merged import merged
from harness.report.notices import Notice, named_primaries, notices_of
from harness.scoring import Estimate, Metric
from harness.statistics import estimate


@dataclass(frozen=True)
class Failure:
    """A run that is listed but not counted."""

    name: str
    path: Path
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Everything that is said about one set of runs on one set of examples.

    Args:
        title: tasks and models.
        entries: in reading order.
        failures: runs that are not counted.
        metrics: every metric that was scored, by name.
        primary: the one metric that is tested.
        headline: metrics that stand in the first table, the primary one first.
        estimates: by entry and metric.
        contrasts: what was seen in every planned pair.
        claims: what each method claims on the primary metric.
        baseline: the un-steered entry.
        notices: what a reader must know before believing a number.
        corrected: by entry and metric, the mean as a second judge's scores of a random part move it, if there are any.
    """

    title: str
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]
    metrics: Mapping[str, Metric]
    primary: str
    headline: tuple[str, ...]
    estimates: Mapping[str, Mapping[str, Estimate]]
    contrasts: tuple[Contrast, ...]
    claims: tuple[Claim, ...]
    baseline: Entry | None
    notices: tuple[Notice, ...] = ()
    corrected: Mapping[str, Mapping[str, Corrected]] = field(default_factory=dict)

    @property
    def deployable(self) -> list[Entry]:
        """Entries that never saw a test example's gold answer."""
        return [entry for entry in self.entries if not entry.oracle]

    @property
    def oracles(self) -> list[Entry]:
        """Entries that did."""
        return [entry for entry in self.entries if entry.oracle]

    def side(self, oracle: bool) -> list[Entry]:
        """The entries of one access: they share tables and pictures with nobody else."""
        return self.oracles if oracle else self.deployable

    @property
    def examples(self) -> dict[str, Example]:
        """The examples that all entries share, by id."""
        return self.entries[0].first.counted if self.entries else {}

    @property
    def num_units(self) -> int:
        """How many independent items that is; several orders of a question are one."""
        return len({example.unit for example in self.examples.values()})

    def calibration(self, metric: str) -> Mapping[str, object] | None:
        """What is known about the judge that gave this metric; None for a metric without a judge."""
        records = [run.record for entry in self.entries for run in entry.runs if metric in run.record.judged_metrics]
        if not records:
            return None
        stored = next((record.judge_calibration for record in records if record.judge_calibration), {})
        known = {"judge": records[0].judge or "unnamed judge", "mark": "not calibrated"} | dict(stored)
        rubrics = self.metrics[metric].rubrics
        return of_rubrics(known, rubrics) if rubrics else known

    def correction(self, entry: Entry, metric: str) -> Corrected | None:
        """A metric's mean as a second judge's scores of a random part move it; None where it scored too few."""
        return self.corrected.get(entry.name, {}).get(metric)

    def is_corrected(self, metric: str) -> bool:
        """Whether any entry's mean of this metric was corrected by a second judge's scores."""
        return any(metric in metrics for metrics in self.corrected.values())

    def entry(self, name: str) -> Entry:
        """The entry of this name."""
        return next(entry for entry in self.entries if entry.name == name)

    def claim(self, entry: Entry) -> Claim | None:
        """What an entry claims; None for the baseline and for controls."""
        return next((claim for claim in self.claims if claim.method == entry.name), None)

    def against_baseline(self, entry: Entry, metric: str) -> Contrast | None:
        """An entry against the un-steered run of its own model."""
        own = (c for c in self.contrasts if c.kind == "baseline" and c.ours == entry.name)
        return next((c for c in own if c.difference.metric == metric), None)

    def contrast(self, ours: str, theirs: str, metric: str) -> Contrast | None:
        """The planned comparison of two entries, if there is one."""
        key = (ours, theirs, metric)
        return next((c for c in self.contrasts if (c.ours, c.theirs, c.difference.metric) == key), None)


def compare(
    paths: Sequence[Path],
    *,
    across_models: bool = False,
    primary: str | None = None,
    pairs: Pairs = "auto",
    strict: bool = True,
) -> Comparison:
    """Compare runs, which must answer the same examples and be scored by the same evaluator versions.

    Args:
        paths: run directories.
        across_models: allow runs on different models.
        primary: the metric to test; by default the one that the task names.
        pairs: which methods to test against each other, see `harness.report.claims.tested_pairs`.
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
    return _compared(runs, failures, primary, pairs)


def _compared(runs: Sequence[StoredRun], failures: Sequence[Failure], primary: str | None, pairs: Pairs) -> Comparison:
    """Everything that is said about runs that may be compared."""
    entries = in_reading_order(group_entries(runs))
    scored = _scored_metrics(entries)
    tested = _primary(entries, scored, primary)
    headline = tuple(filter(None, dict.fromkeys([tested, *_firsts(entries, scored)])))
    metrics = {name: scored[name] for name in dict.fromkeys([*headline, *scored])}

    planned = planned_contrasts(entries, metrics)
    claims = claims_of(entries, planned, tested)
    contrasts = tested_pairs(planned, claims, tested, pairs)
    return Comparison(
        title=_title(runs),
        entries=tuple(entries),
        failures=tuple(failures),
        metrics=metrics,
        primary=tested,
        headline=headline,
        estimates={entry.name: _estimates(entry, metrics) for entry in entries},
        contrasts=contrasts,
        claims=claims,
        baseline=next((entry for entry in entries if entry.is_baseline), None),
        notices=notices_of(entries, contrasts, tested),
        corrected={entry.name: corrections(entry, metrics) for entry in entries},
    )


def _scored_metrics(entries: Sequence[Entry]) -> dict[str, Metric]:
    """Metrics that an evaluator declares and for which at least one entry has scores."""
    declared = {name: metric for entry in entries for name, metric in entry.metrics.items()}
    return {name: metric for name, metric in declared.items() if any(entry.scores(name) for entry in entries)}


def listing(failures: Sequence[Failure]) -> Comparison:
    """A comparison without results, which only says what went wrong."""
    return Comparison("no results", (), tuple(failures), {}, "", (), {}, (), (), None)


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


def _primary(entries: Sequence[Entry], declared: Mapping[str, Metric], chosen: str | None) -> str:
    """The one metric that is tested: one test leaves more power than several."""
    if chosen is not None and chosen not in declared:
        raise ValueError(f"no run has the metric {chosen}; there are {', '.join(declared)}")
    named = named_primaries(entries)
    if chosen is None and len(named) > 1:
        raise ValueError(f"the runs name different metrics to test, {', '.join(named)}; choose one with --metric")
    candidates = [chosen, *named, *_firsts(entries, declared), *declared]
    return next((name for name in candidates if name in declared), "")


def _firsts(entries: Sequence[Entry], declared: Mapping[str, Metric]) -> list[str]:
    """The first metric that each evaluator declares."""
    records = [run.record for entry in entries for run in entry.runs]
    notes = [note for record in records for note in record.evaluators.values()]
    names = dict.fromkeys(note.metrics[0].name for note in notes if note.metrics)
    return [name for name in names if name in declared]


def _title(runs: Sequence[StoredRun]) -> str:
    labels = [run.record.labels for run in runs]
    named = {(label.shown("task") or "task", label.shown("model") or "model") for label in labels}
    return " · ".join(sorted(f"{task} on {model}" for task, model in named))


def _estimates(entry: Entry, declared: Mapping[str, Metric]) -> dict[str, Estimate]:
    scored = [(name, metric, entry.column(name)) for name, metric in declared.items() if name in entry.metrics]
    return {name: estimate(metric, column, entry.units_of(name)) for name, metric, column in scored if column}
