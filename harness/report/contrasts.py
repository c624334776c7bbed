"""Which entries are held against which: planned pairs, and what was seen in each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.report.audit import Corrected, corrected_gap
from harness.report.entries import Entry
from harness.report.paired import Difference, paired_difference
from harness.scoring import Metric
from harness.statistics import DRAWS

Kind = Literal["baseline", "control", "ceiling", "methods"]

CEILINGS = frozenset({"gold_in_prompt"})
"""Controls that show what could be reached, not what could explain a result: nobody claims to be better than they."""


@dataclass(frozen=True)
class Contrast:
    """Two entries on one metric.

    Args:
        kind: "baseline" (anything against the un-steered model), "control" (a method against what could explain its
            result), "ceiling" (a method against what could be reached) or "methods" (two methods of the same access).
        ours: name of the entry in question.
        theirs: name of the entry it is held against.
        difference: ours - theirs with its interval and its uncorrected p-values.
        unequal_budget: trials of both where they differ and should not, else None.
        p_holm: p-value of two methods after Holm over all such pairs that are tested; None if the pair is not.
        exploratory: the pair was tested although the claims of the two were not both made good.
        corrected: the mean difference as a second judge's scores of a random part move it; None without such scores.
    """

    kind: Kind
    ours: str
    theirs: str
    difference: Difference
    unequal_budget: tuple[float, float] | None = None
    p_holm: float | None = None
    exploratory: bool = False
    corrected: Corrected | None = None


def planned_pairs(entries: Sequence[Entry]) -> Iterator[tuple[Kind, Entry, Entry]]:
    """Which entries are compared with which."""
    methods = [entry for entry in entries if not entry.control and not entry.is_baseline]
    for entry in entries:
        if (unsteered := baseline_of(entry, entries)) is not None and entry is not unsteered:
            yield "baseline", entry, unsteered
    for index, entry in enumerate(methods):
        for control in entries:
            if control.control and _controls(control, entry):
                yield "ceiling" if control.control in CEILINGS else "control", entry, control
        for other in methods[index + 1 :]:
            if entry.oracle == other.oracle and not entry.is_same_method(other):
                yield "methods", entry, other


def _controls(control: Entry, entry: Entry) -> bool:
    """Whether a control speaks about an entry: its own, or one run without any method that saw as much."""
    if control.label("model") != entry.label("model"):
        return False
    unsteered = control.label("method") == "baseline" and control.oracle == entry.oracle
    return unsteered or entry.is_same_method(control)


def baseline_of(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The un-steered run of the entry's own model."""
    model = entry.label("model")
    return next((other for other in entries if other.is_baseline and other.label("model") == model), None)


def planned_contrasts(
    entries: Sequence[Entry], declared: Mapping[str, Metric], draws: int = DRAWS
) -> tuple[Contrast, ...]:
    """Every planned pair on every metric that both have.

    Args:
        entries: entries on the same examples.
        declared: metrics by name.
        draws: resamples of the intervals.
    """
    means = {(entry.name, name): entry.means(name) for entry in entries for name in declared if name in entry.metrics}
    contrasts = []

    for kind, ours, theirs in planned_pairs(entries):
        budgets = (ours.trials, theirs.trials)
        unequal = budgets if kind in ("control", "methods") and budgets[0] != budgets[1] else None

        for name, metric in declared.items():
            mine, other = (means.get((side.name, name), {}) for side in (ours, theirs))
            difference = paired_difference(metric, mine, other, draws=draws)
            if difference is not None:
                correction = corrected_gap(ours, theirs, metric)
                contrasts.append(Contrast(kind, ours.name, theirs.name, difference, unequal, corrected=correction))
    return tuple(contrasts)
