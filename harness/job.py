"""One run, ready to start: its plug-ins, how it is scored, and what makes another run the same as it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.control import Control
from harness.data import Access, Split
from harness.executors.executor import Executor
from harness.protocol import Protocol, Unsteered, decides
from harness.records.keys import ENGINE_VERSION, Keys, described, key_of
from harness.records.tracking import Tracking
from harness.scoring import Evaluator, Judge, RecordKind
from harness.search.fixed import Fixed
from harness.search.objective import Objective
from harness.search.per_prompt import PerPrompt
from harness.search.search import Search
from harness.side_effects import Suite
from harness.steering import Layout, Method
from harness.subject.digest import files_digest
from harness.subject.load import ResolvedModel
from harness.subject.scorers import ScorerChoice
from harness.subject.sizes import EngineConfig
from harness.tasks.task import Task


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
    executor: Executor
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
        """What generations and latents depend on, whichever examples count."""
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
                # Sums over several processes are rounded in another order.
                **({"tensor_parallel": config.tensor_parallel} if config.tensor_parallel > 1 else {}),
                **({"offload": config.offload} if config.offload != "none" else {}),
            },
            "method": self._method_described() if self.steers else {"instruction": self.method.instruction},
            "control": described(self.control),
            "seed": self.seed,
        }
        return common | (self._generated_from() if self.generates else self._read_from())

    def _method_described(self) -> dict[str, Any]:
        """The method's settings, and what the files hold that it reads: a path alone would let them change."""
        files = self.method.files()
        content = {"files": files_digest(files)} if files else {}
        return described(self.method) | content

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
