"""From a composed configuration to the objects of a run."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.checks import check, check_elsewhere
from harness.config import WRONG_JOBS, composed, plain_values
from harness.control import Control
from harness.credentials import without_credentials
from harness.executors.executor import Executor
from harness.job import Job, Scoring
from harness.nodes import Packages, built
from harness.protocol import Protocol
from harness.records.tracking import Tracking
from harness.scoring import Evaluator, Judge
from harness.search.objective import Objective
from harness.search.search import Search
from harness.side_effects import NotMeasured, Suite
from harness.steering import Method
from harness.subject.load import ModelConfig, ResolvedModel
from harness.subject.scorers import ScorerChoice
from harness.subject.sizes import EngineConfig
from harness.tasks.task import Task

PARTS: Mapping[str, type] = {
    "method": Method,
    "search": Search,
    "control": Control,
    "task": Task,
    "model": ModelConfig,
    "judge": Judge,
    "scorer": ScorerChoice,
    "objective": Objective,
    "protocol": Protocol,
    "tracking": Tracking,
    "engine": EngineConfig,
    "side_effects": NotMeasured,
    "executor": Executor,
}
"""What may stand in each node of the root."""

LABELLED = ("method", "search", "control", "task", "model", "judge", "scorer", "objective", "protocol")
"""Choices that name a run."""

_VALUES: Mapping[str, Any] = {
    "seed": int,
    "out": str,
    "sweep": str | None,
    "name": str | None,
    "prune_loops": bool,
    "lock_wait": float,
}
"""What the root's own values must be."""

_OTHERS = ("evaluator", "num_trials", "jobs", "controls", "contrasts", "expect")
"""Options of the root that are checked where they are used."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w.=+-]{0,127}")
_TAKEN = ("generations", "report.html", "comparison.json", "comparison.csv", "index.csv", "log.txt", "wandb", "figures")


def build(
    config: DictConfig,
    choices: Mapping[str, Any],
    overrides: Sequence[str] = (),
    model: ResolvedModel | None = None,
) -> Job:
    """Build every plug-in of a run and check that they fit each other.

    Args:
        config: the composed configuration.
        choices: which YAML each group was taken from, for labels.
        overrides: what it was composed from.
        model: one that is at hand already, instead of the one that the configuration names.

    Raises:
        ValueError: a setting is wrong; the message says which, what was found and what is allowed.
    """
    values = checked_values(config)
    if model is not None:
        target = f"{ModelConfig.__module__}.{ModelConfig.__qualname__}"
        values["model"] = {"_target_": target, **dataclasses.asdict(model.config)}

    parts = {name: built(values[name], kind, name) for name, kind in PARTS.items()}
    parts["executor"].check(_searching_judge(parts), parts["model"].tensor_parallel)
    resolved = model or parts["executor"].resolved(parts["model"])

    labels = {axis: str(choices.get(axis, "")) for axis in LABELLED} | {"seed": str(values["seed"])}
    if model is not None:
        labels["model"] = model.config.label
    if "name" in vars(parts["task"]):  # tasks that the user names
        labels["task"] = parts["task"].name

    job = _job(values, parts, resolved, labels, overrides)
    check(job)
    suite = parts["side_effects"]
    if isinstance(suite, Suite) and suite.measure:
        job = job.elsewhere(suite)
        check_elsewhere(job)
    return job


def _searching_judge(parts: Mapping[str, Any]) -> Judge | None:
    """The judge, if the search calls on it."""
    searches = parts["search"].needs_objective and "judge" in parts["objective"].needs
    return parts["judge"] if searches else None


def _job(
    values: Mapping[str, Any],
    parts: Mapping[str, Any],
    model: ResolvedModel,
    labels: Mapping[str, str],
    overrides: Sequence[str],
) -> Job:
    """The job that checked values and the plug-ins built from them make."""
    scoring = Scoring(
        evaluators=built_evaluators(values["evaluator"]),
        judge=parts["judge"],
        scorer=parts["scorer"],
        find_subject=lambda: model,
        protocol=parts["protocol"],
        seed=values["seed"],
    )
    # What expands into further jobs is no setting of this one, and who computes it decides nothing about it.
    left_out = ("jobs", "controls", "contrasts", "executor")
    settings = {name: node for name, node in values.items() if name not in left_out}
    own = ("method", "search", "objective", "control", "task", "tracking", "engine", "executor")
    return Job(
        **{name: parts[name] for name in own},
        model=model,
        scoring=scoring,
        seed=values["seed"],
        out=Path(values["out"]),
        sweep=values["sweep"],
        name=values["name"],
        prune_loops=values["prune_loops"],
        lock_wait=values["lock_wait"],
        labels=labels,
        config=without_credentials(settings),
        overrides=without_credentials(tuple(overrides)),
    )


def checked_values(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, those of the root of the right types.

    Raises:
        ValueError: one is not.
    """
    values = plain_values(config)
    if unknown := [name for name in values if name not in (*PARTS, *_VALUES, *_OTHERS)]:
        close = difflib.get_close_matches(unknown[0], [*PARTS, *_VALUES, *_OTHERS], 1)
        raise ValueError(f"there is no option {unknown[0]}" + (f"; did you mean {close[0]}?" if close else ""))
    values |= {name: built(values[name], kind, name) for name, kind in _VALUES.items()}
    if not isinstance(values["jobs"], list):
        raise ValueError(WRONG_JOBS.format(values["jobs"]))
    for option in ("seed", "lock_wait"):
        if values[option] < 0:
            raise ValueError(f"{option} must not be below 0, got {values[option]}")

    check_out(values["out"])
    for option in ("name", "sweep"):
        check_folder_name(option, values[option])
    return values


def check_folder_name(option: str, name: str | None) -> None:
    """Raise ValueError unless a folder in ``out`` can have this name; None leaves the choice to the harness."""
    if name is not None and not _FOLDER_NAME.fullmatch(name):
        raise ValueError(
            f"{option} must be a folder's name of letters, digits and . _ = + - that begins with a letter or a "
            f"digit, got {name!r}"
        )
    if name in _TAKEN:
        raise ValueError(f"{option}={name} is a name that the harness itself uses in out; choose another one")


def check_out(out: str) -> None:
    """Raise ValueError unless files can be written below ``out``; nothing is made for the test."""
    if not out.strip() or "://" in out:
        raise ValueError(f"out must be a folder of this machine, got {out!r}")
    path = Path(out).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f"out={out}: {nearest} is a file, not a folder")
    # Some systems' own folders can be written by their permissions, and yet hold nothing new.
    if not os.access(nearest, os.W_OK | os.X_OK) or nearest.is_relative_to("/proc"):
        raise ValueError(f"out={out}: nothing can be written in {nearest}")


def built_evaluators(node: Mapping[str, Any], packages: Packages = None) -> dict[str, Evaluator]:
    """The evaluators of a configuration, by name."""
    return {name: built(item, Evaluator, f"evaluator.{name}", packages=packages) for name, item in node.items()}


def built_judge(overrides: Sequence[str]) -> Judge:
    """The judge that overrides such as ``judge=local`` choose, without building a run.

    Raises:
        ValueError: there is no such judge, or a setting of it is wrong.
    """
    return built(plain_values(composed(overrides)[0])["judge"], Judge, "judge")
