"""From composed configuration to objects, with all checks before weights load. Only here does Hydra build things."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from harness.config import explain
from harness.control import BestOfN, Control
from harness.data import Access
from harness.evaluate import ScoredTrials
from harness.records.tracking import Tracking
from harness.scoring import Evaluator, Judge
from harness.search.objective import Objective
from harness.search.search import Fixed, Search
from harness.steering import Layout, Method
from harness.subject.decode import EngineConfig
from harness.subject.load import ModelConfig, peek
from harness.tasks.task import Task
from harness.value_types import check_kinds, check_values

AXES = ("method", "search", "control", "task", "model", "judge", "scorer", "objective")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, ready to start: plug-ins built and checked, nothing heavy loaded."""

    method: Method
    search: Search
    objective: Objective
    control: Control
    evaluators: Mapping[str, Evaluator]
    judge: Judge
    scorer: Any
    model: ModelConfig
    task: Task
    tracking: Tracking
    engine: EngineConfig
    layout: Layout
    seed: int
    out: Path
    name: str | None
    scored_trials: ScoredTrials
    prune_loops: bool
    lock_wait: float
    labels: Mapping[str, str]
    config: Mapping[str, Any]
    command: str

    @property
    def steers(self) -> bool:
        """Whether hidden states are meant to change."""
        return self.method.steers and self.control.steers

    @property
    def access(self) -> frozenset[Access]:
        """What method, search and control see together."""
        steering = self.method.access if self.control.steers else frozenset()
        return steering | self.search.access | self.control.access

    def unsteered(self) -> Job:
        """The same job without steering, on all test items."""
        return dataclasses.replace(
            self,
            method=Method(),
            control=BestOfN(temperature=0.0),
            model=dataclasses.replace(
                self.model, prompt_template=self.config["baseline_prompt"] or self.model.prompt_template
            ),
            search=Fixed(parameters={}),
            scored_trials="selected",
            task=dataclasses.replace(self.task, subset="all"),
            labels={**self.labels, "method": "baseline", "control": "none", "search": "fixed"},
        )

    @property
    def judged(self) -> bool:
        """Whether an evaluator calls on the judge."""
        return any("judge" in evaluator.needs for evaluator in self.evaluators.values())


def build(config: DictConfig, choices: Mapping[str, Any], command: str = "") -> Job:
    """Build every plug-in of a run and check that they fit each other.

    Args:
        config: the composed configuration.
        choices: which YAML each group was taken from, for labels.
        command: what reproduces the run.

    Raises:
        ValueError: a setting is wrong; the message says which, what was found and what is allowed.
    """
    plain = _checked(config)
    parts = {name: _instantiate(config[name], name) for name in (*AXES, "tracking", "engine")}
    job = Job(
        **parts,
        evaluators=_evaluators(config),
        layout=peek(parts["model"])[1],
        seed=plain["seed"],
        out=Path(plain["out"]),
        name=plain["name"],
        scored_trials=plain["scored_trials"],
        prune_loops=plain["prune_loops"],
        lock_wait=float(plain["lock_wait"]),
        labels={axis: str(choices.get(axis, "")) for axis in AXES} | {"seed": str(plain["seed"])},
        config={str(name): node for name, node in plain.items() if name not in ("jobs", "controls")},
        command=command,
    )
    check(job)
    return job


