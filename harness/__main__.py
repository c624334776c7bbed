"""``python -m harness``: compose, run, compare."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from harness.build import Job, build
from harness.config import composed, expand, explain
from harness.records.run import RunRecord
from harness.sweep import attempt, chosen_contrasts, failed, outcome, published_values, report

DEBUG = "HARNESS_DEBUG" in os.environ


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run one job, or each of ``jobs``."""
    # Whatever leaves this function, Hydra would print in several lines.
    try:
        _run(config, HydraConfig.get())
    except Exception as error:
        if DEBUG:
            raise
        failed("run", explain(error))


def _run(config: DictConfig, settings: Any) -> None:
    paths = [item for item in settings.overrides.hydra if item.startswith("hydra.searchpath=")]
    overrides = [*settings.overrides.task, *paths]
    in_sweep = settings.mode is not None and settings.mode.name == "MULTIRUN"
    group = _group(overrides) if in_sweep or config.jobs or config.controls != "none" else None
    published_values(config)  # a mistake in these must not show at the end only
    chosen_contrasts(config)
    jobs = expand(config, settings.runtime.choices, overrides)
    for chosen in jobs:
        label = " ".join(chosen) or "run"
        known = (config, settings.runtime.choices) if chosen == overrides else None
        attempt(label, lambda chosen=chosen, known=known: _build(chosen, known), group, DEBUG)
    if in_sweep:
        return
    if len(jobs) > 1:
        report(config, group)
    elif outcome.folders:
        _print_run(outcome.folders[0])


def _group(overrides: list[str]) -> str:
    named = [item for item in overrides if item.startswith("experiment=")]
    return named[0].partition("=")[2] if named else "sweep"


def _build(overrides: list[str], known: tuple[DictConfig, Mapping[str, Any]] | None) -> Job:
    config, choices = known or composed(overrides)
    return build(config, choices, "python -m harness " + " ".join(shlex.quote(item) for item in overrides))


def _print_run(folder: Path) -> None:
    record = RunRecord.read(folder)
    table = Table("metric", "value", "95 % interval", "scored", "unscored", title=record.name)
    for name, estimate in record.estimates.items():
        ends = (estimate.low, estimate.value, estimate.high)
        low, value, high = ("" if end is None else f"{end:.3f}" for end in ends)
        interval = f"{low} to {high}" if low or high else ""
        table.add_row(name, value, interval, str(estimate.num_scored), str(estimate.num_unscored))
    terminal = Console()
    terminal.print(table)
    kind = "oracle: it was shown the test answers" if record.oracle else "deployable: it was not shown test answers"
    terminal.print(f"{kind}\nwrote {folder}", highlight=False, soft_wrap=True)


def console_main() -> int:
    """Run Hydra's command line; every failure is one line and a non-zero exit status."""
    warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints errors itself, in many lines, and exits
    outcome.clear()
    # Hydra's parser does not find overrides on both sides of its one usual option.
    sweep = [item for item in sys.argv[1:] if item in ("-m", "--multirun")]
    sys.argv[1:] = [*sweep[:1], *(item for item in sys.argv[1:] if item not in sweep)]
    if wrong := _wrong_option():
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    try:
        main()
    except Exception as error:
        if DEBUG:
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        return 130
    return 1 if outcome.failures else 0


def _wrong_option() -> str | None:
    """What the parser of options has to say, without its usage text."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            get_args_parser().parse_args()
    except SystemExit as stop:
        return said.getvalue().strip().rpartition("error: ")[2] if stop.code else None
    return None


if __name__ == "__main__":
    sys.exit(console_main())
