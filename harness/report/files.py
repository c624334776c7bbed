"""The comparison on disk: JSON (everything), CSV (one line per entry and metric), the page, and figures for papers."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.records.lines import plain_cell, replaced, write_json
from harness.report.answer import answer, trust
from harness.report.audit import Corrected
from harness.report.claims import Claim
from harness.report.compare import Comparison
from harness.report.curves import steerability
from harness.report.entries import Entry
from harness.report.expect import Published
from harness.report.figures import Figure, figures
from harness.report.html import render
from harness.report.wording import finite

COLUMNS: tuple[str, ...] = (
    "comparison", "entry", "method", "search", "control", "model", "setting", "seeds", "access", "oracle", "metric",
    "optimised_against_gold", "value", "low", "high", "num_scored", "num_unscored", "against_baseline",
    "against_baseline_low", "against_baseline_high", "share_worse", "fairest_opponent", "gain", "gain_low", "gain_high",
    "p_claim", "p_claim_holm", "verdict", "corrected", "corrected_low", "corrected_high", "num_audited",
)  # fmt: skip
PAPER = ("forest", "pareto", "strengths", "trials")
"""Sections whose figures are drawn into ``figures/``; the page gives away any other."""


def as_data(comparison: Comparison, published: Sequence[Published] = ()) -> dict[str, Any]:
    """The whole comparison as plain values that JSON can hold; infinite bounds become None."""
    return finite(
        {
            "title": comparison.title,
            "answer": answer(comparison),
            "trust": trust(comparison),
            "num_examples": len(comparison.examples),
            "num_units": comparison.num_units,
            "baseline": comparison.baseline.name if comparison.baseline else None,
            "primary": comparison.primary,
            "headline": list(comparison.headline),
            "metrics": {name: dataclasses.asdict(metric) for name, metric in comparison.metrics.items()},
            "judges": {name: comparison.calibration(name) for name in comparison.metrics},
            "entries": [_entry(comparison, entry) for entry in comparison.entries],
            "claims": [_claim(claim) for claim in comparison.claims],
            "contrasts": [dataclasses.asdict(item) for item in comparison.contrasts],
            "failures": [{"name": f.name, "path": str(f.path), "reason": f.reason} for f in comparison.failures],
            "published": [dataclasses.asdict(value) for value in published],
            "notices": [notice.text for notice in comparison.notices],
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
        "corrected": {name: dataclasses.asdict(item) for name, item in comparison.corrected[entry.name].items()},
        "setting": entry.setting,
        "parameters": [run.record.parameters for run in entry.runs],
        "derived": [run.record.derived for run in entry.runs],
        "cost": [run.record.cost.model_dump() for run in entry.runs],
        "receipts": [run.record.receipt and run.record.receipt.model_dump() for run in entry.runs],
        "provenance": [run.record.provenance.model_dump() for run in entry.runs],
        "judge_calibration": entry.first.record.judge_calibration,
    }


def _claim(claim: Claim) -> dict[str, Any]:
    """A claim with its verdict; its opponents by name, for their differences stand among the contrasts."""
    fields = {item.name: getattr(claim, item.name) for item in dataclasses.fields(claim) if item.name != "opponents"}
    return {
        **fields,
        "opponents": [contrast.theirs for contrast in claim.opponents],
        "fairest": claim.fairest.theirs if claim.fairest else None,
        "verdict": claim.verdict,
    }


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
        "share_worse": contrast.difference.share_worse,
    }  # fmt: skip
    if metric == comparison.primary:
        against |= _verdict(comparison.claim(entry))
    return {
        "comparison": comparison.title,
        "entry": entry.name,
        **{key: entry.label(key) for key in ("method", "search", "control", "model")},
        "setting": entry.setting,
        "seeds": len(entry.runs),
        "access": "+".join(entry.access),
        "oracle": entry.oracle,
        "optimised_against_gold": metric in entry.optimised_metrics,
        **dataclasses.asdict(estimate),
        **against,
        **_corrected(comparison.correction(entry, metric)),
    }


def _corrected(correction: Corrected | None) -> dict[str, Any]:
    if correction is None:
        return {}
    return {
        "corrected": correction.value,
        "corrected_low": correction.low,
        "corrected_high": correction.high,
        "num_audited": correction.num_audited,
    }


def _verdict(claim: Claim | None) -> dict[str, Any]:
    if claim is None or claim.fairest is None:
        return {}

    value, low, high = claim.fairest.difference.gain
    return {
        "fairest_opponent": claim.fairest.theirs,
        "gain": value,
        "gain_low": low,
        "gain_high": high,
        "p_claim": claim.p,
        "p_claim_holm": claim.p_holm,
        "verdict": claim.verdict,
    }


def write_report(
    comparisons: Sequence[Comparison], directory: Path, published: Sequence[Sequence[Published]] | None = None
) -> list[Path]:
    """Write comparison.json, comparison.csv, report.html and figures/ into a directory, each file in one step.

    Returns:
        The files, the page third.
    """
    held = published if published is not None else [() for _ in comparisons]
    data = [as_data(comparison, own) for comparison, own in zip(comparisons, held, strict=True)]
    drawn = [figures(comparison) for comparison in comparisons]
    json_path, csv_path, page_path = (directory / name for name in ("comparison.json", "comparison.csv", "report.html"))

    write_json(json_path, {"comparisons": data})
    with replaced(csv_path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for comparison in comparisons:
            writer.writerows({name: plain_cell(value) for name, value in row.items()} for row in rows(comparison))
    with replaced(page_path) as draft:
        draft.write_text(render(comparisons, held, drawn), encoding="utf-8")
    return [json_path, csv_path, page_path, *_write_figures(comparisons, drawn, directory / "figures")]


def _write_figures(
    comparisons: Sequence[Comparison], drawn: Sequence[Mapping[str, Sequence[Figure]]], directory: Path
) -> list[Path]:
    """Draw what a paper shows of each comparison, on its primary metric; what an earlier report drew is removed."""
    from harness.report.drawing import draw  # half a second to import, for those who draw

    for earlier in [file for section in PAPER for file in directory.glob(f"{section}-*")]:
        earlier.unlink()
    written: list[Path] = []
    for comparison, sections in zip(comparisons, drawn, strict=True):
        title = comparison.title if len(comparisons) > 1 else ""
        for section, figure in [(name, figure) for name in PAPER for figure in sections.get(name, ())]:
            if figure["metric"] in ("", comparison.primary):
                name = re.sub(r"\W+", "-", f"{section} {figure['title']} {title}".lower()).strip("-")
                while directory / f"{name}.svg" in written:  # two comparisons of one title
                    name += "-"
                written += draw(figure, directory / name)
    return written
