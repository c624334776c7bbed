"""What a reader must know before believing a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness.report.claims import chosen_by_failure
from harness.report.contrasts import Contrast, baseline_of
from harness.report.entries import Entry


class Notice(NamedTuple):
    """A caution: in a few words, and in full."""

    label: str
    text: str


def notices_of(entries: Sequence[Entry], contrasts: Sequence[Contrast], primary: str) -> tuple[Notice, ...]:
    """All cautions about a comparison."""
    notices = [
        _without_baseline(entries),
        _another_primary(entries, primary),
        _chosen_by_failure(entries),
        _best_of_trials(entries),
        *_unequal_budgets(contrasts),
        *_optimised(entries),
        _idle_controls(entries),
    ]
    return tuple(notice for notice in notices if notice is not None)


def _without_baseline(entries: Sequence[Entry]) -> Notice | None:
    lacking = [entry for entry in entries if not entry.control and baseline_of(entry, entries) is None]
    if not lacking:
        return None
    return Notice(
        "no baseline", "There is no baseline run, so nothing is compared with the un-steered model, or claimed."
    )


def named_primaries(entries: Sequence[Entry]) -> list[str]:
    """The metrics that the runs' tasks name as the one to test."""
    named = [(run.record.config.get("task") or {}).get("primary") for entry in entries for run in entry.runs]
    return list(dict.fromkeys(name for name in named if name))


def _another_primary(entries: Sequence[Entry], primary: str) -> Notice | None:
    others = [name for name in named_primaries(entries) if name != primary]
    if not others:
        return None
    return Notice(
        f"{primary} tested, not {', '.join(others)}",
        f"The task names {', '.join(others)} as the metric to test; {primary} was tested in its place, because it was "
        "asked for or the other was not scored. A metric that is chosen after a look at the results proves nothing.",
    )


def _chosen_by_failure(entries: Sequence[Entry]) -> Notice | None:
    if not any(chosen_by_failure(entry) for entry in entries):
        return None
    return Notice(
        "examples chosen by the baseline's failure",
        "The examples were chosen because the baseline got them wrong: its score is 0 by construction and nothing can "
        "be lost, so methods are held against their controls alone. Report the unselected set as well.",
    )


def _best_of_trials(entries: Sequence[Entry]) -> Notice | None:
    best = [entry.name for entry in entries if entry.first.record.scored_trials == "best"]
    if not best:
        return None
    return Notice(
        "best of all trials counted",
        f"Every trial of {', '.join(best)} was scored and each example counts with its best one (per evaluator): a "
        "choice that nobody without the answers can make, and one that lifts scores by itself.",
    )


def _unequal_budgets(contrasts: Sequence[Contrast]) -> list[Notice]:
    notices = []
    unequal = [contrast for contrast in contrasts if contrast.unequal_budget]
    for name in dict.fromkeys(contrast.ours for contrast in unequal):
        budgets = {item.theirs: item.unequal_budget for item in unequal if item.ours == name and item.unequal_budget}
        ours = next(iter(budgets.values()))[0]
        others = ", ".join(f"{other} {trials:g}" for other, (_, trials) in budgets.items())
        notices.append(Notice("unequal budgets", f"Unequal budgets: {name} used {ours:g} trials, {others}."))
    return notices


def _optimised(entries: Sequence[Entry]) -> list[Notice]:
    notices = []
    for metric in sorted({metric for entry in entries for metric in entry.optimised_metrics}):
        named = ", ".join(entry.name for entry in entries if metric in entry.optimised_metrics and not entry.control)
        text = (
            f"{metric} was optimised by a search that knew the gold answers of the same examples ({named}): a gain in "
            "it over the baseline is expected, only the controls at equal budget are a fair opponent."
        )
        notices.append(Notice(f"{metric} optimised against the gold", text))
    return notices


def _idle_controls(entries: Sequence[Entry]) -> Notice | None:
    receipts = {entry.name: [run.record.receipt for run in entry.runs] for entry in entries}
    idle = [name for name, own in receipts.items() if any(receipt is not None and receipt.idle for receipt in own)]
    if not idle:
        return None
    return Notice(
        "controls that found nothing to do",
        f"{', '.join(idle)}: no hidden state changed in the rows that were looked at, because what decides whether the "
        "method acts learnt from shuffled data. Such a control is little else than the un-steered model.",
    )