def composed(overrides: Sequence[str]) -> tuple[DictConfig, Mapping[str, Any]]:
    """The configuration that overrides stand for, and which YAML each group was taken from.

    Raises:
        ValueError: there is no such option or choice.
    """
    running = GlobalHydra.instance().is_initialized()
    start = nullcontext() if running else initialize_config_module("conf", version_base="1.3")
    try:
        with start:
            config = compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What it takes to score records from disk."""

    evaluators: Mapping[str, Evaluator]
    judge: Judge
    scorer: Any
    model: ModelConfig
    tracking: Tracking
    scored_trials: ScoredTrials
    labels: Mapping[str, str]
    """Which YAML judge and scorer were taken from."""
    config: Mapping[str, Any]
    """The nodes that say how to score, as plain values."""


def build_scoring(overrides: Sequence[str]) -> Scoring:
    """Build what scores, and nothing else of a run.

    Raises:
        ValueError: as `build`.
    """
    config, choices = composed(overrides)
    plain = _checked(config)
    parts = {name: _instantiate(config[name], name) for name in ("judge", "scorer", "model", "tracking")}
    scoring = Scoring(
        **parts,
        evaluators=_evaluators(config),
        labels={axis: str(choices[axis]) for axis in ("judge", "scorer")},
        scored_trials=plain["scored_trials"],
        config={axis: plain[axis] for axis in ("evaluator", "judge", "scorer", "tracking", "scored_trials")},
    )
    if not scoring.evaluators:
        raise ValueError("evaluator: choose at least one")
    check_judge(scoring.evaluators, scoring.judge, scoring.labels["judge"])
    return scoring


def _evaluators(config: DictConfig) -> dict[str, Evaluator]:
    return {str(name): _instantiate(node, f"evaluator.{name}") for name, node in config.evaluator.items()}


def compose_judge(overrides: Sequence[str]) -> Judge:
    """The judge that overrides such as ``judge=local`` choose, without building a run.

    Raises:
        ValueError: there is no such judge, or a setting of it is wrong.
    """
    return _instantiate(composed(overrides)[0].judge, "judge")


_ROOT = {
    "seed": int,
    "out": str,
    "name": str | None,
    "baseline_prompt": str | None,
    "scored_trials": str,
    "prune_loops": bool,
    "lock_wait": float,
}


def _checked(config: DictConfig) -> dict[str, Any]:
    """The whole configuration as plain values, of the kinds that are wanted."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from error
    assert isinstance(plain, dict)
    check_kinds(plain, _ROOT)
    if plain["scored_trials"] not in get_args(ScoredTrials):
        raise ValueError(f"scored_trials must be selected or best, got {plain['scored_trials']!r}")
    if plain["name"] is not None and Path(plain["name"]).name != plain["name"]:
        raise ValueError(f"name must be the name of a folder in out, without /, got {plain['name']!r}")
    return {str(name): value for name, value in plain.items()}


def _instantiate(node: Any, name: str) -> Any:
    try:
        check_values(OmegaConf.to_container(node, resolve=True), name, get_object)
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        reason = _reason(error.__cause__ or error)
        raise ValueError(reason if reason.startswith(name) else f"{name}: {reason}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{name}: {explain(error)}") from error


def _reason(error: BaseException) -> str:
    text = first_line(error)
    if isinstance(error, TypeError) and "unexpected keyword argument" in text:
        return f"there is no option {text.rpartition('argument ')[2]}"
    return text


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def check(job: Job) -> None:
    """Raise ValueError for parts that do not fit, before any weights load."""
    job.method.check(job.layout)
    job.search.check(job.method, job.layout)
    job.task.check()
    if not job.evaluators:
        raise ValueError("evaluator: choose at least one")
    if job.steers:
        job.task.fit_data(job.method.requires)
    _check_choices(job)
    _check_metrics(job.evaluators)
    terms = job.objective.terms if job.search.needs_objective else ()
    judged = {**job.evaluators, **{f"objective {term.metric}": term.evaluator for term in terms}}
    check_judge(judged, job.judge, job.labels["judge"])


def _check_choices(job: Job) -> None:
    wanted = [name for name, evaluator in job.evaluators.items() if evaluator.choices]
    if wanted and job.task.kind == "generate":
        raise ValueError(f"evaluator {wanted[0]} scores options; task {job.task.name} has none")


def _check_metrics(evaluators: Mapping[str, Evaluator]) -> None:
    owners: dict[str, str] = {}
    for name, evaluator in evaluators.items():
        for metric in evaluator.metrics:
            if (owner := owners.setdefault(metric.name, name)) != name:
                raise ValueError(f"evaluator: {owner} and {name} both report {metric.name}; choose one of them")


def check_judge(evaluators: Mapping[str, Evaluator], judge: Judge, label: str) -> None:
    """Raise unless the judge can be reached and can grade what the evaluators ask of it."""
    for name, evaluator in evaluators.items():
        missing = evaluator.rubrics - judge.rubrics
        if missing:
            can = ", ".join(sorted(judge.rubrics))
            raise ValueError(
                f"evaluator {name} needs a judge that grades {', '.join(sorted(missing))}; judge={label} grades {can} "
                "only. Choose judge=openai (judge.base_url, judge.model, key in OPENAI_API_KEY) or judge=local"
            )
    if any("judge" in evaluator.needs for evaluator in evaluators.values()):
        judge.preflight()
