"""What becomes of jobs: each is run so that its failure stops no other, and all that ran are compared."""

from __future__ import annotations

import csv
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from harness import launching, progress
from harness.build import build
from harness.config import composed, explain, fitting
from harness.job import Job
from harness.launching import JOBS, Outcome
from harness.nodes import built
from harness.records.lines import plain_cell, replaced
from harness.records.run import RunRecord
from harness.records.tracking import Tracking
from harness.report.claims import Pairs
from harness.report.expect import Expectations, check_expectations, held_against
from harness.report.files import write_report
from harness.report.groups import compare_groups
from harness.report.terminal import print_comparison, print_paths
from harness.run import TRACEBACK, begun_folder, run, run_folder, runs_folder

DEBUG = "HARNESS_DEBUG" in os.environ
INDEX = "index.csv"


_MISTAKES = (
    TypeError,
    AttributeError,
    NameError,
    KeyError,
    IndexError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
)
"""What code raises that is wrong itself: the message alone does not say where."""


def attempt(config: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str], number: int = 1) -> Outcome:
    """Build and run one job. Whatever fails is printed in one line and returned, never raised.

    Args:
        config: its composed configuration.
        choices: which YAML each group was taken from.
        overrides: what it was composed from.
        number: its place in the sweep, from 1.
    """
    total = int(os.environ.get(JOBS, "1"))
    job: Job | None = None
    try:
        published_values(config)
        chosen_contrasts(config)
        job = build(config, choices, overrides)
        log = runs_folder(job) / "log.txt"
        with progress.job(_title(job), number, total, log):
            folder, record = run(job)
    except Exception as error:  # whatever fails in one job must not stop the others
        if DEBUG:
            traceback.print_exc()
        begun = None if job is None else begun_folder(job)
        reason = explain(error, overrides)
        if isinstance(error, _MISTAKES) and begun is not None and (begun / TRACEBACK).exists():
            reason = f"{type(error).__name__}: {reason} (where: {begun / TRACEBACK})"
        return _failed(overrides, reason, begun, total)
    if record.status != "done":
        return _failed(overrides, record.error or "no reason stored", folder, total)
    return Outcome(tuple(overrides), str(folder))


def _title(job: Job) -> str:
    axes = (job.labels["method"], job.labels["search"], job.labels["control"])
    return " ".join(label for label in axes if label not in ("", "none"))


def _failed(overrides: Sequence[str], reason: str, folder: Path | None, total: int) -> Outcome:
    """The outcome of a failed job, after its one line on stderr."""
    outcome = Outcome(tuple(overrides), None if folder is None else str(folder), reason)
    print_failure(outcome, one_of_many=total > 1)
    return outcome


def print_failure(outcome: Outcome, *, one_of_many: bool = True) -> None:
    """One line on stderr: which job failed, and why."""
    name = f"job {launching.command_line.label(outcome.overrides)}: " if one_of_many else ""
    progress.console.print("[red]error:[/red]", end=" ")
    progress.console.print(f"{name}{outcome.error}", markup=False, highlight=False, soft_wrap=True)
    launching.command_line.printed.add(outcome.overrides)


def outcome_on_disk(job: Sequence[str], search_path: Sequence[str], lost: str) -> Outcome:
    """What came of a job whose process did not answer, from what it left on the disk.

    Args:
        job: its overrides.
        search_path: where further YAMLs lie.
        lost: why its process did not answer, for jobs that left nothing.
    """
    try:
        folder = run_folder(build(*composed([*fitting(job, search_path, one_of_many=False), *search_path]), job))
        record = RunRecord.read(folder)
    except Exception:  # it had not come far enough to leave anything that can be read
        return Outcome(tuple(job), error=lost)
    if record.status == "done":
        return Outcome(tuple(job), str(folder))
    return Outcome(tuple(job), str(folder), record.error or f"did not finish: {lost}")


def published_values(config: DictConfig) -> Expectations:
    """What ``expect`` says.

    Raises:
        ValueError: as `check_expectations`.
    """
    node = OmegaConf.to_container(config.expect, resolve=True)
    if not isinstance(node, dict):
        raise ValueError("expect must be a table of run labels, each with a table of metrics")
    return check_expectations({str(label): claims for label, claims in node.items()}, "expect")


def chosen_contrasts(config: DictConfig) -> Pairs:
    """What ``contrasts`` says.

    Raises:
        ValueError: it is neither auto nor all.
    """
    if config.contrasts not in get_args(Pairs):
        raise ValueError(f"contrasts must be {' or '.join(get_args(Pairs))}, got {config.contrasts}")
    return config.contrasts


def report_sweep(config: DictConfig, outcomes: Sequence[Outcome]) -> list[Path]:
    """Compare what ran, print the tables, write report and index; what failed or cannot be compared is listed.

    Args:
        config: of the sweep; ``out`` and ``sweep`` say where to write, ``expect`` holds published values,
            ``contrasts`` says which methods are tested against each other.
        outcomes: of its jobs.

    Returns:
        The files written; none if there is no run.
    """
    folders = [Path(name) for name in dict.fromkeys(outcome.folder for outcome in outcomes) if name is not None]
    if not folders:
        return []
    comparisons = compare_groups(folders, pairs=chosen_contrasts(config), strict=False)
    published = [held_against(comparison, published_values(config)) for comparison in comparisons]
    out = Path(config.out, config.sweep or "")
    written = [*write_report(comparisons, out, published), write_index(folders, outcomes, out / INDEX)]
    tracking = built(OmegaConf.to_container(config.tracking, resolve=True), Tracking, "tracking")
    tracking.publish_report(out / "report.html", config.sweep)

    terminal = Console()
    for comparison, values in zip(comparisons, published, strict=True):
        print_comparison(comparison, values, terminal)
    print_paths(written, terminal, explain=False)
    return written


def write_index(folders: Sequence[Path], outcomes: Sequence[Outcome], path: Path) -> Path:
    """One line for each run of a sweep: when, what, where, and what came out; runs of earlier sessions stay listed."""
    shared = set.intersection(*(set(outcome.overrides) for outcome in outcomes)) if len(outcomes) > 1 else set()

    lines: dict[str, dict[str, Any]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            lines = {line["folder"]: dict(line) for line in csv.DictReader(file)}

    for outcome in outcomes:
        if outcome.folder is None or Path(outcome.folder) not in folders:
            continue
        record = RunRecord.read(Path(outcome.folder))
        differing = " ".join(item for item in outcome.overrides if item not in shared)
        lines[record.name] = {
            "created": record.created,
            "status": record.status,
            "method": record.labels.shown("method"),
            "search": record.labels.shown("search"),
            "control": record.labels.shown("control"),
            "task": record.labels.shown("task"),
            "model": record.labels.shown("model"),
            "seed": record.labels.seed,
            "overrides": differing,
            "folder": record.name,
            **{name: estimate.value for name, estimate in record.estimates.items()},
        }

    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    with replaced(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: plain_cell(value) for name, value in line.items()} for line in lines.values())
    return path
