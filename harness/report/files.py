"""The comparison on disk: JSON (everything), CSV (one line per entry and metric), and the page."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.records.lines import replaced, write_json
from harness.report.compare import Comparison
from harness.report.curves import steerability
from harness.report.entries import Entry
from harness.report.expect import Claim
from harness.report.html import render
from harness.report.wording import finite

COLUMNS: tuple[str, ...] = (
    "comparison", "entry", "method", "search", "control", "model", "seeds", "access", "oracle", "metric",
    "optimised_against_gold", "value", "low", "high", "num_scored", "num_unscored", "against_baseline",
    "against_baseline_low", "against_baseline_high", "p_holm", "share_worse",
)  # fmt: skip


def as_data(comparison: Comparison, claims: Sequence[Claim] = ()) -> dict[str, Any]:
    """The whole comparison as plain values that JSON can hold; infinite bounds become None."""
    return finite(
        {
            "title": comparison.title,
            "num_examples": len(comparison.examples),
            "baseline": comparison.baseline.name if comparison.baseline else None,
            "headline": list(comparison.headline),
            "metrics": {name: dataclasses.asdict(metric) for name, metric in comparison.metrics.items()},
            "judges": {name: comparison.calibration(name) for name in comparison.metrics},
            "entries": [_entry(comparison, entry) for entry in comparison.entries],
            "contrasts": [_contrast(item) for item in comparison.contrasts],
            "failures": [{"name": f.name, "path": str(f.path), "reason": f.reason} for f in comparison.failures],
            "claims": [dataclasses.asdict(claim) for claim in claims],
            "notices": list(comparison.notices),
            "steerability": [dataclasses.asdict(item) for item in steerability(comparison)],
        }
    )


def _entry(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        **{key: entry.label(key) for key in ("method", "search", "control", "model")},
        "seeds": [run.record.labels.seed for run in entry.runs],
        "runs": [run.name for run in entry.runs],
        "access": list(entry.access),
        "oracle": entry.oracle,
        "optimised_metrics": sorted(entry.optimised_metrics),
        "estimates": {name: dataclasses.asdict(item) for name, item in comparison.estimates[entry.name].items()},
        "parameters": [run.record.parameters for run in entry.runs],
        "derived": [run.record.derived for run in entry.runs],
        "cost": [run.record.cost.model_dump() for run in entry.runs],
        "receipts": [run.record.receipt and run.record.receipt.model_dump() for run in entry.runs],
        "provenance": [run.record.provenance.model_dump() for run in entry.runs],
        "judge_calibration": entry.first.record.judge_calibration,
    }


def _contrast(contrast: Any) -> dict[str, Any]:
    return dataclasses.asdict(contrast) | {"significant": contrast.significant}


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per entry and metric, with the difference to the baseline."""
    return [
        _row(comparison, entry, metric)
        for entry in (*comparison.deployable, *comparison.oracles)
        for metric in comparison.estimates[entry.name]
    ]


def _row(comparison: Comparison, entry: Entry, metric: str) -> dict[str, Any]:
    estimate = comparison.estimates[entry.name][metric]
    contrast = comparison.against_baseline(entry, metric)
    against = {} if contrast is None else {
        "against_baseline": contrast.difference.value,
        "against_baseline_low": contrast.difference.low,
        "against_baseline_high": contrast.difference.high,
        "p_holm": contrast.p_holm,
        "share_worse": contrast.difference.share_worse,
    }  # fmt: skip
    return {
        "comparison": comparison.title,
        "entry": entry.name,
        **{key: entry.label(key) for key in ("method", "search", "control", "model")},
        "seeds": len(entry.runs),
        "access": "+".join(entry.access),
        "oracle": entry.oracle,
        "optimised_against_gold": metric in entry.optimised_metrics,
        **dataclasses.asdict(estimate),
        **against,
    }


def write_report(
    comparisons: Sequence[Comparison], directory: Path, claims: Sequence[Sequence[Claim]] | None = None
) -> list[Path]:
    """Write comparison.json, comparison.csv and report.html into a directory, each in one step; return their paths."""
    held = claims if claims is not None else [() for _ in comparisons]
    data = [as_data(comparison, own) for comparison, own in zip(comparisons, held, strict=True)]
    json_path, csv_path, page_path = (directory / name for name in ("comparison.json", "comparison.csv", "report.html"))

    write_json(json_path, {"comparisons": data})
    with replaced(csv_path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for comparison in comparisons:
            writer.writerows(rows(comparison))
    with replaced(page_path) as draft:
        draft.write_text(render(comparisons, held), encoding="utf-8")
    return [json_path, csv_path, page_path]
