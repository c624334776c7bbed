"""From run directories to the files of a comparison; a sweep over tasks or models gives one comparison for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.report.compare import Comparison, Failure, compare, listing
from harness.report.expect import Claim
from harness.report.files import write_files
from harness.report.html import render
from harness.report.runs import StoredRun, find_runs, read_run


def compare_groups(
    paths: Sequence[Path], *, across_models: bool = False, metrics: Sequence[str] = (), strict: bool = True
) -> list[Comparison]:
    """Compare runs that were named one by one with each other, those found in a sweep's directory per task and model.

    Args:
        paths: run directories, or directories that hold some.
        across_models: compare over models as well.
        metrics: metrics to test; by default the first one that each evaluator declares.
        strict: refuse what cannot be compared; otherwise compare per task and model, and list the rest as not counted.

    Raises:
        ValueError: if there is no run, or runs that must be compared differ in their examples, evaluators or model.
    """
    found = find_runs(list(paths))
    named = all(path in found for path in paths)
    groups = [found] if named and strict else group_paths(found, across_models)
    attempt = compare if strict else _compare_or_list
    return [attempt(group, across_models=across_models, metrics=metrics) for group in groups]


def group_paths(paths: Sequence[Path], across_models: bool = False) -> list[list[Path]]:
    """Run directories by task, its subset and, unless compared across, model; groups in order of first appearance."""
    groups: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        groups.setdefault(_group(read_run(path), across_models), []).append(path)
    return list(groups.values())


def _group(run: StoredRun, across_models: bool) -> tuple[str, ...]:
    task = run.node("config").get("task")
    subset = str(task.get("subset") or "") if isinstance(task, dict) else ""
    return run.label("task"), subset, "" if across_models else run.label("model")


def write_report(
    comparisons: Sequence[Comparison], directory: Path, claims: Sequence[Sequence[Claim]] | None = None
) -> list[Path]:
    """Write comparison.json, comparison.csv and report.html into a directory; return their paths."""
    held = claims if claims is not None else [() for _ in comparisons]
    written = write_files(comparisons, held, directory)
    page = directory / "report.html"
    page.write_text(render(comparisons, held), encoding="utf-8")
    return [*written, page]


def _compare_or_list(group: Sequence[Path], *, across_models: bool, metrics: Sequence[str]) -> Comparison:
    try:
        return compare(group, across_models=across_models, metrics=metrics, strict=False)
    except ValueError as error:
        return listing([Failure(path.name, path, f"cannot be compared: {error}") for path in group])
