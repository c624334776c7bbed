"""``python -m harness``: one job, or a sweep through whatever launcher Hydra was told to use."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from harness import launching, workers
from harness.commands.help import help_text
from harness.config import (
    composed,
    expand,
    explain,
    fitting,
    is_own_option,
    is_several,
    refuse_odd_choices,
    refuse_search_paths,
    swept,
)
from harness.launching import Outcome

DEBUG = "HARNESS_DEBUG" in os.environ


def run_job(config: DictConfig) -> Outcome:
    """Run the job that a configuration stands for, and return what came of it.

    Nothing is raised: Hydra would put lines of its own around an error.
    """
    settings = HydraConfig.get()
    overrides = [*launching.as_given(settings.overrides.task), *launching.search_path_of(settings)]
    in_sweep = settings.mode is not None and settings.mode.name == "MULTIRUN"
    if not in_sweep and is_several(config):
        launching.command_line.is_sweep = True
        return Outcome(tuple(overrides))

    workers.take_place()  # before torch looks for devices
    from harness.sweep import attempt  # imports torch, which a wrong command line need not wait for

    number = 1 + settings.job.num if in_sweep else 1
    outcome = attempt(config, settings.runtime.choices, overrides, number)
    if not in_sweep:
        launching.command_line.outcomes.append(outcome)
    return outcome


def command_line(main: Callable[[], Any]) -> int:
    """Run Hydra's command line around ``main``; every failure is one line and a non-zero exit status."""
    warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints errors itself, in many lines, and exits
    os.environ.pop(launching.JOBS, None)
    launching.command_line = launching.CommandLine()
    launching.register()
    # Hydra's parser does not find overrides on both sides of its one usual option.
    sweep = [item for item in sys.argv[1:] if item in ("-m", "--multirun")]
    sys.argv[1:] = [*sweep[:1], *(item for item in sys.argv[1:] if item not in sweep)]
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return 0
    if wrong := _wrong_option():
        print(f"error: {wrong}", file=sys.stderr)
        return 2

    try:
        refuse_odd_choices(sys.argv[1:])
        refuse_search_paths(sys.argv[1:])
        if not _shown_jobs():
            _run_hydra(main)
    except Exception as error:  # Hydra's, pydantic's, our own: all are one line here, and a traceback with DEBUG
        if DEBUG:
            raise
        print(f"error: {explain(error, sys.argv[1:])}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        return 130

    outcomes = launching.command_line.outcomes
    only = outcomes[0] if len(outcomes) == 1 else None
    if only and only.folder is not None and not only.error and "--multirun" not in sys.argv and not sweep:
        _print_run(Path(only.folder))
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _shown_jobs() -> bool:
    """Print the final settings of every job for ``--cfg job``, where the command line stands for several.

    Hydra itself would print the settings that jobs start from, which none of them need have.
    """
    options = get_args_parser().parse_args()
    if options.cfg != "job" or options.package is not None:
        return False

    jobs = []
    for combination in swept(options.overrides):
        config, choices = composed(combination)
        jobs += expand(config, choices, combination)

    if len(jobs) == 1:
        return False

    for number, job in enumerate(jobs, start=1):
        config, _choices = composed(fitting(job, one_of_many=True))
        overrides = " ".join(job).replace("\n", "\\n")
        print(f"# job {number} of {len(jobs)}: {overrides}")
        print(OmegaConf.to_yaml(config, resolve=options.resolve))
    return True


def _run_hydra(main: Callable[[], Any]) -> None:
    """Run ``main``, once more as a sweep if the command line turns out to stand for several jobs.

    Options of one search or task are kept back if the first composition does not know them: another job of a sweep may.
    """
    state = launching.command_line
    try:
        main()
    except Exception as error:  # of several classes; told apart by their words, and raised again unless they fit
        options = [item for item in sys.argv[1:] if is_own_option(item)]
        if not options or not re.search(r"there is no option (search|task)\.", explain(error)):
            raise

        state.kept_back = options
        sys.argv[1:] = [item for item in sys.argv[1:] if item not in options]
        if "--multirun" in sys.argv or "-m" in sys.argv:
            main()
            return

        config, _choices = composed([item for item in sys.argv[1:] if "=" in item])
        if not is_several(config):
            raise
        state.is_sweep = True

    if state.is_sweep:
        sys.argv.insert(1, "--multirun")
        main()


def _wrong_option() -> str | None:
    """What the parser of options has to say, without its usage text."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            options = get_args_parser().parse_args()
    except SystemExit as stop:
        return complaint.getvalue().strip().rpartition("error: ")[2] if stop.code else None
    if options.experimental_rerun:
        return "--experimental-rerun is refused: it runs what a pickled file says; give the overrides themselves"
    return None


def _print_run(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from harness.records.run import RunRecord

    record = RunRecord.read(folder)
    table = Table("metric", "value", "95 % interval", "scored", "unscored", title=record.name)
    for name, estimate in record.estimates.items():
        ends = (estimate.low, estimate.value, estimate.high)
        low, value, high = ("" if end is None else f"{end:.3f}" for end in ends)
        interval = f"{low} to {high}" if low or high else ""
        table.add_row(name, value, interval, str(estimate.num_scored), str(estimate.num_unscored))
    terminal = Console()
    terminal.print(table)
    if record.parameters:
        chosen = ", ".join(f"{name} = {_in_short(value)}" for name, value in record.parameters.items())
        terminal.print(f"chosen for all test items: {chosen}", highlight=False)
    kind = "oracle: it was shown the test answers" if record.oracle else "deployable: it was not shown test answers"
    terminal.print(f"{kind}\nwrote {folder}", highlight=False, soft_wrap=True)


def _in_short(value: float | Mapping[str, float]) -> str:
    """A parameter, or the parameters that were chosen for a group."""
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {own:g}" for name, own in value.items()) + ")"
    return f"{value:g}"
