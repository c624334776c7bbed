"""Which runs are compared with which: a sweep over tasks, test items or models gives one comparison for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.records.run import RunRecord
from harness.report.claims import Pairs
from harness.report.compare import Comparison, Failure, compare, listing
from harness.report.countable import run_folders


def compare_groups(
    paths: Sequence[Path],
    *,
    across_models: bool = False,
    primary: str | None = None,
    pairs: Pairs = "auto",
    strict: bool = True,
) -> list[Comparison]:
    """Compare runs that were named one by one with each other, those found in a folder per task, items and model.

    Args:
        paths: run directories, or directories that hold some.
        across_models: compare over models as well.
        primary: the metric to test; by default the one that the task names.
        pairs: which methods to test against each other: "auto", those whose claims stand, or "all".
        strict: refuse what cannot be compared; otherwise compare in groups, and list the rest as not counted.

    Raises:
        ValueError: if there is no run, or runs that must be compared differ in their examples, evaluators or model.
    """
    folders = run_folders(paths)
    named = all(path in folders for path in paths)
    groups = [folders] if named and strict else group_paths(folders, across_models)
    attempt = compare if strict else _compare_or_list
    return [attempt(group, across_models=across_models, primary=primary, pairs=pairs) for group in groups]


def group_paths(paths: Sequence[Path], across_models: bool = False) -> list[list[Path]]:
    """Run directories by task, its subset, its test items and, unless compared across, model.

    A folder that is used again with another ``task.limit`` holds runs on other items. A run that does not say which
    ones it answered stands with the first that share the rest.

    Args:
        paths: run directories.
        across_models: put all models into one group.

    Returns:
        The groups, in order of first appearance.
    """
    groups: dict[tuple[str, ...], list[Path]] = {}
    unfinished: list[tuple[tuple[str, ...], Path]] = []
    for path in paths:
        group = _group(path, across_models)
        if group[-1] and _is_done(path):
            groups.setdefault(group, []).append(path)
        else:
            unfinished.append((group, path))
    # A run that answered nothing is listed beside those that it would have been compared with, if they are there.
    for own, path in unfinished:
        group = own if own in groups else next((key for key in groups if key[:-1] == own[:-1]), own)
        groups.setdefault(group, []).append(path)
    return list(groups.values())


def _is_done(path: Path) -> bool:
    try:
        return RunRecord.read(path).status == "done"
    except ValueError:
        return False


def _group(path: Path, across_models: bool) -> tuple[str, ...]:
    try:
        record = RunRecord.read(path)
    except ValueError:  # it is listed with its reason when it is read whole
        return ("", "", "", "")
    subset = "" if record.subset is None else record.subset.name
    model = "" if across_models else record.labels.model
    return record.labels.task, subset, model, record.provenance.task_fingerprint


def _compare_or_list(group: Sequence[Path], *, across_models: bool, primary: str | None, pairs: Pairs) -> Comparison:
    try:
        return compare(group, across_models=across_models, primary=primary, pairs=pairs, strict=False)
    except ValueError as error:
        return listing([Failure(path.name, path, f"cannot be compared: {error}") for path in group])
