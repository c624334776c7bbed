"""Comparing methods from Python: the same jobs, tables and tests as on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from harness.api.fitted import Fitted, Steer
from harness.api.model import Model, written
from harness.build import build
from harness.config import composed, expand
from harness.job import Job
from harness.report.compare import Comparison
from harness.report.files import write_report
from harness.report.groups import compare_groups
from harness.report.terminal import print_comparison
from harness.run import run, runs_folder
from harness.steps import keep_loaded

Entry = str | Sequence[str] | Fitted | Steer
"""A method's name, a list of overrides as on the command line, or something fitted."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a comparison found.

    Args:
        comparisons: one for each task and model; usually one.
        runs: folders of the runs, in the order of the entries, controls behind them.
        files: what was written: report, tables, figures.
    """

    comparisons: tuple[Comparison, ...]
    runs: tuple[Path, ...]
    files: tuple[Path, ...]

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return next(path for path in self.files if path.suffix == ".html")

    def show(self, console: Console | None = None) -> None:
        """Print tables and verdicts."""
        for comparison in self.comparisons:
            print_comparison(comparison, (), console or Console())


def compare(
    entries: Sequence[Entry],
    model: Model,
    *,
    task: str = "facts",
    limit: int | None = None,
    controls: bool = False,
    out: str | Path = "runs",
    sweep: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Result:
    """Run methods on the same prompts and compare them.

    What was computed before, here or on the command line, is read instead of run again.

    Args:
        entries: methods to compare.
        model: what `load` gave.
        task: a name of ``conf/task``.
        limit: at most so many test items.
        controls: add to each method the controls that fit, and the baseline.
        out: where everything is written.
        sweep: a name for what belongs together; its runs and report go into a folder of this name in ``out``.
        seed: of everything that is drawn.
        overrides: further settings of all jobs, as on the command line: ``["search.num_trials=10"]``.

    Raises:
        ValueError: a setting is wrong, or there is nothing to compare.
    """
    if not entries or isinstance(entries, str):
        raise ValueError('entries must be a list of methods: ["baseline", "caa"]')
    common = [f"task={task}", f"seed={seed}", f"out={written(str(out))}", "tracking=none", *model.overrides]
    common += [] if limit is None else [f"task.limit={limit}"]
    common += [] if sweep is None else [f"sweep={sweep}"]
    own = [_of_entry(entry, Path(out), model) for entry in entries]
    jobs = _jobs([[*common, *entry, *overrides] for entry in own], model, controls)

    model.forget()
    keep_loaded(model.resolved, model.subject)
    folders = [run(job)[0] for job in jobs]
    comparisons = compare_groups(folders, strict=False)
    written_files = write_report(comparisons, runs_folder(jobs[0]))
    return Result(tuple(comparisons), tuple(folders), tuple(written_files))


def _jobs(entries: Sequence[list[str]], model: Model, controls: bool) -> list[Job]:
    """The jobs of entries that are given as overrides, with their controls; what two entries share is run once."""
    expanded: list[list[str]] = []
    for entry in entries:
        config, choices = composed([*entry, f"controls={'auto' if controls else 'none'}"])
        expanded += expand(config, choices, entry)

    # Everything is built and checked before the first job runs.
    jobs: list[Job] = []
    for job in dict.fromkeys(map(tuple, expanded)):
        config, choices = composed(job)
        jobs.append(build(config, choices, job, model=model.resolved))
    return jobs


def _of_entry(entry: Entry, out: Path, model: Model) -> list[str]:
    """The overrides that an entry stands for."""
    if isinstance(entry, str):
        return [f"method={entry}"]
    if isinstance(entry, Fitted | Steer):
        steer = entry.at()
        steer.fitted.check(model)
        path = steer.save(out / "vectors" / f"{steer.fitted.name}-{steer.digest[:16]}.safetensors")
        return ["method=vector", f"method.path={written(str(path))}"]
    return list(entry)
