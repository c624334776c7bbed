"""Several jobs: run each, let none stop the others, compare at the end."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from harness.build import Job
from harness.config import first_line
from harness.progress import console
from harness.records.tracking import Tracking
from harness.report.claims import Pairs
from harness.report.expect import Expectations, check_expectations, held_against
from harness.report.files import write_report
from harness.report.groups import compare_groups
from harness.report.terminal import print_comparison, print_paths
from harness.run import begun_folder, run


@dataclass
class Outcome:
    """What this process has come to so far."""

    folders: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tracking: Tracking = field(default_factory=Tracking)

    def clear(self) -> None:
        """Forget everything."""
        self.folders.clear()
        self.failures.clear()


outcome = Outcome()


def attempt(label: str, build_job: Callable[[], Job], group: str | None = None, debug: bool = False) -> Job | None:
    """Build and run one job. A failure is kept and printed in one line; the caller goes on."""
    job = None
    try:
        job = build_job()
        outcome.tracking = job.tracking
        folder, record = run(job, group)
    except Exception as error:  # whatever fails in one job must not stop the others
        if debug:
            traceback.print_exc()
        failed(label, first_line(error))
        if job is not None and (begun := begun_folder(job)) is not None:
            outcome.folders.append(begun)
        return None
    outcome.folders.append(folder)
    if record.status != "done":
        failed(label, record.error or "no reason stored")
    return job


def failed(label: str, reason: str) -> None:
    """Keep a failure for the exit status and print it in one line."""
    outcome.failures.append(f"{label}: {reason}")
    console.print("[red]error:[/red]", end=" ")
    console.print(reason, markup=False, highlight=False, soft_wrap=True)


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


def report(config: DictConfig, group: str | None = None) -> list[Path]:
    """Compare what ran, print the tables and write the report; what failed or cannot be compared is listed.

    Args:
        config: ``out`` is where to write, ``expect`` holds published values to hold the results against,
            ``contrasts`` says which methods are tested against each other.
        group: name of the sweep, for tracking.

    Returns:
        The files written; none if there is no run.
    """
    runs = list(dict.fromkeys(outcome.folders))
    if not runs:
        return []
    out = Path(config.out)
    comparisons = compare_groups(runs, pairs=chosen_contrasts(config), strict=False)
    published = [held_against(comparison, published_values(config)) for comparison in comparisons]
    written = write_report(comparisons, out, published)
    outcome.tracking.publish_report(out / "report.html", group)
    terminal = Console()
    for comparison, values in zip(comparisons, published, strict=True):
        print_comparison(comparison, values, terminal)
    print_paths(written, terminal, explain=False)
    return written


class WriteReport(Callback):
    """Hydra calls this in the launching process at the end of a multirun."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Compare everything that ran."""
        try:
            report(config)
        except Exception as error:  # Hydra would turn it into a warning and exit status 0
            failed("report", first_line(error))
