"""From a composed configuration to objects, with all checks before weights load."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.config import composed, plain_values
from harness.control import Control
from harness.credentials import without_credentials
from harness.data import Access, Split
from harness.nodes import Packages, built
from harness.protocol import Protocol, Unsteered, decides
from harness.records.keys import ENGINE_VERSION, Keys, described, key_of
from harness.records.tracking import Tracking
from harness.scoring import Evaluator, Judge, RecordKind
from harness.search.fixed import Fixed
from harness.search.objective import Objective
from harness.search.per_prompt import PerPrompt
from harness.search.search import Search
from harness.side_effects import NotMeasured, Suite
from harness.steering import Layout, Method
from harness.subject.load import ModelConfig, ResolvedModel, resolve
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
}
"""What may stand in each node of the root."""

LABELLED = ("method", "search", "control", "task", "model", "judge", "scorer", "objective", "protocol")
"""Choices that name a run."""

SCORING = ("evaluator", "judge", "scorer", "protocol")
"""Nodes that decide how records are scored, and may change when they are scored again."""

_VALUES: Mapping[str, Any] = {
    "seed": int,
    "out": str,
    "sweep": str | None,
    "name": str | None,
    "prune_loops": bool,
    "lock_wait": float,
}


_FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w.=+-]{0,127}")
_TAKEN = ("generations", "report.html", "comparison.json", "comparison.csv", "index.csv", "log.txt", "wandb", "figures")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What it takes to score records.

    Args:
        evaluators: by name.
        judge: whom they may call on.
        scorer: which un-steered model says how likely a text is.
        find_subject: tells which model is under study; called only if the scorer needs to know.
        protocol: which examples and which trials count.
        seed: of bootstrap intervals.
    """

    evaluators: Mapping[str, Evaluator]
    judge: Judge
    scorer: ScorerChoice
    find_subject: Callable[[], ResolvedModel]
    protocol: Protocol
    seed: int

    @property
    def judged(self) -> bool:
        """Whether an evaluator calls on the judge."""
        return any("judge" in evaluator.needs for evaluator in self.evaluators.values())

    @cached_property
    def scoring_model(self) -> ResolvedModel:
        """The scorer's model, found once."""
        return self.scorer.resolved(self.find_subject)

    def reads(self, kind: RecordKind) -> bool:
        """Whether an evaluator is given records of this kind."""
        return any(evaluator.reads == kind for evaluator in self.evaluators.values())

    @property
    def scorer_identity(self) -> list[Any]:
        """What likelihoods depend on: the scorer's settings and the exact weights of its model."""
        return [described(self.scorer), self.scoring_model.identity]

    @property
    def grader(self) -> dict[str, Evaluator]:
        """The evaluator that says which answers are incorrect, by its name.

        Raises:
            ValueError: none does.
        """
        if self.protocol.grader is not None:
            return {"protocol.grader": self.protocol.grader}
        for name, evaluator in self.evaluators.items():
            if decides(evaluator):
                return {name: evaluator}
        raise ValueError(
            "protocol.subset=baseline_incorrect needs an evaluator that says what is incorrect: add simpleqa_rubric, "
            "or take protocol=baseline_failures"
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that scores depend on besides the records. What no evaluator calls on does not count."""
        needs = {need for evaluator in self.evaluators.values() for need in evaluator.needs}
        return {
            "evaluators": described(dict(self.evaluators)),
            "judge": self.judge.identity if "judge" in needs else None,
            "scorer": self.scorer_identity if "scorer" in needs else None,
        }


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, ready to start: plug-ins built and checked, nothing heavy loaded."""

    method: Method
    search: Search
    objective: Objective
    control: Control
    task: Task
    model: ResolvedModel
    engine: EngineConfig
    tracking: Tracking
    scoring: Scoring
    seed: int
    out: Path
    sweep: str | None
    name: str | None
    prune_loops: bool
    lock_wait: float
    labels: Mapping[str, str]
    config: Mapping[str, Any]
    overrides: tuple[str, ...]
    chosen_by: Job | None = None
    """The job whose fitted tensors and parameters this one takes over; it fits and searches nothing itself."""

    @property
    def command(self) -> str:
        """What reproduces the run."""
        return shlex.join(["python", "-m", "harness", *self.overrides])

    @property
    def layout(self) -> Layout:
        """The shape of the model."""
        return self.model.layout

    @property
    def protocol(self) -> Protocol:
        """Which examples and which trials count."""
        return self.scoring.protocol

    @property
    def steers(self) -> bool:
        """Whether hidden states are meant to change."""
        return self.method.steers and self.control.steers

    @property
    def generates(self) -> bool:
        """Whether anything is generated for test items: evaluators of latents alone need none of it."""
        return self.scoring.reads("generations")

    @property
    def reads_latents(self) -> bool:
        """Whether the method is to look for each concept in that concept's texts."""
        return self.scoring.reads("latents")

    @property
    def access(self) -> frozenset[Access]:
        """What method, search and control see together."""
        steering = self.method.access if self.control.steers else frozenset()
        return steering | self.search.access | self.control.access

    def unsteered(self) -> Job:
        """The job without steering, on all test items: its answers decide a subset."""
        config = self.model.config
        prompt = self.protocol.baseline_prompt or config.prompt_template
        model = dataclasses.replace(self.model, config=dataclasses.replace(config, prompt_template=prompt))
        return dataclasses.replace(
            self,
            method=Unsteered(),
            control=Control(),
            search=Fixed(parameters={}),
            model=model,
            scoring=dataclasses.replace(self.scoring, protocol=Protocol(), find_subject=lambda: model),
            labels={**self.labels, "method": "baseline", "control": "none", "search": "fixed"},
        )

    def elsewhere(self, suite: Suite) -> Job:
        """What this job fitted and chose, on the prompts of a suite.

        Raises:
            ValueError: it chooses parameters for each test item, so there are none for others.
        """
        if self.steers and isinstance(self.search, PerPrompt):
            raise ValueError(
                "side_effects needs parameters that hold for other prompts too; search=per_prompt chooses them for "
                "each test item (search=dev_split, fixed and equal_kl choose for all)"
            )
        evaluators = self.config["side_effects"]["evaluators"]
        return dataclasses.replace(
            self,
            task=suite.task,
            scoring=dataclasses.replace(self.scoring, evaluators=suite.evaluators, protocol=Protocol()),
            name=f"{self.name}-{suite.task.name}" if self.name else None,
            labels={**self.labels, "task": suite.task.name, "protocol": "standard"},
            config={**self.config, "evaluator": evaluators},  # what scoring again starts from
            chosen_by=self,
        )

    @cached_property
    def keys(self) -> Keys:
        """What makes another job the same as this one."""
        return Keys.of(self._made_from(), self.scoring.identity, self.counted_by)

    @cached_property
    def counted_by(self) -> tuple[Any, ...]:
        """Which examples and trials count, and, where a subset does, everything that decides it."""
        protocol = self.protocol
        if protocol.subset == "all":
            return (protocol.subset, protocol.scored_trials)
        # Greedy answers are the same for every seed, so runs of several seeds stay one entry.
        answers = {name: value for name, value in self.unsteered().keys.made_from.items() if name != "seed"}
        decision = [answers, self.scoring.judge.identity, list(self.scoring.grader.values())]
        return (protocol.subset, protocol.scored_trials, key_of(decision))

    @property
    def generates_subset(self) -> bool:
        """Whether texts are made for the examples that count alone. Un-steered answers are there for all of them."""
        return "subset" in self.keys.made_from

    def _made_from(self) -> dict[str, Any]:
        """Everything that the generations depend on."""
        if self.chosen_by is not None:
            task = {"fingerprint": self.task.fingerprint(["test"]), "max_new_tokens": self.task.max_new_tokens}
            return {"chosen_by": self.chosen_by.keys.generations, "task": task, "seed": self.seed}
        own = self._made_from_settings()
        if self.protocol.subset == "all" or described(own) == self.unsteered().keys.made_from:
            return own
        return own | {"subset": self.counted_by[-1]}

    def _made_from_settings(self) -> dict[str, Any]:
        config = self.model.config
        common = {
            "engine": ENGINE_VERSION,
            "model": {
                "identity": self.model.identity,
                "dtype": config.dtype,
                # Results differ slightly between a CPU and an accelerator, but not between two of a kind.
                "device": "cpu" if self.model.device.type == "cpu" else "accelerator",
                "quantization": config.quantization,
                "chat_template": config.chat_template,
                "prompt_template": config.prompt_template,
            },
            "method": described(self.method) if self.steers else {"instruction": self.method.instruction},
            "control": described(self.control),
            "seed": self.seed,
        }
        return common | (self._generated_from() if self.generates else self._read_from())

    def _read_from(self) -> dict[str, Any]:
        """What latents depend on besides."""
        return {"task": {"name": self.task.name, "latents": self.task.latents_fingerprint()}}

    def _generated_from(self) -> dict[str, Any]:
        """What generations depend on besides."""
        needs = self.objective.needs if self.search.needs_objective else frozenset()
        fits = self.steers and bool(self.method.requires)
        splits = ["test", *(["train"] if fits else []), *(["dev"] if self.search.uses_dev else [])]
        task = {
            "name": self.task.name,
            "fingerprint": self.task.fingerprint(splits),  # pyright: ignore[reportArgumentType]
            "max_new_tokens": self.task.max_new_tokens,
        }
        return {
            "task": task | ({"temperature": self.task.temperature} if self.task.temperature else {}),
            "search": described(self.search),
            "objective": described(self.objective) if self.search.needs_objective else None,
            "scorer": self.scoring.scorer_identity if "scorer" in needs else None,
            "judge": self.scoring.judge.identity if "judge" in needs else None,
            "prune_loops": self.prune_loops,
        } | self._own_instructions()

    def _own_instructions(self) -> dict[str, Any]:
        """The texts placed before each question, where they are not the same for all."""
        splits: tuple[Split, ...] = ("test", "dev") if self.search.uses_dev else ("test",)
        examples = [example for split in splits for example in self.task.examples(split)]
        texts = [self.method.instruct(example.shown_to(self.method.access)) for example in examples]
        return {"instructions": texts} if set(texts) - {self.method.instruction} else {}


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
    labels = {axis: str(choices.get(axis, "")) for axis in LABELLED} | {"seed": str(values["seed"])}
    if model is not None:
        target = f"{ModelConfig.__module__}.{ModelConfig.__qualname__}"
        values["model"] = {"_target_": target, **dataclasses.asdict(model.config)}
        labels["model"] = model.config.label
    parts = {name: built(values[name], kind, name) for name, kind in PARTS.items()}
    named = parts.pop("model")
    model = model or resolve(named)
    suite = parts["side_effects"]
    if "name" in vars(parts["task"]):  # tasks that the user names
        labels["task"] = parts["task"].name
    job = Job(
        **{name: parts[name] for name in ("method", "search", "objective", "control", "task", "tracking", "engine")},
        model=model,
        scoring=Scoring(
            evaluators=built_evaluators(values["evaluator"]),
            judge=parts["judge"],
            scorer=parts["scorer"],
            find_subject=lambda: model,
            protocol=parts["protocol"],
            seed=values["seed"],
        ),
        seed=values["seed"],
        out=Path(values["out"]),
        sweep=values["sweep"],
        name=values["name"],
        prune_loops=values["prune_loops"],
        lock_wait=values["lock_wait"],
        labels=labels,
        config=without_credentials(
            {name: node for name, node in values.items() if name not in ("jobs", "controls", "contrasts")}
        ),
        overrides=without_credentials(tuple(overrides)),
    )
    check(job)
    if isinstance(suite, Suite) and suite.measure:
        job = job.elsewhere(suite)
        job.task.check()
        check_scoring(job.scoring, job.labels["judge"])
        _check_evaluators(job)
    return job


def checked_values(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, those of the root of the right types.

    Raises:
        ValueError: one is not.
    """
    values = plain_values(config)
    values |= {name: built(values[name], kind, name) for name, kind in _VALUES.items()}
    if values["seed"] < 0 or values["lock_wait"] < 0:
        negative = "seed" if values["seed"] < 0 else "lock_wait"
        raise ValueError(f"{negative} must not be below 0, got {values[negative]}")
    _check_out(values["out"])
    for option in ("name", "sweep"):
        if (name := values[option]) is not None and not _FOLDER_NAME.fullmatch(name):
            raise ValueError(
                f"{option} must be a folder's name of letters, digits and . _ = + - that begins with a letter or a "
                f"digit, got {name!r}"
            )
        if name in _TAKEN:
            raise ValueError(f"{option}={name} is a name that the harness itself uses in out; choose another one")
    return values


def _check_out(out: str) -> None:
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


def check(job: Job) -> None:
    """Raise ValueError for parts that do not fit, before any weights load."""
    job.method.check(job.layout)
    _check_control(job)
    if job.generates:
        job.search.check(job.method, job.layout)
        job.task.check()
    if job.reads_latents:
        _check_latents(job)
    if job.steers:
        job.task.fit_data(job.method.requires)
    _check_samples(job)
    _check_protocol(job)
    check_scoring(job.scoring, job.labels["judge"])
    _check_evaluators(job)
    _check_primary(job)
    if job.generates and job.search.needs_objective:
        terms = {f"objective {term.metric}": term.evaluator for term in job.objective.terms}
        _check_judge(terms, job.scoring.judge, job.labels["judge"])


def _check_control(job: Job) -> None:
    """Raise for a control of what a method steers with where the method steers nothing."""
    if job.control.steers and type(job.control) is not Control and not job.method.steers:
        raise ValueError(
            f"control={job.labels['control']} changes what a method steers with; method={job.labels['method']} steers "
            "nothing. Choose another method, or control=none"
        )


def _check_samples(job: Job) -> None:
    """Raise where a method that steers samples of one prompt apart finds none."""
    if not (job.steers and job.method.couples_rows):
        return
    name = job.labels["method"]
    if job.task.kind != "generate":
        raise ValueError(f"method={name} steers what is drawn; task {job.task.name} also compares options")
    if job.task.num_samples < 2:
        raise ValueError(
            f"method={name} steers samples of one prompt apart from each other: set task.num_samples to 2 or more, and "
            f"task.temperature above 0; task {job.task.name} has num_samples={job.task.num_samples}"
        )


def _check_protocol(job: Job) -> None:
    if job.protocol.subset == "baseline_incorrect" and job.task.kind != "generate":
        raise ValueError(f"protocol.subset=baseline_incorrect needs answers that are graded; {job.task.name} has none")
    if job.protocol.subset == "baseline_incorrect":
        _check_judge(job.scoring.grader, job.scoring.judge, job.labels["judge"])


def _check_latents(job: Job) -> None:
    name = next(name for name, evaluator in job.scoring.evaluators.items() if evaluator.reads == "latents")
    if not job.task.latent_examples():
        raise ValueError(f"evaluator {name} scores latents in held-out texts; task {job.task.name} has none")
    if job.protocol != Protocol():
        raise ValueError(f"evaluator {name} scores concepts, not test items: use protocol=standard")


def _check_evaluators(job: Job) -> None:
    """Raise unless the task has what evaluators and objective look at."""
    evaluators = {f"evaluator {name}": evaluator for name, evaluator in job.scoring.evaluators.items()}
    if job.search.needs_objective and job.chosen_by is None:
        evaluators |= {f"objective {term.metric}": term.evaluator for term in job.objective.terms}

    of_generations = {name: evaluator for name, evaluator in evaluators.items() if evaluator.reads == "generations"}
    for name, evaluator in of_generations.items():
        examples = job.task.examples("test")
        if evaluator.choices and job.task.kind == "generate":
            raise ValueError(f"{name} scores options; task {job.task.name} has none")
        if not evaluator.choices and job.task.kind == "choice":
            raise ValueError(
                f"{name} scores what was written; task {job.task.name} compares options and writes nothing"
            )
        if evaluator.gold and not any(example.answer for example in examples):
            raise ValueError(f"{name} compares with right answers; the items of task {job.task.name} have none")
        evaluator.check(examples)


def check_scoring(scoring: Scoring, judge_label: str) -> None:
    """Raise ValueError for evaluators that do not fit each other or the judge."""
    if not scoring.evaluators:
        raise ValueError("evaluator: choose at least one")
    owners: dict[str, str] = {}
    for name, evaluator in scoring.evaluators.items():
        for metric in evaluator.metrics:
            if (owner := owners.setdefault(metric.name, name)) != name:
                raise ValueError(f"evaluator: {owner} and {name} both report {metric.name}; choose one of them")
    _check_judge(scoring.evaluators, scoring.judge, judge_label)


def _check_primary(job: Job) -> None:
    """Raise for a primary metric on the command line that no evaluator reports.

    A task's own may be missing: other evaluators may have been chosen on purpose.
    """
    reported = [metric.name for evaluator in job.scoring.evaluators.values() for metric in evaluator.metrics]
    is_given = any(item.lstrip("+").startswith("task.primary=") for item in job.overrides)
    if is_given and job.task.primary and job.task.primary not in reported:
        raise ValueError(f"task.primary must be one of {', '.join(reported)}, got {job.task.primary!r}")


def _check_judge(evaluators: Mapping[str, Evaluator], judge: Judge, label: str) -> None:
    """Raise unless the judge can be reached and can grade what the evaluators ask of it."""
    for name, evaluator in evaluators.items():
        if missing := evaluator.rubrics - judge.rubrics:
            can = ", ".join(sorted(judge.rubrics))
            raise ValueError(
                f"evaluator {name} needs a judge that grades {', '.join(sorted(missing))}; judge={label} grades {can} "
                "only. Choose judge=openai (judge.base_url, judge.model, key in OPENAI_API_KEY) or judge=local"
            )
    if any("judge" in evaluator.needs for evaluator in evaluators.values()):
        judge.preflight()
