"""Which run folders there are, and what keeps a run from being counted. Runs themselves are never changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from harness.records.run import RUN_FILE, RunRecord
from harness.records.stored import StoredRun
from harness.statistics import mean_of

UNSTEERED_CONTROLS = frozenset({"best_of_n", "gold_in_prompt"})
"""Controls that replace the steering: they need no proof of it."""


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Run folders among and under the given paths, in order, each once; without imports that were not scored yet.

    Raises:
        ValueError: a path holds no run.
    """
    folders: list[Path] = []
    for path in paths:
        runs = [path] if (path / RUN_FILE).is_file() else sorted(file.parent for file in path.rglob(RUN_FILE))
        scored = [folder for folder in runs if not _awaits_scoring(folder)]

        if runs and not scored:
            raise ValueError(
                f"{path} holds imported texts without scores: python -m harness.score {runs[0]} comes first"
            )
        if not scored:
            raise ValueError(f"{path}: no {RUN_FILE} here or below; give run folders or a sweep's folder")
        folders += [folder for folder in scored if folder not in folders]
    return folders


def _awaits_scoring(folder: Path) -> bool:
    try:
        return RunRecord.read(folder).awaits_scoring
    except ValueError:  # it is listed with its reason when it is read whole
        return False


def why_not_counted(run: StoredRun) -> str | None:
    """Why a run's results do not count, or None if they do."""
    if run.record.status != "done":
        return f"{run.record.status}: {run.record.error or 'no reason stored'}"
    return truncation(run) or missing_steering(run)


def truncation(run: StoredRun) -> str | None:
    """What is missing from a finished run or contradicts its record, or None."""
    record = run.record
    for metric, estimate in record.estimates.items():
        due, held = estimate.num_scored + estimate.num_unscored, len(run.scores.get(metric, ()))
        if held != due:
            return f"truncated: run.json counts {due} scores of {metric}, scores.jsonl holds {held}"

    scored = {example for column in run.scores.values() for example in column}
    if not scored:
        return "it has no scores"
    if record.num_examples != len(scored):
        return f"truncated: run.json counts {record.num_examples} examples, scores.jsonl holds {len(scored)}"
    is_whole = record.subset is None
    if not scored <= set(run.selected) or (is_whole and len(scored) != len(run.selected)):
        return f"truncated: {len(scored)} examples are scored, generations.jsonl holds {len(run.selected)}"
    return _disagreement(run)


def _disagreement(run: StoredRun) -> str | None:
    """Whether an estimate in run.json is not the mean of the scores beside it."""
    for name, metric in run.record.metrics.items():
        scores = run.scores.get(name, {})
        mean = mean_of(metric, list(scores.values()), [run.unit(example) for example in scores])
        stated = run.record.estimates[name].value if name in run.record.estimates else None
        if mean is None or stated is None or math.isclose(mean, stated, rel_tol=1e-6, abs_tol=1e-9):
            continue
        return f"scores were changed: run.json says {name} = {stated:g}, scores.jsonl gives {mean:g}"
    return None


def missing_steering(run: StoredRun) -> str | None:
    """Why the run's receipt does not prove that the model was steered, or None if it does or need not."""
    receipt = run.record.receipt
    if run.record.provenance.imported_from is not None:
        return None  # other code wrote these texts: what it did to the model cannot be proved here
    if receipt is None:
        searched = any(item.record.generation.parameters for item in run.selected.values())
        should_steer = searched and run.record.labels.control not in UNSTEERED_CONTROLS
        return "no receipt: nothing proves that the model was steered" if should_steer else None
    if receipt.null or (receipt.idle and run.record.labels.shown("control")):
        return None
    if receipt.sites_hit == 0 or not any(site.relative_change > 0 for site in receipt.sites.values()):
        return f"not steered: hidden states did not change at any of {len(receipt.sites)} sites"
    return None
