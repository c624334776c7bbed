"""From a command line to jobs, and from jobs to wherever they run: this process, or those of a Hydra launcher.

Only Hydra is imported here, so that a mistake in a command line shows before torch is loaded.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from harness import workers
from harness.config import (
    LAUNCHER_EXTRAS,
    PLUGIN_LAUNCHERS,
    composed,
    did_you_mean,
    expand,
    explain,
    fitting,
    is_own_option,
    swept,
)

JOBS = "HARNESS_JOBS"
"""Environment variable that tells a job how many there are."""


@dataclass(frozen=True)
class Outcome:
    """What came of one job; plain enough to come back from another machine.

    Args:
        overrides: the job's.
        folder: of its run, if it came far enough to have one.
        error: why it failed; None if it did not.
    """

    overrides: tuple[str, ...]
    folder: str | None = None
    error: str | None = None


@dataclass
class CommandLine:
    """What this process knows of the command line that it works on.

    Args:
        outcomes: what came of its jobs so far.
        is_sweep: without ``-m``, it turned out to stand for several jobs: those of ``jobs`` or ``controls``.
        kept_back: overrides of a search or a task that not every job has.
        shared: overrides that all jobs have.
        printed: overrides of failed jobs whose error this process has printed.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    is_sweep: bool = False
    kept_back: list[str] = field(default_factory=list)
    shared: frozenset[str] = frozenset()
    printed: set[tuple[str, ...]] = field(default_factory=set)

    def label(self, overrides: Sequence[str]) -> str:
        """What tells a job from the others of its sweep."""
        return " ".join(item for item in overrides if item not in self.shared) or " ".join(overrides)


command_line = CommandLine()
"""Replaced at the start of each command line."""


def search_path_of(settings: Any) -> list[str]:
    """``hydra.searchpath=…``, as it was given on the command line."""
    return [item for item in as_given(settings.overrides.hydra) if item.startswith("hydra.searchpath=")]


def as_given(overrides: Any) -> list[str]:
    """Overrides as they were written: what they refer to (``seed=${oc.env:SEED}``) may not be there."""
    items = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(items, list)
    return [str(item) for item in items]


class JobSweeper(Sweeper):
    """Hands a launcher every job of a sweep: combinations of values, those of ``jobs``, and the controls that fit.

    Jobs of one model follow each other, so that a process that works on several of them keeps it loaded.
    """

    __module__ = "hydra_plugins.steering_harness"  # see `register`

    config: DictConfig
    launcher: Any

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Part of Hydra's interface: called once before `sweep`."""
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Outcome]:
        """Launch every job, keep what came of each, and compare all that ran."""
        jobs = self._jobs(arguments)
        # Imported only now, since it imports torch, which a wrong command line need not wait for.
        from harness.sweep import chosen_contrasts, outcome_on_disk, print_failure, published_values, report_sweep

        published_values(self.config)  # a mistake in these must not show at the end only
        chosen_contrasts(self.config)
        os.environ[JOBS] = str(len(jobs))
        command_line.shared = frozenset.intersection(*map(frozenset, jobs)) if len(jobs) > 1 else frozenset()
        try:
            with self._places():
                results = self.launcher.launch(jobs, initial_job_idx=0)
            outcomes = [_returned(result, job) for result, job in zip(results, jobs, strict=True)]
        except Exception as error:
            # Some launchers raise for the whole sweep when one of its processes was lost. The others have finished:
            # what they came to lies on the disk.
            outcomes = [outcome_on_disk(job, self._search_path, explain(error)) for job in jobs]
        command_line.outcomes += outcomes
        for outcome in outcomes:
            if outcome.error is not None and outcome.overrides not in command_line.printed:
                print_failure(outcome)
        report_sweep(self.config, outcomes)
        return outcomes

    def _places(self) -> AbstractContextManager[None]:
        """Places for the worker processes of a launcher that leaves it to them which GPU they use."""
        launcher = self.config.hydra.runtime.choices["hydra/launcher"]
        if launcher == "joblib":
            from joblib import effective_n_jobs

            return workers.places(effective_n_jobs(self.config.hydra.launcher.n_jobs), workers.visible_gpus())
        if launcher == "submitit_local":
            return workers.places(workers.one_per_gpu(without=2), workers.visible_gpus())
        return nullcontext()

    @property
    def _search_path(self) -> list[str]:
        return search_path_of(self.config.hydra)

    def _jobs(self, arguments: Sequence[str]) -> list[list[str]]:
        """The overrides of every job, those of one model together, in the order in which each model first appears."""
        jobs: list[list[str]] = []
        for combination in swept([*arguments, *command_line.kept_back]):
            config, choices = composed([*_without_own_options(combination), *self._search_path])
            jobs += expand(config, choices, combination)

        own_options = dict.fromkeys(item for job in jobs for item in job if is_own_option(item))
        jobs = [fitting(job, self._search_path, one_of_many=len(jobs) > 1) for job in jobs]
        for item in own_options:
            if not any(item in job for job in jobs):
                option = item.partition("=")[0]
                group = option.lstrip("+~").partition(".")[0]
                # A few jobs are asked: each is composed anew for it.
                meant = next(filter(None, (did_you_mean(option.lstrip("+~"), job) for job in jobs[:10])), "")
                hint = f" (did you mean {meant}?)" if meant else ""
                raise ValueError(f"there is no option {option} in the {group} of any of {len(jobs)} jobs{hint}")

        models = list(dict.fromkeys(_model_of(job) for job in jobs))
        return sorted(jobs, key=lambda job: models.index(_model_of(job)))


def _without_own_options(overrides: Sequence[str]) -> list[str]:
    """Overrides without the options of a search or task, which decide nothing about which jobs there are."""
    return [item for item in overrides if not is_own_option(item)]


def _model_of(job: Sequence[str]) -> tuple[str, ...]:
    """What a job says about its model."""
    return tuple(item for item in job if item.lstrip("+~").startswith("model"))


def _returned(result: Any, job: Sequence[str]) -> Outcome:
    try:
        return result.return_value
    except Exception as error:  # a launcher keeps what its process died of
        return Outcome(tuple(job), error=explain(error))


def register() -> None:
    """Make the sweeper, and what the YAMLs of launchers refer to, known to Hydra, as installing a plug-in would.

    Hydra takes plug-ins from the package ``hydra_plugins`` only. This project keeps its own folders, so the module gets
    its second name here.
    """
    plugins = Plugins.instance()  # first: it imports the plug-ins that are installed
    place = JobSweeper.__module__
    package, _, name = place.partition(".")
    if package not in sys.modules:
        empty = types.ModuleType(package)
        empty.__path__ = []  # a package, though without files
        sys.modules[package] = empty
    sys.modules[place] = sys.modules[__name__]
    setattr(sys.modules[package], name, sys.modules[__name__])
    plugins.register(JobSweeper)

    # Each of our YAMLs of launchers inherits the node that a plug-in stores under the same name: it gets another one.
    store = ConfigStore.instance()
    for name in LAUNCHER_EXTRAS:
        with suppress(ConfigLoadError):  # not installed
            installed = store.load(f"hydra/launcher/{name}.yaml")
            store.store(name, installed.node, group=PLUGIN_LAUNCHERS, provider=installed.provider)
            del store.repo["hydra"]["launcher"][f"{name}.yaml"]
    OmegaConf.register_new_resolver("one_per_gpu", workers.one_per_gpu, replace=True)
    OmegaConf.register_new_resolver("one_gpu", workers.one_gpu, replace=True)
